"""What a container's control group grants of the machine: processor time and memory (Linux, versions 1 and 2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cpu_quota() -> float | None:
    """Cores' worth of processor time that this process may use; None where nothing bounds it."""
    found = []
    for folder in _folders("cpu"):
        words = _words(folder / "cpu.max")  # version 2: quota and period, or "max" and period
        if not words:
            words = [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
        if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal() and int(words[1]):  # none is -1 or max
            found.append(int(words[0]) / int(words[1]))
    return min(found, default=None)


def memory_left() -> int | None:
    """Bytes of memory that this process may still take; None where nothing bounds it.

    Files that the system keeps in memory and can drop count as free.
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


def _folders(controller: str) -> Iterator[Path]:
    """Folders of the groups this process is in, from its own up: each may bound it.

    Inside a container the path in `OWN` may be the host's, which is not there; the mounted root then is its own.
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
    return next((int(words[1]) for words in found if len(words) == 2 and words[0] == name), 0)


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # other systems, other versions, or not allowed
        return []
