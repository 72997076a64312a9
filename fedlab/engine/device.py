"""The device that work is done on."""

from __future__ import annotations

import torch

from fedlab.errors import MachineError


def choose_device(name: str) -> torch.device:
    """The device for ``engine.device``; ``auto`` takes a GPU where there is one.

    Raises:
        MachineError: a GPU is asked for where none is.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise MachineError(
            "engine.device",
            name,
            "a CUDA device: this process sees none",
            "set engine.device=cpu, or see fedlab doctor",
        )
    use_gpu = available and name != "cpu"
    if use_gpu:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    return torch.device("cuda" if use_gpu else "cpu")
