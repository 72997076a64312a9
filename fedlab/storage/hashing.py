"""Hashes of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hash of the tensors' names, types, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return digest.hexdigest()


def state_hash(module: nn.Module) -> str:
    """Hash of a network's parameters and buffers. Networks with equal weights have equal hashes."""
    return hash_tensors(module.state_dict())
