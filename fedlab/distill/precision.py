"""Full precision for losses that half precision would make too inexact."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def full_precision(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """`tensors` in float32 at least, with autocast off inside the block.

    Args:
        tensors: one or more, all on one device.
    """
    with torch.autocast(tensors[0].device.type, enabled=False):
        yield tuple(t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in tensors)
