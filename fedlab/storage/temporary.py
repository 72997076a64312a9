"""Temporary folders, which are removed even if the process that made them is killed: by the next one that needs one."""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from fedlab.storage.locks import lock_now

log = logging.getLogger(__name__)

PREFIX = "fedlab-"
PURPOSES = ("preflight", "tuning", "doctor", "submit")
_LOCK = ".lock"
_YOUNG, _OLD = 60.0, 86_400.0  # seconds
# see `unfinished_name`; the last part is like that of Python's mkstemp, with which earlier versions wrote
_UNFINISHED = re.compile(r"^\..+\.(csv|html|json|jsonl|md|png|safetensors|state|svg|yaml)\.[0-9a-z_]{8}$")


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """A folder that is removed at the end.

    Args:
        purpose: one of `PURPOSES`, which becomes part of its name.
    """
    sweep_temporary()
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{purpose}-") as name, (Path(name) / _LOCK).open("w") as lock:
        lock_now(lock)
        yield Path(name)


@cache
def sweep_temporary() -> None:
    """Remove the temporary folders of processes of this user that were killed, once in the life of this process."""
    for purpose in PURPOSES:
        for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}{purpose}-*"):
            with suppress(OSError):
                if _abandoned(folder):
                    shutil.rmtree(folder)
                    log.info("removed %s, which a process that was killed had left behind", folder)


def _abandoned(folder: Path) -> bool:
    """Whether the process that made a folder has ended: its lock is gone with it."""
    found = folder.lstat()
    age = time.time() - found.st_mtime
    mine = not hasattr(os, "getuid") or found.st_uid == os.getuid()  # on Windows the folder is the user's own
    if not stat.S_ISDIR(found.st_mode) or not mine or age < _YOUNG:  # one just made has no lock yet
        return False
    lock = folder / _LOCK
    if not lock.is_file():
        return age > _OLD
    with lock.open("a") as file:
        return lock_now(file)


def unfinished_name(name: str, token: str) -> str:
    """The name under which a file is written before it is complete.

    Args:
        name: the file's own name.
        token: eight small letters or digits.
    """
    return f".{name}.{token}"


def sweep_unfinished(folder: Path, *, older: float = 0.0) -> int:
    """Remove files below a folder that a process was writing when it was killed, and return their number.

    Args:
        folder: the folder. No other process may be writing to it, unless `older` is set.
        older: seconds since such a file was last written to; younger ones stay.
    """
    count, now = 0, time.time()
    for place, _, names in os.walk(folder):
        for name in filter(_UNFINISHED.match, names):
            path = Path(place, name)
            with suppress(OSError):
                if path.is_file() and not path.is_symlink() and now - path.stat().st_mtime >= older:
                    path.unlink()
                    count += 1
    return count


@cache
def sweep_cache(folder: Path) -> None:
    """Remove what processes that were killed were writing to a cache; other processes may be writing to it."""
    sweep_unfinished(folder, older=_OLD)
