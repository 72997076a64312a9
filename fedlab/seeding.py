"""All randomness comes from here: a draw is a pure function of (run seed, purpose…).

Nothing in FedLab draws from a global generator. Dropout and users' own code do; `global_generators` makes what they
draw a function of the purpose too. So a result does not depend on which worker did the work, in what order, or what
ran before it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def global_generators(seed: int, *purpose: Purpose, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch inside the block; afterwards they are as before.

    Args:
        seed: the run's seed.
        purpose: what the draws are for.
        device: where the work happens; a GPU's own generator is seeded too.
    """
    chosen = derive_seed(seed, *purpose)
    python, legacy = random.getstate(), np.random.get_state()
    gpus = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        random.seed(chosen)
        np.random.seed(chosen % 2**32)
        torch.default_generator.manual_seed(chosen)
        for _ in gpus:
            torch.cuda.manual_seed(chosen)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)
