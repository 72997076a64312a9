"""All randomness comes from here: a draw is a pure function of (run seed, purpose…).

Nothing in FedLab draws from a global generator, so a result does not depend on which worker did the work,
in what order, or what ran before it.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

Purpose = str | int


def derive_seed(seed: int, *purpose: Purpose) -> int:
    """A 63-bit seed for one purpose, e.g. ``derive_seed(run_seed, "batches", round, client)``."""
    text = "\x1f".join([str(int(seed)), *(_text(part) for part in purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def _text(part: Purpose) -> str:
    return f"str:{part}" if isinstance(part, str) else f"int:{int(part)}"  # NumPy integers count as Python's


def torch_generator(seed: int, *purpose: Purpose, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for one purpose; use the CPU device for draws that must match on every machine."""
    generator = torch.Generator(device=device)
    generator.manual_seed(derive_seed(seed, *purpose))
    return generator


def numpy_generator(seed: int, *purpose: Purpose) -> np.random.Generator:
    """A numpy generator for one purpose."""
    return np.random.default_rng(derive_seed(seed, *purpose))
