"""Locks on files, which go with the process that holds them, however it ends."""

from __future__ import annotations

from typing import IO


def lock_now(file: IO[str]) -> bool:
    """Try to lock a file for as long as it is open. True also if the system has no such locks."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems have no locks
        return True
    return True
