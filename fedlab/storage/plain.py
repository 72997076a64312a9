"""Reading files that somebody else may have put there: a pipe, a device or an endless file must not be waited for."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class UnreadableFileError(OSError):
    """What lies at a path is no file, or a larger one than is read."""


def check_plain(path: Path) -> None:
    """Check that a path leads to a file. Links are followed.

    Raises:
        OSError: there is nothing.
        UnreadableFileError: there is something else, which it might take forever to read.
    """
    _check(path, path.stat().st_mode)


def read_plain(path: Path, most: int | None = None) -> bytes:
    """The content of a file. Links are followed.

    Args:
        path: the file.
        most: bytes that it may have; None allows any number.

    Raises:
        OSError: it cannot be read.
        UnreadableFileError: it is no file, or larger than `most`.
    """
    check_plain(path)  # before it is opened, which alone makes some devices act
    with open(path, "rb", opener=_without_waiting) as file:
        found = os.fstat(file.fileno())
        _check(path, found.st_mode)  # it may have been replaced
        if most is None:
            return file.read()
        content = file.read(most + 1)
        if len(content) > most:
            size = max(found.st_size, len(content))
            raise UnreadableFileError(f"{path} has {size:,} bytes; a file of this kind has at most {most:,}")
        return content


def read_plain_text(path: Path, most: int | None = None) -> str:
    """The same of a text in UTF-8.

    Raises:
        OSError: see `read_plain`.
        UnicodeDecodeError: it is no text in UTF-8.
    """
    return read_plain(path, most).decode("utf-8").replace("\r\n", "\n")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has neither the flag nor such pipes


def _check(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise UnreadableFileError(f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a file")
