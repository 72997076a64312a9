"""What this machine has, what the configuration asks of it, and how processes use its cores and memory."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships no type information

from fedlab.config import EngineConfig
from fedlab.engine.cgroup import cpu_quota
from fedlab.engine.memory import workers_that_fit
from fedlab.errors import MachineError
from fedlab.storage.runfolder import why_unwritable

# of glibc's mallopt
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT, _LARGEST_KEPT = 256 * 2**20, 32 * 2**20

# a socket is FOLDER/session_2026-11-28_17-14-46_648777_1234567/sockets/plasma_store, of at most 107 bytes
_LONGEST_RAY = 107 - len("/session_2026-11-28_17-14-46_648777_1234567/sockets/plasma_store")
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Placement:
    """An engine configuration with its defaults filled in for this machine.

    Args:
        device: ``cpu`` or ``cuda``, where clients and server compute.
        workers: client processes; 1 for the inline engine.
        gpus_per_worker: share of a GPU each worker reserves; 0 on the CPU.
    """

    device: str
    workers: int
    gpus_per_worker: float


def cores() -> int:
    """CPU cores this process may use: those it is bound to, or the whole ones its container is granted, at least 1."""
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return seen if quota is None else max(1, min(seen, int(quota)))


def ray_folder() -> str | None:
    """Where Ray is to keep its sockets and logs; None leaves it to Ray.

    Ray takes the temporary folder, but the path of a socket may not be longer than 107 bytes.

    Raises:
        MachineError: no folder that can be written to has a path short enough.
    """
    usual = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or _SHORT[0]
    if _suits_ray(Path(usual, "ray")):
        return None
    for folder in (Path(short, name) for short in _SHORT for name in ("ray", f"ray-{os.getpid()}")):
        if _suits_ray(folder):
            return str(folder)
    raise MachineError(
        "TMPDIR",
        usual,
        f"a folder that can be written to, of at most {_LONGEST_RAY - len('/ray')} bytes: Ray's sockets lie below it",
        "set TMPDIR=/tmp, or run with --engine inline, which needs no Ray",
    )


def _suits_ray(folder: Path) -> bool:
    return len(os.fsencode(folder.absolute())) <= _LONGEST_RAY and why_unwritable(folder) is None


def settle_process(threads: int) -> None:
    """What every process that does client work needs first: `pin_threads` and `keep_freed_memory`."""
    pin_threads(threads)
    keep_freed_memory()


def pin_threads(threads: int) -> None:
    """Let torch, BLAS and OpenMP use `threads` threads in this process.

    Results depend on the number of threads, and idle OpenMP threads of several workers slow each other down.
    """
    for variable in _THREAD_VARIABLES:  # for libraries that are loaded later
        os.environ[variable] = str(threads)
    torch.set_num_threads(threads)
    threadpool_limits(threads)  # numpy's BLAS is loaded already


def keep_freed_memory() -> None:
    """Let glibc keep up to 256 MB that this process has freed, for its next allocations.

    By itself it may give the memory of a training step back at the step's end, and the next one then faults it in page
    by page: up to half as much time again for a small network, in some processes and not in others. Nothing happens
    where the C library is another one.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_TRIM_THRESHOLD, _KEPT)
            mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)


def check_engine(config: EngineConfig) -> Placement:
    """Check that this machine can do what the configuration asks, before any work starts.

    Args:
        config: where client work runs.

    Raises:
        MachineError: a GPU is asked for where none is, or Ray is not installed.
    """
    if config.name in ("ray", "flower") and importlib.util.find_spec("ray") is None:
        raise MachineError(
            "engine.name", config.name, "the package ray", "pip install 'flwr[simulation]', or set engine.name: inline"
        )
    if config.name in ("ray", "flower") and config.address is None:
        ray_folder()
    # the GPUs of a cluster need not be in the machine that drives it
    remote = config.name != "inline" and config.address is not None
    gpus = _gpus()
    if not gpus and not remote:
        if config.device == "cuda":
            raise MachineError(
                "engine.device",
                "cuda",
                "a CUDA GPU that torch can use",
                "set engine.device: auto, or run fedlab doctor",
            )
        if config.gpus_per_worker is not None:
            raise MachineError(
                "engine.gpus_per_worker", config.gpus_per_worker, "a CUDA GPU that torch can use", "remove the setting"
            )
    device = "cuda" if config.device == "cuda" or (config.device == "auto" and gpus) else "cpu"
    workers = 1 if config.name == "inline" else config.workers or max(1, cores() // config.threads)
    return Placement(device, workers, _gpu_share(config, workers, gpus) if device == "cuda" else 0.0)


def fitting(placement: Placement, config: EngineConfig, client_bytes: int | None) -> Placement:
    """The placement with no more workers than the memory of the GPUs here has room for.

    Args:
        placement: as `check_engine` returned it.
        config: where client work runs; a number of workers that it names is left alone.
        client_bytes: GPU memory that a client was seen to take; None on the CPU.
    """
    gpus = _gpus()
    if client_bytes is None or config.workers is not None or placement.device != "cuda" or not gpus:
        return placement
    workers = min(placement.workers, workers_that_fit(client_bytes))
    return replace(placement, workers=workers, gpus_per_worker=_gpu_share(config, workers, gpus))


def _gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _gpu_share(config: EngineConfig, workers: int, gpus: int) -> float:
    if config.gpus_per_worker is not None:
        return config.gpus_per_worker
    if not gpus:  # a remote cluster: one each unless told otherwise
        return 1.0
    # so that every GPU holds the same whole number of workers
    return min(1.0, 1.0 / -(-workers // gpus))
