"""Notices that Ray itself has died, before Ray ends this process without a word.

The head of a local Ray consists of processes that `ray.init` starts. Without the raylet, nothing is finished any more,
and Ray starts workers for ever. Without the GCS, calls block, and after a minute Ray ends the process of the driver by
its own hand. So the driver looks at these processes itself while it waits.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Protocol

log = logging.getLogger(__name__)

TICK = 1.0
"""Seconds between two looks."""
_PATIENCE = 20.0  # seconds in which the driver must have ended the run, where no call to Ray blocks it
_ESSENTIAL = ("raylet", "gcs_server")


class Process(Protocol):
    """A child process, such as `subprocess.Popen`."""

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""


class RayWatch:
    """Watches the processes of a Ray that this process has started.

    Args:
        processes: by what they are called.
        patience: seconds that a run may take to end after one has died, before the process ends all the same.
        leave: ends the process.
    """

    def __init__(
        self,
        processes: Mapping[str, Process],
        patience: float = _PATIENCE,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self._processes, self._patience, self._leave = dict(processes), patience, leave
        self._done, self._lost = threading.Event(), ""
        self._listeners: list[Callable[[str], None]] = []

    @property
    def lost(self) -> str:
        """What has died, as a sentence; empty while all is well."""
        if not self._lost:
            gone = {name: status for name, process in self._processes.items() if (status := process.poll()) is not None}
            if gone:
                name, status = next(iter(gone.items()))
                self._lost = f"Ray's {name} has died ({f'signal {-status}' if status < 0 else f'exit code {status}'})"
        return self._lost

    def start(self) -> None:
        """Begin to watch in a thread of its own, which ends the process if nothing else does."""
        threading.Thread(target=self._watch, name="ray-watch", daemon=True).start()

    def on_stuck(self, listener: Callable[[str], None]) -> None:
        """Have a function called, from the watching thread, before the process is ended.

        Args:
            listener: called with `lost`. It should record how the run has ended.
        """
        self._listeners.append(listener)

    def stop(self) -> None:
        """Watch no longer."""
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(TICK):
            if self.lost:
                break
        if self._done.wait(self._patience) or not self.lost:
            return
        for listener in [*self._listeners]:
            try:
                listener(self.lost)
            except Exception:  # it is the last chance to say anything
                log.exception("the end of the run could not be recorded")
        sys.stderr.write(f"error: {self.lost}, and this process waits for it in vain; {ADVICE}\n")
        sys.stderr.flush()
        self._leave(1)


ADVICE = (
    "go on with `fedlab resume RUN` (start a Flower app again), with --engine inline if it happens again; "
    "`fedlab doctor --deep` tells more"
)


def processes_of_ray() -> dict[str, Process]:
    """The processes without which the local Ray of this program cannot work; empty if Ray's own names have changed."""
    from ray._private import worker

    node = getattr(worker, "_global_node", None)
    found = getattr(node, "all_processes", {})
    return {name: infos[0].process for name in _ESSENTIAL if (infos := found.get(name))}
