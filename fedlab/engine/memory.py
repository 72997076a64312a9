"""GPU memory: how much a client needs, how many workers there is room for, and a bound for each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

CONTEXT_BYTES = 600 * 2**20
"""Memory of a GPU that CUDA itself takes for every process, the workspaces of its libraries included."""
_HEADROOM = 1.25  # for fragmented memory, and for clients whose last batch has another size and uses another kernel

Result = TypeVar("Result")


def peak_of(work: Callable[[], Result], device: torch.device) -> tuple[Result, int | None]:
    """Call `work`, and return its result and the most bytes that torch had reserved meanwhile; None on the CPU."""
    if device.type != "cuda":
        return work(), None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    result = work()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_reserved(device)
    torch.cuda.empty_cache()  # leave the memory to the workers
    return result, peak


def workers_that_fit(peak: int) -> int:
    """Number of workers that the GPUs of this machine have room for, at least one for each GPU.

    Args:
        peak: bytes that one client takes at most, with the networks that stay on the GPU.
    """
    each = int(peak * _HEADROOM) + CONTEXT_BYTES
    gpus = range(torch.cuda.device_count())
    room = min(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus)
    return len(gpus) * max(1, room // each)


def limit_memory(share: float) -> None:
    """Bound the memory that torch may take of this process's GPU, so that no worker crashes for another one's need.

    Args:
        share: share of the GPU, from 0 to 1, with the part that CUDA itself takes; 0 and 1 set no bound.
    """
    if share <= 0 or not torch.cuda.is_available():
        return
    if share >= 1:
        torch.cuda.set_per_process_memory_fraction(1.0)
        return
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    # A share smaller than CUDA's own part cannot suffice. It is left half of the share, and the allocator will say so.
    torch.cuda.set_per_process_memory_fraction(max(share - CONTEXT_BYTES / total, share / 2))


def data_allowance(device: torch.device) -> int:
    """Bytes of GPU memory that clients' data may take by default: a quarter of what the worker may take."""
    if device.type != "cuda":
        return 0
    total = torch.cuda.get_device_properties(device).total_memory
    return int(total * torch.cuda.get_per_process_memory_fraction(device) / 4)


def release_memory() -> None:
    """Return memory that torch does not use to the GPU."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
