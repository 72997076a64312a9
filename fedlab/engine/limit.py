"""A limit to the time that work in this process may take, where the work itself never looks at a clock."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class OverdueError(BaseException):
    """The time is up. It is no `Exception`, so that code which goes on after every error does not go on after this."""


def can_limit() -> bool:
    """Whether work in this thread can be ended after a time. That takes signals, which only main threads get."""
    return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()


@contextmanager
def limited(seconds: float | None, error: Callable[[FrameType | None], BaseException]) -> Iterator[None]:
    """A context whose code is ended after a time by an error that is raised in it.

    Code in C, such as a single operation of torch, ends first. A timer of the program's own goes on meanwhile. Where
    `can_limit` is false, nothing happens.

    Args:
        seconds: the time; None sets no limit.
        error: makes the error, given the frame that was at work.
    """
    if seconds is None or not can_limit():
        yield
        return

    def overdue(signum: int, frame: FrameType | None) -> None:
        raise error(frame)

    began = time.monotonic()
    handler = signal.signal(signal.SIGALRM, overdue)
    left, interval = signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1e-3), interval)
