"""Contenders in processes of their own that take turns, one round each, and what their rounds cost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.pace import MARK, family, resident
from benchmarks.work import Work

ROOT = Path(__file__).resolve().parents[1]
LOADED = 0.15
"""Cores in use by others above which wall times are marked."""
_LOOK_EVERY = 0.25  # seconds between two looks at a contender's memory
_WAKING = 1.0  # seconds in which daemons that stood still do what they missed


@dataclass(frozen=True)
class Contender:
    """Who is measured.

    Args:
        name: in tables.
        module: below ``benchmarks.contenders``.
        arguments: after the work.
        python: its interpreter.
    """

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    python: str = sys.executable


@dataclass
class Result:
    """A contender's figures in one workload.

    Args:
        start: seconds from the start of its first process to the end of that one's first round.
        cpu: CPU seconds of each round, over its process tree.
        wall: seconds of each round.
        others: cores that others used meanwhile.
        driver: megabytes its first process held at most.
        tree: megabytes its process tree held at most, in the first round of a process and at the end of any.
        held: megabytes its process tree held at the end of each round.
        parts: CPU seconds of each part of each round, by the part's name, where it takes its rounds apart.
    """

    start: float = 0.0
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    driver: float = 0.0
    tree: float = 0.0
    held: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)

    @property
    def loaded(self) -> bool:
        """Others were at work, so that wall times say little."""
        return median(self.others) > LOADED


class _Running:
    """A contender that has been started and waits for its turns."""

    def __init__(self, contender: Contender, work: Work, result: Result) -> None:
        self.result = result
        self._name, self._began, self._taking_part = contender.name, time.perf_counter(), False
        self._log = Path(work.folder) / f"{work.name}-{contender.module}-{'-'.join(contender.arguments)}.log"
        command = [contender.python, "-m", "benchmarks.contenders", contender.module, work.to_json()]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*command, *contender.arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"},
            )
        self._answer()

    def round(self, measured: bool) -> None:
        """Take a turn; between turns the whole contender stands still, since daemons such as Ray's never sleep."""
        self._signal(signal.SIGCONT)
        if measured:
            time.sleep(_WAKING)
        self._turn(measured)
        self._signal(signal.SIGSTOP)

    def _turn(self, measured: bool) -> None:
        assert self._process.stdin is not None
        self._taking_part = not measured  # looking at a dozen processes again and again would slow the measured ones
        watch = threading.Thread(target=self._watch, daemon=True)
        watch.start()
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        found, result = self._answer(), self.result
        self._taking_part = False
        watch.join()
        result.tree = max(result.tree, found["held"])
        if not measured:
            result.start = result.start or time.perf_counter() - self._began
            return
        result.cpu.append(found["cpu"])
        result.wall.append(found["wall"])
        result.others.append(max(0.0, found["busy"] - found["cpu"]) / max(found["wall"], 0.1))
        result.driver = max(result.driver, found["driver"])
        result.held.append(found["held"])
        for name, seconds in found["parts"].items():
            result.parts.setdefault(name, []).append(seconds)

    def close(self) -> None:
        if self._process.poll() is None:
            assert self._process.stdin is not None
            self._signal(signal.SIGCONT)
            self._process.stdin.close()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                for process in reversed(family(self._process.pid)):
                    os.kill(process, 9)
                self._process.wait()

    def _signal(self, number: int) -> None:
        for process in family(self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                found: dict[str, Any] = json.loads(line.removeprefix(MARK))
                return found
        end = self._log.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"{self._name} ended with {self._process.wait()}:\n{end}")

    def _watch(self) -> None:
        while self._taking_part:
            held = sum(resident(process) for process in family(self._process.pid))
            self.result.tree = max(self.result.tree, held)
            time.sleep(_LOOK_EVERY)


def contest(work: Work, contenders: Sequence[Contender]) -> Mapping[str, Result]:
    """All contenders' figures, the first round of each process left out."""
    results = {contender.name: Result() for contender in contenders}
    for _ in range(work.heats):
        with ExitStack() as stack:
            running = []
            for contender in contenders:
                entrant = _Running(contender, work, results[contender.name])
                stack.callback(entrant.close)
                entrant.round(measured=False)  # before the next one starts: until then nobody else uses the machine
                running.append(entrant)
            for _ in range(1, work.rounds):
                for entrant in running:
                    entrant.round(measured=True)
    return results
