"""A contender's side of the measurement: it waits for its turn before each round and reports what the round took."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARK = "@@ "
"""Begins the lines of a contender that are reports."""
_TICK = 1 / os.sysconf("SC_CLK_TCK")


class Pace:
    """Lets contenders take turns, so that all of them see the same machine.

    Args:
        rounds: rounds that are measured.
    """

    def __init__(self, rounds: int) -> None:
        self._left = rounds
        self._began: dict[str, float] | None = None

    def tick(self) -> bool:
        """Call before every round and after the last; False when there is none left to do."""
        if self._began is not None:
            parts, now = self._parts(), self._now()
            spent = {key: now[key] - began for key, began in self._began.items()}
            held = sum(resident(process) for process in family(os.getpid()))
            self._report(**spent, driver=_peak(), held=held, parts=parts)
        else:
            self._report(ready=True)
        if self._left == 0:
            return False
        self._left -= 1
        if not sys.stdin.readline():
            raise SystemExit("the benchmark is gone")
        self._began = self._now()
        return True

    def _parts(self) -> dict[str, float]:
        """CPU seconds of the parts of the round, where a contender takes it apart; see `DividedPace`."""
        return {}

    @staticmethod
    def _now() -> dict[str, float]:
        cpu = sum(cpu_seconds(process) for process in family(os.getpid()))
        return {"cpu": cpu, "busy": busy_seconds(), "wall": time.perf_counter()}

    @staticmethod
    def _report(**facts: object) -> None:
        print(MARK + json.dumps(facts), flush=True)


class DividedPace(Pace):
    """Divides the CPU time of a round between calls that are timed one by one and everything else in this process.

    Args:
        rounds: rounds that are measured.
        rest: name of everything else: all threads of this process, less what the timed calls took.
    """

    ASIDE = "aside"
    """Name of calls that are part of the measurement only; they are left out of the report."""

    def __init__(self, rounds: int, rest: str) -> None:
        super().__init__(rounds)
        self._rest, self._spent, self._at_start = rest, dict[str, float](), 0.0

    def tick(self) -> bool:
        again = super().tick()
        self._spent, self._at_start = {}, time.process_time()
        return again

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Count the CPU time of this thread in the block under `name`."""
        began = time.thread_time()
        yield
        self._spent[name] = self._spent.get(name, 0.0) + time.thread_time() - began

    def _parts(self) -> dict[str, float]:
        rest = time.process_time() - self._at_start - sum(self._spent.values())
        return {self._rest: rest, **{name: value for name, value in self._spent.items() if name != self.ASIDE}}


def family(root: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            found = _stat(int(entry))
            if found:
                children.setdefault(int(found[1]), []).append(int(entry))
    known = [root]
    for process in known:
        known += children.get(process, [])
    return known


def cpu_seconds(process: int) -> float:
    """CPU time of a process and of its children that have ended, 0 where it is gone."""
    found = _stat(process)
    return sum(map(int, found[11:15])) * _TICK if found else 0.0


def busy_seconds() -> float:
    """CPU time that anybody has used on this machine, what its host kept for others included."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) * _TICK


def resident(process: int) -> float:
    """Megabytes of a process, pages shared with others divided among them; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except (OSError, ProcessLookupError):
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _peak() -> float:
    """Megabytes this process has held at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def _stat(process: int) -> list[str]:
    try:
        # the name before the last parenthesis may hold spaces
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ProcessLookupError):
        return []
