"""GPU memory: what a client needs, how many workers that lets in, and a bound for each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

CONTEXT_BYTES = 600 * 2**20
"""What CUDA itself takes of a GPU for every process, libraries' workspaces included."""
_HEADROOM = 1.25  # the allocator's fragments, and clients whose last batch is another kernel's

Result = TypeVar("Result")


def peak_of(work: Callable[[], Result], device: torch.device) -> tuple[Result, int | None]:
    """What `work` returns and the most bytes that torch had reserved on the device meanwhile; None on the CPU."""
    if device.type != "cuda":
        return work(), None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    result = work()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_reserved(device)
    torch.cuda.empty_cache()  # it is the workers' now
    return result, peak


def workers_that_fit(peak: int) -> int:
    """Workers of this peak that the free memory of every GPU has room for, at least one, over all GPUs of the machine.

    Args:
        peak: bytes one client takes, the resident networks included.
    """
    each = int(peak * _HEADROOM) + CONTEXT_BYTES
    gpus = range(torch.cuda.device_count())
    room = min(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus)
    return len(gpus) * max(1, room // each)


def limit_memory(share: float) -> None:
    """Bound what torch may take of this process's GPU, so that one worker's need is never another's crash.

    Args:
        share: of the GPU, CUDA's own part of it included; 0 or a whole GPU sets no bound.
    """
    if share <= 0 or not torch.cuda.is_available():
        return
    if share >= 1:
        torch.cuda.set_per_process_memory_fraction(1.0)
        return
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    # a share below CUDA's own part cannot work anyway: leave it something, and the allocator will say so
    torch.cuda.set_per_process_memory_fraction(max(share - CONTEXT_BYTES / total, share / 2))


def data_allowance(device: torch.device) -> int:
    """Bytes of a worker's GPU that clients' data may stay on by default: a quarter of what the worker may take."""
    if device.type != "cuda":
        return 0
    total = torch.cuda.get_device_properties(device).total_memory
    return int(total * torch.cuda.get_per_process_memory_fraction(device) / 4)


def release_memory() -> None:
    """Give unused memory back to the GPU."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
