"""Full precision for losses that are not accurate enough in half precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def full_precision(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """A context without autocast. It yields `tensors`, of which those in half precision are converted to float32.

    Args:
        tensors: one or more, all on one device.
    """
    with torch.autocast(tensors[0].device.type, enabled=False):
        yield tuple(t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in tensors)
