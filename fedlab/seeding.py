"""Random generators, each seeded from the run's seed and the purpose of its draws.

FedLab's own draws come from generators made for one purpose. Dropout, the initialization of networks and users' own
code draw from the global generators of Python, NumPy and torch, which are therefore seeded for a purpose as well. A
result thus does not depend on which worker computed it, in what order, or what ran before it.
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
    """Return a seed of 63 bits for one purpose, as in ``derive_seed(run_seed, "batches", round, client)``."""
    text = "\x1f".join([str(int(seed)), *(_text(part) for part in purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def _text(part: Purpose) -> str:
    return f"str:{part}" if isinstance(part, str) else f"int:{int(part)}"  # NumPy's integers must give the same seed


def torch_generator(seed: int, *purpose: Purpose, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a torch generator for one purpose. Draws that must be equal on every machine need one on the CPU."""
    generator = torch.Generator(device=device)
    generator.manual_seed(derive_seed(seed, *purpose))
    return generator


def numpy_generator(seed: int, *purpose: Purpose) -> np.random.Generator:
    """Return a NumPy generator for one purpose."""
    return np.random.default_rng(derive_seed(seed, *purpose))


@contextmanager
def global_generators(seed: int, *purpose: Purpose, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch inside the block, and restore their states afterwards.

    Args:
        seed: the run's seed.
        purpose: what the draws are for.
        device: the device that is computed on; if it is a GPU, torch's generator there is seeded too.
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
