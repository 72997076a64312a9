"""This machine: its cores, a folder for Ray, and settings of a process that make its speed and results steady."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import sys
from functools import cache
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from fedlab.engine.cgroup import cpu_quota
from fedlab.engine.dynamo import postpone_compiler
from fedlab.errors import MachineError
from fedlab.storage.runfolder import why_unwritable

# parameters of glibc's mallopt, and the bytes they are set to
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT, _LARGEST_KEPT = 256 * 2**20, 32 * 2**20

# the path of a socket may have 107 bytes: FOLDER/session_2026-11-28_17-14-46_648777_1234567/sockets/plasma_store
_LONGEST_RAY = 107 - len("/session_2026-11-28_17-14-46_648777_1234567/sockets/plasma_store")
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def cores() -> int:
    """Number of CPU cores that this process may use, at least 1.

    These are the cores it is bound to, or fewer if its container is granted less processor time.
    """
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return seen if quota is None else max(1, min(seen, int(quota)))


def ray_folder() -> str | None:
    """The folder in which Ray is to keep its sockets and logs; None leaves the choice to Ray.

    Ray takes the folder for temporary files. But the path of a socket may not be longer than 107 bytes, so another
    folder is needed if that one has a long path or cannot be written to.

    Raises:
        MachineError: no folder that can be written to has a path that is short enough.
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
    """Prepare a process for client work: `pin_threads`, `keep_freed_memory` and `postpone_compiler`."""
    pin_threads(threads)
    keep_freed_memory()
    postpone_compiler()


def pin_threads(threads: int) -> None:
    """Let torch, BLAS and OpenMP use `threads` threads in this process.

    Results depend on the number of threads. Moreover, idle OpenMP threads of several workers slow each other down.
    """
    for variable in _THREAD_VARIABLES:  # libraries that are loaded later read these
        os.environ[variable] = str(threads)
    torch.set_num_threads(threads)
    threadpool_limits(threads)  # numpy's BLAS is loaded already


def keep_freed_memory() -> None:
    """Let glibc keep up to 256 MB that this process has freed, for its next allocations.

    Otherwise it may return the memory of a training step to the system at the end of the step, and the next step then
    faults it in page by page. For a small network that takes up to half as much time again, in some processes and not
    in others. With another C library this function does nothing.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_TRIM_THRESHOLD, _KEPT)
            mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)


def is_installed(package: str) -> bool:
    """Whether a package can be imported. It is not imported for that; a mere folder of its name does not count."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


@cache
def installed_version(package: str) -> str | None:
    """The version of a package that is installed here; None if it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
