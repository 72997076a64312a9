"""Errors of the libraries that decode files become FedLab's errors, which name the file.

Several broken files are reported in one error.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from fedlab.data.files.spelling import printable
from fedlab.errors import DataError, FedLabError, MachineError

Item = TypeVar("Item")
_NAMED = 10
# the file may be whole: what fails is the disk, the number of open files, the memory
_MACHINE = frozenset({errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.ESTALE})


@contextmanager
def reading(key: str, what: object, expected: str, fix: str) -> Iterator[None]:
    """Turns every exception raised inside into an error that names what was read.

    Args:
        key: configuration key that led here.
        what: file or sample.
        expected: what it should have been.
        fix: what to do if it is damaged; the decoder's own words are added.

    Raises:
        DataError: the decoder failed, there is no such file, or what it holds does not fit into memory.
        MachineError: the machine failed, not the file.
    """
    try:
        yield
    except FedLabError:
        raise
    except MemoryError as error:
        told = "make it smaller if it is not damaged: reading it needs more memory than this machine has"
        raise DataError(key, what, f"{expected} that fits into memory", told) from error
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            told = f"change its permissions ({reason(error)})"
            raise DataError(key, what, f"{expected} that this user may read", told) from error
        if error.errno == errno.ENOENT:
            raise DataError(
                key, what, f"{expected}: there is no such file", "correct the name, or add the file"
            ) from error
        if error.errno in _MACHINE:
            told = f"the machine could not read it, so the file itself may be intact: {reason(error)}"
            raise MachineError(key, what, "a machine that can read it", told) from error
        raise DataError(key, what, expected, f"{fix} ({reason(error)})") from error
    except Exception as error:
        raise DataError(key, what, expected, f"{fix} ({reason(error)})") from error


class Gathered:
    """Reads many things and reports all broken ones in one error.

    Args:
        things: what they are, in the plural, for the message.
    """

    def __init__(self, things: str) -> None:
        self._things, self._total = things, 0
        self._broken: list[DataError] = []

    def read(self, items: Sequence[Item], read: Callable[[int, Item], None]) -> None:
        """Call ``read(row, item)`` for all of them, whichever of them raise `DataError`."""
        self._total += len(items)
        for row, item in enumerate(items):
            try:
                read(row, item)
            except DataError as error:
                self._broken.append(error)

    def settle(self) -> None:
        """Raise an error if any of them was broken.

        Raises:
            DataError: names the only broken one, or the first ten and the number of all.
        """
        if self._broken:
            raise joined(self._broken, self._total, self._things) from self._broken[0]


def read_each(items: Sequence[Item], read: Callable[[int, Item], None], things: str) -> None:
    """Read all of them; see `Gathered`."""
    gathered = Gathered(things)
    gathered.read(items, read)
    gathered.settle()


def joined(broken: Sequence[DataError], total: int, things: str) -> DataError:
    """One error for several: the first in full, the others up to the tenth as a line each, and their number."""
    first = broken[0]
    if len(broken) == 1:
        return first
    lines = [f"    {_line(error, first)}" for error in broken[1:_NAMED]]
    if len(broken) > _NAMED:
        lines.append(f"    and {len(broken) - _NAMED:,} more")
    told = f"  in all:   {len(broken):,} of {total:,} {things} have such a problem: the one above and"
    return type(first)(first.key, first.value, first.expected, "\n".join([first.fix, told, *lines]))


def reason(error: BaseException) -> str:
    """A decoder's words on one line, at most 200 characters."""
    cause = f"; {error.__cause__}" if error.__cause__ else ""
    words = printable(" ".join(f"{error}{cause}".split())) or type(error).__name__
    return words if len(words) <= 200 else words[:199] + "…"


def _line(error: DataError, first: DataError) -> str:
    where = "" if error.key == first.key else f"{error.key}: "
    expected = "" if error.expected == first.expected else f"expected {error.expected}; "
    return printable(f"{where}{error.value}: {expected}{error.fix}")
