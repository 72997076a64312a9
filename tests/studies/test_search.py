"""Searches on runs whose validation values are a known function of what is tried."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

import fedlab
import fedlab.experiment.start
import fedlab.studies.plan
from fedlab.config import parse
from fedlab.config.recorded import record_config
from fedlab.errors import CheckpointError, ConfigError, ConfigErrors, FedLabError, InputError
from fedlab.experiment.result import Run, load
from fedlab.storage.runfolder import RunFolder
from fedlab.studies import queue
from fedlab.studies.found import JOURNAL, Found
from fedlab.studies.search import search
from fedlab.studies.spec import SweepSpec, load_spec
from tests.studies.test_queue import Turns

optuna = pytest.importorskip("optuna")

BASE: dict[str, Any] = {
    "method": "supervised",
    "model": "logistic",
    "data": {
        "source": {"name": "shifted_digits", "train_per_class": 4, "test_size": 20},
        "partition": ["domain"],
        "validation": 0.25,
    },
    "federation": {"rounds": 1},
    "engine": {"name": "inline"},
    "tracking": {"console": "quiet", "tensorboard": False, "report": False},
}
LR = {"training.lr": "log(1e-3, 10)"}


def spec(**raw: Any) -> SweepSpec:
    return parse(SweepSpec, {"base": BASE, "grid": LR, "trials": 12, **raw})


def score(config: fedlab.Config) -> float:
    """Best at a rate of 0.1, and better with momentum; each seed is a little better than the one before."""
    return (
        0.9 - 0.1 * abs(math.log10(config.training.lr) + 1) + 0.01 * config.seed + 0.1 * (config.training.momentum > 0)
    )


class Runs:
    """Runs in no time: a run folder with the events that a search reads.

    Attributes:
        made: what ran, in order.
        fails: rates above which runs fail.
    """

    def __init__(self) -> None:
        self.made: list[tuple[float, int]] = []
        self.fails = math.inf
        self.metric = "accuracy"

    def __call__(self, config: fedlab.Config, **_: Any) -> Run:
        self.made.append((config.training.lr, config.seed))
        if config.training.lr > self.fails:
            raise FedLabError(f"the loss is not finite\nat a rate of {config.training.lr}")
        folder = RunFolder.create(Path(config.tracking.folder), None, "supervised", config.seed)
        record_config(folder, config)
        value = {self.metric: score(config)}
        tests = {"accuracy": 0.123}
        events = [
            {"event": "run_start", "seed": config.seed, "rounds": 1, "method": "supervised"},
            {"event": "round", "round": 1, "bytes_down": 1, "bytes_up": 1, "clients": [], "bytes": {}},
            {"event": "evaluation", "round": 1, "clients": {"a": tests}, "mean": tests, "pooled": tests,
             "validation": value},
            {"event": "run_end", "status": "completed", "seconds": 1.0},
        ]  # fmt: skip
        folder.events.write_text("".join(json.dumps(event) + "\n" for event in events))
        return load(folder.path)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    made = Runs()
    monkeypatch.setattr(fedlab.studies.plan, "run", made)
    return made


def tried(found: Found) -> list[float]:
    return [trial.point.changes["training.lr"] for trial in found.trials]


def test_the_best_trial_is_that_of_the_best_mean_over_the_seeds(tmp_path: Path, runs: Runs) -> None:
    told: list[str] = []
    found = search(spec(seeds=[0, 1]), tmp_path, announce=told.append)
    assert len(found.trials) == 12
    assert len(runs.made) == 24
    rates = tried(found)
    means = [0.9 - 0.1 * abs(math.log10(rate) + 1) + 0.005 for rate in rates]
    assert [trial.spread.mean for trial in found.trials] == pytest.approx(means)
    assert found.best is found.trials[means.index(max(means))]
    assert found.best.values == {0: pytest.approx(max(means) - 0.005), 1: pytest.approx(max(means) + 0.005)}
    assert all(1e-3 <= rate <= 10 for rate in rates)
    assert len(set(rates)) == 12
    assert any(line.startswith(f"{found.best.name}: validation accuracy") for line in told)
    with (tmp_path / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["training.lr"]) for row in rows] == rates
    assert [float(row["validation_accuracy_mean"]) for row in rows] == pytest.approx(means)
    study = optuna.load_study(study_name="fedlab", storage=journal(tmp_path))
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert [trial.value for trial in study.trials] == pytest.approx(means)
    text = (tmp_path / "trials.md").read_text()
    assert f"best: {found.best.name} (" in text
    assert "accuracy, mean over clients (%): 12.3" in text
    assert "which the search has not seen" in text
    assert (tmp_path / "trials.png").read_bytes().startswith(b"\x89PNG")


def test_a_loss_is_minimized(tmp_path: Path, runs: Runs) -> None:
    runs.metric = "loss"
    found = search(spec(objective="loss", trials=4), tmp_path)
    assert found.best is min(found.trials, key=lambda trial: trial.spread.mean or math.inf)
    study = optuna.load_study(study_name="fedlab", storage=journal(tmp_path))
    assert study.direction == optuna.study.StudyDirection.MINIMIZE


def journal(folder: Path) -> Any:
    backend = optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
    return optuna.storages.JournalStorage(backend)


def test_optuna_learns_from_the_trials_before(tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ten are the same whatever they come to; those after them are not."""
    up = tried(search(spec(trials=13), tmp_path / "up"))
    monkeypatch.setitem(globals(), "score", lambda config: config.training.lr)
    other = tried(search(spec(trials=13), tmp_path / "other"))
    assert up[:10] == other[:10]
    assert up[10:] != other[10:]


def test_the_seed_of_the_search_and_nothing_else_makes_other_choices(tmp_path: Path, runs: Runs) -> None:
    first = tried(search(spec(trials=3), tmp_path / "a"))
    assert tried(search(spec(trials=3), tmp_path / "b")) == first
    assert tried(search(spec(trials=3, search_seed=1), tmp_path / "c")) != first


@pytest.mark.parametrize("stop", [3, 12])
def test_a_search_that_was_stopped_goes_on_with_the_same_trials(
    tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    whole = search(spec(trials=14), tmp_path / "whole")
    count = len(runs.made)

    def stopping(config: fedlab.Config, **more: Any) -> Run:
        if len(runs.made) - count == stop:
            raise KeyboardInterrupt
        return runs(config, **more)

    monkeypatch.setattr(fedlab.studies.plan, "run", stopping)
    with pytest.raises(KeyboardInterrupt) as caught:
        search(spec(trials=14), tmp_path / "stopped")
    assert "give the same command again" in "".join(caught.value.__notes__)
    monkeypatch.setattr(fedlab.studies.plan, "run", runs)
    done = search(spec(trials=14), tmp_path / "stopped")
    assert tried(done) == tried(whole)
    assert len(runs.made) == 2 * count, "no run is made twice"
    assert [trial.values for trial in done.trials] == [trial.values for trial in whole.trials]
    assert done.table() == whole.table()


def test_how_many_trials_are_chosen_at_a_time_is_a_property_of_the_search(
    tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "Workers", Turns)
    monkeypatch.setattr(Turns, "counts", [])
    together = tried(search(spec(trials=18), tmp_path / "together", jobs=4))
    alone = tried(search(spec(trials=18), tmp_path / "alone"))
    assert together[:11] == alone[:11]
    assert together[11:14] != alone[11:14], "they were chosen before trial 10 was over"
    search(spec(trials=10), tmp_path / "begun", jobs=4)
    assert tried(search(spec(trials=18), tmp_path / "begun", jobs=None)) == together
    assert set(Turns.counts) == {4}


def test_more_trials_are_added_to_those_that_are_there(tmp_path: Path, runs: Runs) -> None:
    whole = tried(search(spec(trials=14), tmp_path / "whole"))
    search(spec(trials=11), tmp_path / "grown")
    runs.made.clear()
    assert tried(search(spec(trials=14), tmp_path / "grown")) == whole
    assert len(runs.made) == 3
    assert tried(search(spec(trials=2), tmp_path / "grown")) == whole, "trials are never forgotten"


def test_trials_that_fail_are_counted_and_not_repeated(tmp_path: Path, runs: Runs) -> None:
    runs.fails = 1.0
    told: list[str] = []
    found = search(spec(), tmp_path, announce=told.append)
    bad = [trial.number for trial in found.trials if trial.point.changes["training.lr"] > 1]
    assert bad
    assert [trial.number for trial in found.failed] == bad
    assert f"{len(bad)} trial" in found.summary()
    assert f"- trial {bad[0]} failed: the loss is not finite\n" in found.to_markdown()
    assert f"trial {bad[0]} failed: the loss is not finite" in told
    study = optuna.load_study(study_name="fedlab", storage=journal(tmp_path))
    assert [t.number for t in study.trials if t.state == optuna.trial.TrialState.FAIL] == bad
    runs.made.clear()
    runs.fails = math.inf
    again = search(spec(), tmp_path)
    assert not runs.made
    assert [trial.number for trial in again.failed] == bad
    assert tried(again) == tried(found)


def test_a_search_whose_first_trials_all_fail_ends(tmp_path: Path, runs: Runs) -> None:
    runs.fails = 0.0
    with pytest.raises(FedLabError, match="all of the first 10 trials failed; trial 0: the loss is not finite"):
        search(spec(), tmp_path)
    assert len(runs.made) == 10


def test_values_that_do_not_go_together_make_a_failed_trial(tmp_path: Path, runs: Runs) -> None:
    grid = {"training.optimizer": ["sgd", "adam"], "training.momentum": [0.0, 0.9], "federation.strategy": ["fedavg"]}
    apart = {"plain": {}, "controlled": {"federation.strategy": "scaffold"}}
    del grid["federation.strategy"]
    ends = spec(grid={"training.momentum": [0.0, 0.9]}, list=apart, trials=6)
    found = search(ends, tmp_path)
    assert all(not trial.why or "scaffold" in trial.why for trial in found.trials)
    assert {trial.same for trial in found.trials} != {None}, "of four points, six trials repeat some"
    assert len(runs.made) == len({trial.point.name for trial in found.trials if not trial.why})


def test_choices_are_drawn_by_their_names(tmp_path: Path, runs: Runs) -> None:
    grid = {"training.momentum": {"none": 0.0, "much": 0.9}}
    found = search(spec(grid=grid, trials=5), tmp_path)
    assert found.best is not None
    assert found.best.point.name == "much"
    assert {row[1] for row in found.table()[1:]} == {"none", "much"}
    assert len(runs.made) == 2


# what is refused


def refused(tmp_path: Path, **raw: Any) -> str:
    with pytest.raises((InputError, ConfigErrors)) as caught:
        search(spec(**raw), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_a_search_without_validation_samples_says_what_to_set(tmp_path: Path, runs: Runs) -> None:
    data = {key: value for key, value in BASE["data"].items() if key != "validation"}
    told = refused(tmp_path, base={**BASE, "data": data})
    assert told.startswith("data.validation")
    assert "--set data.validation=0.2" in told
    assert not runs.made


def test_what_is_wrong_with_an_end_of_a_range_is_told_before_anything_runs(tmp_path: Path, runs: Runs) -> None:
    assert "training.momentum" in refused(tmp_path, grid={"training.momentum": "float(0, 2)"})
    assert "more or less is better" in refused(tmp_path, objective="speed_of_light")
    assert not runs.made


def test_an_objective_that_the_runs_do_not_have_ends_the_search(tmp_path: Path, runs: Runs) -> None:
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        search(spec(objective="acuracy_error"), tmp_path)
    assert len(runs.made) == 1


def test_another_search_in_the_same_folder_is_refused(tmp_path: Path, runs: Runs) -> None:
    search(spec(trials=2), tmp_path)
    for raw, word in (({"grid": {"training.lr": "log(1e-3, 1)"}}, "grid"), ({"seeds": [3]}, "seeds")):
        with pytest.raises(ConfigError, match=f"other values of: {word}"):
            search(spec(trials=2, **raw), tmp_path)
    with pytest.raises(ConfigError, match="other values of: base"):
        search(spec(trials=2), tmp_path, overrides=["federation.rounds=2"])
    (tmp_path / JOURNAL).write_text("no journal\n")
    with pytest.raises(CheckpointError, match="a journal of Optuna"):
        search(spec(trials=2), tmp_path)


def test_ranges_need_trials_and_trials_need_an_axis() -> None:
    with pytest.raises(ConfigErrors, match=r"needs trials \(--optuna N\)"):
        parse(SweepSpec, {"base": BASE, "grid": LR})
    with pytest.raises(ConfigErrors, match="or a range"):
        parse(SweepSpec, {"base": BASE, "grid": {"training.lr": "linear(1, 2)"}, "trials": 2})
    with pytest.raises(InputError, match="a key to vary"):
        load_spec("supervised", seeds=[0, 1], trials=3)
    found = load_spec("supervised", ["training.lr=log(1e-3, 1)", "training.momentum=0,0.9"], trials=3, objective="loss")
    assert found.grid == {"training.lr": "log(1e-3, 1)", "training.momentum": (0, 0.9)}
    assert (found.trials, found.objective) == (3, "loss")
