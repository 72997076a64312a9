"""Trackers of a configuration: made, checked before the run folder, opened with it, and dropped when they fail."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

import fedlab
from fedlab.config import Config, Section, TrackingConfig, parse
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.experiment.checks import resolve
from fedlab.tracking import Event, RunTracker, TrackedRun
from fedlab.tracking.trackers import make_trackers

HERE = __name__
TINY: dict[str, Any] = {
    "method": "supervised",
    "model": {"name": "logistic"},
    "data": {
        "source": {"name": "shifted_digits", "train_per_class": 1, "test_size": 12},
        "partition": [{"name": "iid", "clients": 2}],
    },
    "federation": {"rounds": 2},
    "engine": {"name": "inline"},
}


class Listening(RunTracker):
    """Keeps what it hears."""

    class Settings(Section):
        token: str = "none"
        fails: str = ""

    heard: list[str] = []  # noqa: RUF012  # a run makes the object, and the test reads it here

    def check(self) -> tuple[str, ...]:
        if self.settings.token == "wrong":
            raise ConfigError(f"{self.key}.token", "***", "the right token")
        return ("the tracker is experimental",)

    def open(self, run: TrackedRun) -> None:
        if self.settings.fails == "open":
            raise OSError("no line")
        assert run.folder.config.is_file()
        self.heard.append(f"opened {run.config.method.name} {run.resumed} {self.settings.token}")

    def write(self, event: Event) -> None:
        if self.settings.fails == "write" and event["event"] == "round":
            raise OSError("cut off")
        self.heard.append(event["event"])

    def close(self) -> None:
        self.heard.append("closed")


@pytest.fixture(autouse=True)
def _nothing_heard_yet() -> None:
    Listening.heard.clear()


def config(tmp_path: Path, *trackers: Any, **tracking: Any) -> Config:
    settings = {"folder": str(tmp_path / "runs"), "console": "quiet", "tensorboard": False, "report": False, **tracking}
    return parse(Config, {**TINY, "tracking": {**settings, "trackers": list(trackers)}})


def names(**tracking: Any) -> list[tuple[str, str]]:
    return [(one.key, type(one).__name__) for one in make_trackers(parse(TrackingConfig, tracking))]


def test_the_short_keys_stand_for_trackers_unless_one_is_named() -> None:
    assert names() == [("tracking.tensorboard", "TensorBoard")]
    assert names(tensorboard=False) == []
    assert names(mlflow="sqlite:///x", trackers=["csv"]) == [
        ("tracking.tensorboard", "TensorBoard"),
        ("tracking.mlflow", "MLflow"),
        ("tracking.trackers.0", "WideCsv"),
    ]
    named = [{"name": "mlflow", "uri": "sqlite:///y"}, {"name": "tensorboard", "most_clients": 3}]
    made = make_trackers(parse(TrackingConfig, {"mlflow": "sqlite:///x", "trackers": named}))
    assert [(one.key, one.settings.model_dump()) for one in made] == [
        ("tracking.trackers.0", {"most_clients": 40, "uri": "sqlite:///y"}),
        ("tracking.trackers.1", {"most_clients": 3}),
    ]


@pytest.mark.parametrize(
    ("tracker", "told"),
    [
        ("tensorbord", "did you mean 'tensorboard'"),
        ({"name": "wandb", "proyect": "x"}, "did you mean 'project'"),
        ({"name": "mlflow"}, "tracking.trackers.0.uri: this key is required"),
        ({"name": "wandb", "mode": "sometimes"}, "tracking.trackers.0.mode = 'sometimes'"),
        ({"name": f"{HERE}:HERE"}, "a tracker class with a nested class Settings"),
        ({"name": "fedlab.probes.knn:NearestNeighbors"}, "a subclass of fedlab.tracking.RunTracker"),
        ({"name": f"{HERE}:Listening", "token": "wrong"}, "tracking.trackers.0.token"),
    ],
)
def test_what_is_wrong_is_told_before_the_run_folder_is_made(tmp_path: Path, tracker: Any, told: str) -> None:
    with pytest.raises(ConfigErrors, match=told):
        fedlab.run(config(tmp_path, tracker))
    assert not (tmp_path / "runs").exists()


def test_a_tracker_twice_is_refused() -> None:
    with pytest.raises(ConfigErrors, match=r"tracking\.trackers\.1 = 'csv'\n  expected: each tracker once"):
        names(trackers=["csv", "csv"])


def test_a_missing_package_is_refused_before_the_run_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "wandb" else found(name, *more)
    )
    with pytest.raises(ConfigErrors, match=r"pip install 'fedlab-sim\[wandb\]'"):
        fedlab.run(config(tmp_path, {"name": "wandb", "mode": "offline"}))
    assert not (tmp_path / "runs").exists()


def test_a_tracker_of_ones_own_hears_the_run(tmp_path: Path) -> None:
    made = config(tmp_path, {"name": f"{HERE}:Listening", "token": "geheim"}, "csv")
    assert "the tracker is experimental" in resolve(made).warnings
    run = fedlab.run(made, until=1)
    assert Listening.heard[0] == "opened supervised None geheim"
    assert Listening.heard[1] == "run_start"
    assert Listening.heard[-2:] == ["run_end", "closed"]
    assert Listening.heard.count("round") == 1
    assert (run.path / "rounds.csv").is_file()
    # its secret is in no file, and so the run that goes on goes on without it and says so
    assert not [path for path in run.path.rglob("*") if path.is_file() and b"geheim" in path.read_bytes()]
    Listening.heard.clear()
    resumed = fedlab.resume(run.path)
    assert Listening.heard == []
    (told,) = [text for text in resumed.history.warnings if "Listening" in text]
    assert "nothing is sent to Listening: the secrets in tracking.trackers.0.token = *** were not recorded" in told
    assert "give them again by --set tracking.trackers.0.token=" in told
    lines = (run.path / "rounds.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["round", "0", "1", "2"]


def test_it_gets_its_secret_again(tmp_path: Path) -> None:
    run = fedlab.run(config(tmp_path, {"name": f"{HERE}:Listening", "token": "geheim"}), until=1)
    Listening.heard.clear()
    fedlab.resume(run.path, overrides=["tracking.trackers.0.token=other"])
    assert Listening.heard[0] == "opened supervised 1 other"


@pytest.mark.parametrize("when", ["open", "write"])
def test_one_that_fails_costs_no_result(tmp_path: Path, when: str, caplog: pytest.LogCaptureFixture) -> None:
    run = fedlab.run(config(tmp_path, {"name": f"{HERE}:Listening", "fails": when}))
    assert run.history.end["status"] == "completed"
    if when == "open":
        assert "nothing is sent to Listening: no line" in run.history.warnings
    else:
        assert "Listening failed and is left out from now on: cut off" in caplog.text
        assert Listening.heard[-1] == "closed"
