"""The network state that a run has ended with, as its last checkpoint holds it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

import fedlab
from fedlab.storage.checkpoint import NETWORK, load_checkpoint


def weights(run: fedlab.Run, prefix: str = "") -> dict[str, Tensor]:
    """Network state of the last checkpoint whose names begin with the prefix, that sent once included."""
    tensors, _ = load_checkpoint(run.checkpoint)
    return {name: value for name, value in tensors.items() if name.startswith(f"{NETWORK}{prefix}")}


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Whether two states have the same names, at least one, and equal tensors."""
    return left.keys() == right.keys() != set() and all(torch.equal(left[name], right[name]) for name in left)
