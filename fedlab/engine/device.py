"""The device that networks are computed on."""

from __future__ import annotations

import torch

from fedlab.errors import MachineError


def choose_device(name: str) -> torch.device:
    """The device that ``engine.device`` asks for; ``auto`` takes a GPU if there is one.

    If it is a GPU, torch is told to use deterministic kernels.

    Raises:
        MachineError: a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise MachineError(
            "engine.device",
            name,
            "a CUDA device: this process sees none",
            "set engine.device=cpu, or see fedlab doctor",
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def use_deterministic_kernels(device: torch.device) -> None:
    """Let torch take kernels that give the same result every time, in this whole process; on a GPU others are faster.

    Where an operation has no such kernel, torch warns once and goes on.

    Args:
        device: that work is done on; nothing happens for the CPU, whose kernels are deterministic.
    """
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
