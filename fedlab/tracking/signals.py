"""Signals that end a run: Ctrl-C, SIGTERM of containers and batch systems, SIGHUP of a terminal that is closed.

The first of them raises KeyboardInterrupt. As soon as the end of the run is being recorded, further ones are ignored,
so that somebody who presses Ctrl-C three times still gets a run folder with an end and a report.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)

_PATIENCE = 60.0  # seconds in which the end of a run must be recorded before a further signal breaks that off
_DEFAULTS = {
    "SIGINT": signal.default_int_handler,
    "SIGTERM": signal.SIG_DFL,
    "SIGHUP": signal.SIG_DFL,
}


class Ending:
    """Whether the run of this process is being ended."""

    def __init__(self) -> None:
        self._since: float | None = None

    def begin(self) -> None:
        """Ignore further signals from now on, because the end of the run is being recorded."""
        if self._since is None:
            self._since = time.monotonic()

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """The handler of the signals."""
        if self._since is None or time.monotonic() - self._since > _PATIENCE:
            raise KeyboardInterrupt(signal.Signals(signum).name)
        log.warning("%s: the run is being ended already", signal.Signals(signum).name)


@contextmanager
def ending_signals() -> Iterator[Ending]:
    """A context in which each of the signals ends the run.

    A handler that the program or Flower has installed is left alone, and so is a signal that is ignored, as SIGHUP is
    below ``nohup``. In a thread that is not the main one nothing changes. A context inside another one is the same.
    """
    signals = {getattr(signal, name): usual for name, usual in _DEFAULTS.items() if hasattr(signal, name)}
    outer = next((found for found in map(signal.getsignal, signals) if isinstance(found, Ending)), None)
    if outer is not None or threading.current_thread() is not threading.main_thread():
        yield outer or Ending()
        return
    ending = Ending()
    before = {
        signum: signal.signal(signum, ending) for signum, usual in signals.items() if signal.getsignal(signum) is usual
    }
    try:
        yield ending
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
