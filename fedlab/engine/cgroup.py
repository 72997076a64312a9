"""How much of the machine a container may use: the processor time and memory that Linux control groups grant it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cpu_quota() -> float | None:
    """Processor time that this process may use, in cores; None if it is not bounded."""
    found = []
    for folder in _folders("cpu"):
        words = _words(folder / "cpu.max")  # version 2: quota and period, or "max" and period
        if not words:
            words = [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
        # where there is no bound, the quota is written as -1 or max
        if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal() and int(words[1]):
            found.append(int(words[0]) / int(words[1]))
    return min(found, default=None)


def memory_left() -> int | None:
    """Bytes of memory that this process may still take; None if they are not bounded.

    Memory counts as free if the system uses it as a cache of files that it can drop.
    """
    found = []
    for folder in _folders("memory"):
        for limit, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            bounds = [words[0] for name in (limit, used) if (words := _words(folder / name))]
            if len(bounds) == 2 and all(bound.isdecimal() for bound in bounds):
                found.append(max(0, int(bounds[0]) - int(bounds[1]) + _stated(folder / "memory.stat", cached)))
    return min(found, default=None)


def free_memory() -> int | None:
    """Bytes of memory that this process may still take: what the machine has, or less if its container is bounded."""
    return min((free for free in (available_memory(), memory_left()) if free is not None), default=None)


def available_memory() -> int | None:
    """Bytes of memory that Linux could give without swapping, for the whole machine; None on other systems."""
    return _stated(Path("/proc/meminfo"), "MemAvailable:") * 1024 or None


def _folders(controller: str) -> Iterator[Path]:
    """Folders of the control groups that this process is in, each of which may bound it.

    In a container the path in `OWN` may be that of the host, which does not exist there. The mounted root then is the
    folder of the container's own group.
    """
    for line in _lines(OWN):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        mounts = [ROOT / controllers, ROOT / controller] if controllers else [ROOT, ROOT / "unified"]
        for mount in mounts:
            own = mount / path.lstrip("/")
            yield from (folder for folder in (own, *own.parents) if folder == mount or mount in folder.parents)


def _stated(path: Path, name: str) -> int:
    found = (line.split() for line in _lines(path))
    return next((int(words[1]) for words in found if len(words) > 1 and words[0] == name), 0)


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # another system, another version of control groups, or no permission
        return []
