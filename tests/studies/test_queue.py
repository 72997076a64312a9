"""The order and the end of a queue whose runs are made side by side, without processes; `test_jobs.py` has those."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

import fedlab
from fedlab.config import parse
from fedlab.errors import ConfigError, FedLabError, RunFailedError
from fedlab.experiment.result import Run
from fedlab.studies import plan, queue
from fedlab.studies.side_by_side import Told
from fedlab.studies.spec import SweepSpec
from fedlab.studies.sweep import Sweep, sweep

BASE: dict[str, Any] = {
    "method": "supervised",
    "model": "logistic",
    "data": {"source": {"name": "shifted_digits", "train_per_class": 4, "test_size": 20}, "partition": ["domain"]},
    "federation": {"rounds": 1},
    "engine": {"name": "inline"},
    "tracking": {"console": "quiet", "tensorboard": False, "report": False},
}


class Turns:
    """Stands in for `Workers`: the run that was started last is over first."""

    counts: ClassVar[list[int]] = []

    def __init__(self, count: int, logs: Path) -> None:
        self.counts.append(count)
        self._count, self._started = count, list[tuple[Any, fedlab.Config]]()
        assert logs.name == "logs"

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, *error: object) -> None:
        self._started.clear()

    @property
    def free(self) -> int:
        return self._count - len(self._started)

    def start(self, key: Any, config: fedlab.Config, command: str | None) -> None:
        assert self.free
        self._started.append((key, config))

    def next(self) -> Told:
        key, config = self._started.pop()
        try:
            return Told(key, "done", str(plan.made(config, None, lambda text: None).path))
        except FedLabError as error:
            return Told(key, "failed", plan.reason(error))


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setattr(queue, "Workers", Turns)
    monkeypatch.setattr(Turns, "counts", [])
    return Turns.counts


Started = Callable[..., Sweep]


@pytest.fixture
def start(tmp_path: Path) -> Started:
    def started(*rates: float, told: list[str] | None = None, **more: Any) -> Sweep:
        asked = parse(SweepSpec, {"base": BASE, "grid": {"training.lr": [*rates]}, "seeds": [0, 1]})
        return sweep(asked, tmp_path, announce=(told if told is not None else []).append, **more)

    return started


def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(config: fedlab.Config, **more: Any) -> Run:
        if config.training.lr == 0.2:
            raise FedLabError("out of order")
        return fedlab.run(config, **more)

    monkeypatch.setattr(plan, "run", run)


def test_what_was_over_first_changes_nothing_in_the_tables(start: Started, turns: list[int], tmp_path: Path) -> None:
    told: list[str] = []
    done = start(0.1, 0.3, jobs=3, told=told)
    assert turns == [3]
    assert {point: [*runs] for point, runs in done.batch.results.items()} == {
        "training.lr=0.1": [0, 1],
        "training.lr=0.3": [0, 1],
    }
    begun = [line for line in told if ": begun" in line]
    assert begun[0] == "training.lr=0.1, seed 0 (1 of 4): begun"
    assert begun[3].startswith("training.lr=0.3, seed 1 (4 of 4): begun, about ")
    assert any(line.startswith("training.lr=0.1, seed 1: done: ") for line in told)
    table = (tmp_path / "runs.csv").read_text()
    again = start(0.1, 0.3, jobs=3)
    assert turns == [3], "nothing is left to be made"
    assert (tmp_path / "runs.csv").read_text() == table
    assert again.batch.results.keys() == done.batch.results.keys()


def test_a_run_that_fails_ends_the_others(start: Started, turns: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch)
    with pytest.raises(RunFailedError, match=r"training.lr=0.2, seed 0 failed: out of order") as caught:
        start(0.1, 0.2, jobs=2)
    assert "of 4 runs are done and kept; give the same command again" in "".join(caught.value.__notes__)


def test_the_others_go_on_when_they_are_to(
    start: Started, turns: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failing(monkeypatch)
    told: list[str] = []
    done = start(0.1, 0.2, jobs=2, keep_going=True, told=told)
    assert {*done.batch.failures} == {("training.lr=0.2", 0), ("training.lr=0.2", 1)}
    assert len(done.batch.results["training.lr=0.1"]) == 2
    assert "training.lr=0.2, seed 1: failed: out of order" in told
    assert "training.lr=0.2, seed 0 failed: out of order" in (tmp_path / "sweep.md").read_text()


def test_a_metric_that_no_run_has_ends_the_sweep(start: Started, turns: list[int]) -> None:
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        start(0.1, 0.3, jobs=2, metrics=["acuracy"])


def test_without_a_number_the_first_run_decides(
    start: Started, turns: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, bool]] = []

    def two(configs: Any, seconds: float) -> int:
        asked.append((len(configs), seconds > 0))
        return 2

    monkeypatch.setattr(queue, "jobs_that_fit", two)
    told: list[str] = []
    start(0.1, 0.3, jobs=None, told=told)
    assert (asked, turns) == ([(3, True)], [2])
    assert "from here on, 2 runs are made at the same time, each in a process of its own" in told
    monkeypatch.setattr(queue, "jobs_that_fit", lambda configs, seconds: 1)
    start(0.1, 0.3, 0.4, jobs=None)
    assert turns == [2], "they are made here"
