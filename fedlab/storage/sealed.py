"""Tensors in a file that carries a hash over them, so that damage is noticed wherever it lies."""

from __future__ import annotations

import json
from collections.abc import Mapping

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fedlab.storage.hashing import hash_tensors

_HASH = "content"  # in the metadata of the file, which other programs pass over


class DamagedFileError(ValueError):
    """The content of a file is not what was written."""


def sealed(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file of these tensors, with a hash over their names, types, shapes and values."""
    held = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return safetensors.torch.save(held, {_HASH: hash_tensors(held)})


def unsealed(raw: bytes) -> dict[str, Tensor]:
    """The tensors of a file that `sealed` made, on the CPU.

    Raises:
        DamagedFileError: the file is incomplete or was changed, or carries no hash.
    """
    try:
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        wanted = header["__metadata__"][_HASH]
        tensors = safetensors.torch.load(raw)
    except (SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DamagedFileError(f"the file is incomplete or was changed ({error})") from error
    if hash_tensors(tensors) != wanted:
        raise DamagedFileError("its hash does not match its content: the file is incomplete or was changed")
    return tensors
