"""Carries out a plan of runs, one after the other or side by side; finished ones are not repeated."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fedlab.config import Config
from fedlab.errors import RunFailedError
from fedlab.experiment.configuration import code_of
from fedlab.experiment.result import Run, load
from fedlab.report.record import RunRecord
from fedlab.studies.plan import Key, RunPlan, finished, made, reason
from fedlab.studies.side_by_side import Workers, jobs_that_fit
from fedlab.tracking.durations import human_seconds
from fedlab.tracking.signals import ending_signals

Announce = Callable[[str], None]
Inspect = Callable[[Run], None]


@dataclass
class RunQueue:
    """A plan that is carried out; its contents are valid even after an exception.

    Args:
        plan: what to run.
        results: runs by point and seed.
        failures: why runs failed, by point and seed.
    """

    plan: RunPlan
    results: dict[str, dict[int, Run]] = field(default_factory=dict)
    failures: dict[Key, str] = field(default_factory=dict)

    def run(
        self,
        *,
        jobs: int | None = 1,
        keep_going: bool = False,
        command: str | None = None,
        announce: Announce = lambda text: None,
        inspect: Inspect = lambda run: None,
    ) -> None:
        """Make the runs that are not finished in the folder; interrupted ones continue from their last checkpoint.

        Args:
            jobs: how many runs to make at the same time. 1 makes them in this process, one after the other; a larger
                number makes each in a process of its own, with the same results. None makes the first run here, and
                then as many at a time as `fedlab.studies.side_by_side.jobs_that_fit` finds room for.
            keep_going: continue with the other runs when one fails.
            command: how to repeat it, recorded in every run.
            announce: called with a line when a run starts and when it ends.
            inspect: called with every finished run; its exceptions end the queue.

        Raises:
            Exception: whatever a run raises, unless `keep_going`.
            RunFailedError: a run in a process of its own failed, unless `keep_going`.
            KeyboardInterrupt: with a note that says how to continue.
        """
        configs = self.plan.configs
        self.results = {point: {} for point, _ in configs}
        ahead = _Ahead(self.plan)
        try:
            for key in configs:
                if key in ahead.todo and (jobs or 1) > 1:
                    continue
                announce(f"{ahead.title(key)}{ahead.left()}")
                if key not in ahead.todo:
                    self._done(
                        key, ahead.done[key], f"already done{_by_other_code(ahead.done[key])}", announce, inspect
                    )
                    continue
                seconds = self._here(key, ahead, keep_going, command, announce, inspect)
                if jobs is None and seconds is not None:
                    jobs = jobs_that_fit([configs[other] for other in ahead.todo], seconds)
                    if jobs > 1:
                        announce(f"from here on, {jobs} runs are made at the same time, each in a process of its own")
            if ahead.todo:
                self._side_by_side(jobs or 1, ahead, keep_going, command, announce, inspect)
        except KeyboardInterrupt as stop:
            stop.add_note(self._how_to_go_on())
            raise

    def _here(
        self, key: Key, ahead: _Ahead, keep_going: bool, command: str | None, announce: Announce, inspect: Inspect
    ) -> float | None:
        """Make a run in this process; returns the seconds that it took, None if it failed."""
        config = self.plan.configs[key]
        ahead.say_if_repeated(config, announce)
        began = time.perf_counter()
        try:
            run = made(config, command, announce)
        except Exception as error:
            if not keep_going:
                error.add_note(self._how_to_go_on())
                raise
            self._failed(key, reason(error), "failed", announce)
            ahead.over(key, time.perf_counter() - began)
            return None
        seconds = time.perf_counter() - began
        self._done(key, run, "done", announce, inspect)
        ahead.over(key, seconds)
        return seconds

    def _side_by_side(
        self, jobs: int, ahead: _Ahead, keep_going: bool, command: str | None, announce: Announce, inspect: Inspect
    ) -> None:
        """Make all runs that are still ahead in processes of their own, so many at a time."""
        waiting, began = list(ahead.todo), dict[Key, float]()
        with ending_signals(), Workers(jobs, self.plan.folder / "logs") as workers:
            while ahead.todo:
                while waiting and workers.free:
                    key = waiting.pop(0)
                    announce(f"{ahead.title(key)}: begun{ahead.left(jobs)}")
                    ahead.say_if_repeated(self.plan.configs[key], announce)
                    began[key] = time.perf_counter()
                    workers.start(key, self.plan.configs[key], command)
                told = workers.next()
                name = f"{told.key[0]}, seed {told.key[1]}"
                if told.kind == "announce":
                    announce(f"{name}: {told.text}")
                    continue
                ahead.over(told.key, time.perf_counter() - began[told.key])
                if told.kind == "done":
                    self._done(told.key, load(told.text), f"{name}: done", announce, inspect)
                    continue
                self._failed(told.key, told.text, f"{name}: failed", announce)
                if not keep_going:
                    problem = RunFailedError(name, self.failures.pop(told.key))
                    problem.add_note(self._how_to_go_on())
                    raise problem

    def _done(self, key: Key, run: Run, words: str, announce: Announce, inspect: Inspect) -> None:
        point, seed = key
        self.results[point][seed] = run
        self.results[point] = dict(
            sorted(self.results[point].items(), key=lambda item: self.plan.place[point, item[0]])
        )
        announce(f"{words}: {run.path}")
        inspect(run)

    def _failed(self, key: Key, why: str, words: str, announce: Announce) -> None:
        self.failures[key] = why
        announce(f"{words}: {why}")

    def _how_to_go_on(self) -> str:
        done = sum(len(runs) for runs in self.results.values())
        return f"{done} of {len(self.plan.configs)} runs are done and kept; give the same command again to continue"


class _Ahead:
    """The runs of a plan that are still to be made.

    Args:
        plan: the plan.
    """

    def __init__(self, plan: RunPlan) -> None:
        self._plan = plan
        found = {key: finished(config, plan.data.get(key)) for key, config in plan.configs.items()}
        self.done: Mapping[Key, Run] = {key: run for key, run in found.items() if run is not None}
        self.todo: list[Key] = [key for key, run in found.items() if run is None]
        self._spent: dict[Key, float] = {}

    def title(self, key: Key) -> str:
        """``training.lr=0.1, seed 0 (2 of 8)``."""
        return f"{key[0]}, seed {key[1]} ({self._plan.place[key] + 1} of {len(self._plan.configs)})"

    def say_if_repeated(self, config: Config, announce: Announce) -> None:
        """Announce that a run is repeated although there is one of the same configuration."""
        if (old := finished(config)) is not None:
            announce(f"repeated, because the data has changed since {old.path}, which is kept")

    def over(self, key: Key, seconds: float) -> None:
        """Take a run off that took so many seconds."""
        self.todo.remove(key)
        self._spent[key] = seconds

    def left(self, jobs: int = 1) -> str:
        """The time that the remaining runs will take, estimated from other seeds of the same point, or from all."""
        return _left(self.todo, self._spent, jobs)


def _left(to_run: Sequence[Key], spent: Mapping[Key, float], jobs: int) -> str:
    if not spent:
        return ""
    overall = statistics.fmean(spent.values())
    own = {
        point: statistics.fmean(seconds for (other, _), seconds in spent.items() if other == point)
        for point, _ in spent
    }
    return f", about {human_seconds(sum(own.get(point, overall) for point, _ in to_run) / jobs)} left"


def _by_other_code(run: Run) -> str:
    recorded = RunRecord(run.folder, run.history).code
    return " (by another version of the code)" if recorded and recorded != code_of(run.config) else ""
