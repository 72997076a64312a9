"""Main memory that a process takes, now and at most. Linux tells both, other systems only the second."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

_KIB = 1024


def resident_bytes(pid: int | str = "self") -> int | None:
    """Bytes of main memory that a process takes now; None if the system does not say it, or the process is gone."""
    return _status(pid, "VmRSS:")


def start_peak() -> bool:
    """Let `peak_bytes` count from now on. Returns False where that is impossible: it then counts since the start."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # what was freed is not to count as taken
        if trim is not None:
            trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak of resident memory
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """The most bytes of main memory that this process took at once since `start_peak`, or since it was started."""
    found = _status("self", "VmHWM:")
    if found is not None:
        return found
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * _KIB


def _status(pid: int | str, name: str) -> int | None:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = (line.split() for line in text.splitlines())
    return next((int(words[1]) * _KIB for words in found if len(words) > 1 and words[0] == name), None)
