"""What a run was given in Python is recorded as what it was, and asked for again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from flwr.serverapp.strategy import FedAdam, FedAvg

import fedlab
from fedlab.config import Component
from fedlab.data.sources import SOURCES, build_source
from fedlab.errors import CheckpointError, ConfigError, ConfigErrors, DataError
from fedlab.experiment.configuration import configure
from fedlab.experiment.given import record_strategy
from fedlab.methods.supervised.method import Supervised
from fedlab.report.page import render
from fedlab.report.record import RunRecord
from fedlab.report.sections import facts, repeat
from fedlab.server.strategies import make_strategy
from fedlab.storage.hashing import hash_tensors
from fedlab.studies.compare import compare


class Mine(Supervised):
    """A method that can be imported from where these tests lie."""


class Doubled(FedAvg):
    """Keeps something else than it was given under the name of the argument."""

    def __init__(self, share: float = 0.5, **options: Any) -> None:
        super().__init__(**options)
        self.share = 2 * share


class Called(FedAvg):
    """Takes what no file can hold."""

    def __init__(self, choose: Any = None, least: int = 2, **options: Any) -> None:
        super().__init__(**options)
        self.choose, self.least = choose, least


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Any]:
    return {
        "method": "supervised",
        "model": "logistic",
        "data": {"source": "digits", "partition": [{"name": "iid", "clients": 2}]},
        "federation": {"rounds": 2},
        "engine": {"name": "inline"},
        "tracking": {"console": "quiet", "tensorboard": False, "folder": str(tmp_path / "runs")},
    }


def arrays(shift: int = 0) -> fedlab.Dataset:
    images = (np.arange(24 * 3 * 8 * 8) % 251).astype(np.uint8).reshape(24, 3, 8, 8)
    labels = np.arange(24) % 3
    return fedlab.from_arrays(images + np.uint8(shift), labels, images, labels)


def weights(run: fedlab.Run) -> str:
    return hash_tensors(run.model.state_dict())


# data


def test_a_run_given_samples_records_them_and_no_built_in_data(raw: dict[str, Any]) -> None:
    data = arrays()
    run = fedlab.run(raw, data=data)
    source = fedlab.load(run.path).config.data.source
    assert source == Component(
        name="given", dataset=data.name, fingerprint=data.fingerprint, train=24, test=24, server={}
    )
    record = RunRecord.open(run.path)
    assert record.data["fingerprint"] == data.fingerprint
    told = dict(facts(record))["Data"]
    assert told.startswith(f"{data.name}, given in Python (")
    assert data.fingerprint in told
    page = render(record)
    assert f"on {data.name}, seed 0" in page
    assert "on digits" not in page
    assert "fedlab run config.yaml" not in page, "that would not have these samples"


def test_its_report_says_how_to_repeat_it_and_that_gives_equal_weights(
    raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fedlab.run(raw, data=arrays())
    told = repeat(RunRecord.open(run.path))
    assert told["from_folder"] == 'fedlab.run("config.yaml", data=…)'
    assert "24 training and 24 test samples" in told["given"][0]
    monkeypatch.chdir(run.path)
    again = eval(told["from_folder"].replace("…", "arrays()"))
    assert weights(again) == weights(run)


@pytest.mark.parametrize("call", ["run", "resume", "partition"])
def test_without_the_samples_it_is_refused_with_their_name_and_what_to_do(raw: dict[str, Any], call: str) -> None:
    run = fedlab.run(raw, data=arrays(), until=1)
    before = run.folder.events.read_bytes()
    calls: dict[str, Callable[[], Any]] = {
        "run": lambda: fedlab.run(run.folder.config),
        "resume": lambda: fedlab.resume(run.path),
        "partition": lambda: build_source(run.config.data.source).load(0),
    }
    with pytest.raises(DataError) as caught:
        calls[call]()
    for words in (arrays().fingerprint, "given in Python", "fedlab.resume(run, data=…)"):
        assert words in str(caught.value)
    assert run.folder.events.read_bytes() == before
    assert len(list(run.path.parent.iterdir())) == 1


def test_other_samples_are_refused_by_their_fingerprint_and_the_same_ones_go_on(raw: dict[str, Any]) -> None:
    run = fedlab.run(raw, data=arrays(), until=1)
    for call in (lambda: fedlab.resume(run.path, data=arrays(1)), lambda: fedlab.run(run.config, data=arrays(1))):
        with pytest.raises(DataError) as caught:
            call()
        assert arrays().fingerprint in str(caught.value)
        assert arrays(1).fingerprint in str(caught.value)
    resumed = fedlab.resume(run.path, data=arrays())
    assert weights(resumed) == weights(fedlab.run(raw, data=arrays()))
    other = fedlab.run(run.config, data=arrays(1), overrides=["data.source=given"])
    found = compare([resumed.path, other.path])
    assert {"data.source.fingerprint", "data (fingerprint)"} <= set(found.differing)
    assert len(found.groups) == 2


def test_a_configuration_may_say_that_its_samples_are_given(raw: dict[str, Any]) -> None:
    raw["data"]["source"] = "given"
    assert fedlab.run(raw, data=arrays()).config.data.source.settings["fingerprint"] == arrays().fingerprint
    assert "given" not in SOURCES.names(), "there is nothing to choose"
    missing = build_source(Component(name="given")).missing()
    assert missing is not None
    assert "given in Python" in missing


def test_the_data_of_a_run_without_a_checkpoint_is_looked_at_too(raw: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "d.npz"
    raw["data"]["source"] = {"name": "npz", "path": str(file)}
    save(file, arrays())
    run = fedlab.run(raw, until=1)
    (run.checkpoint / "checkpoint.json").unlink()
    save(file, arrays(1))
    with pytest.raises(CheckpointError, match="have changed"):
        fedlab.resume(run.path)


def save(file: Path, data: fedlab.Dataset) -> None:
    parts = {"train": data.train, "test": data.test}
    np.savez(file, **{f"{c}_{s}": v[n] for s, v in parts.items() for c, n in (("x", "image"), ("y", "label"))})


# method


def test_a_method_that_cannot_be_imported_again_is_asked_for(raw: dict[str, Any]) -> None:
    class Local(Supervised):
        """Has cannot be imported by name."""

    run = fedlab.run(raw, data=arrays(), method=Local, until=1)
    told = repeat(RunRecord.open(run.path))
    assert told["from_folder"] == 'fedlab.run("config.yaml", data=…, method=…)'
    assert "cannot be imported by name" in told["given"][1]
    with pytest.raises(ConfigErrors, match="defined in a program itself or inside a function") as caught:
        fedlab.resume(run.path, data=arrays())
    assert "method=…" in caught.value.errors[0].fix
    assert weights(fedlab.resume(run.path, data=arrays(), method=Local)) == weights(
        fedlab.run(raw, data=arrays(), method=Local)
    )
    with pytest.raises(ConfigError, match="the class that the run began with"):
        fedlab.resume(run.path, data=arrays(), method=Mine)


def test_a_class_of_the_program_itself_is_never_looked_up_in_another_program(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigErrors, match="defined in a program itself"):
        fedlab.run({**raw, "method": "__main__:Mine"})


# strategy


def recorded(strategy: Any, settings: dict[str, Any] | None = None) -> Component:
    config = configure({"method": "supervised", "data": {"source": "digits"}})
    return record_strategy(config, strategy, settings, resumed=False).federation.strategy


def test_the_arguments_of_a_strategy_object_are_recorded_where_they_can_be_seen() -> None:
    component = recorded(FedAdam(eta=0.5, min_train_nodes=3))
    assert component.name == "flwr.serverapp.strategy.fedadam:FedAdam"
    assert (component.settings["eta"], component.settings["min_train_nodes"]) == (0.5, 3)
    again: Any = make_strategy(component)
    assert (again.eta, again.min_train_nodes) == (0.5, 3)
    assert recorded(Called(least=5)).settings["least"] == 5


@pytest.mark.parametrize(("strategy", "unknown"), [(Doubled(), "share"), (Called(choose=sorted), "choose")])
def test_a_strategy_whose_arguments_cannot_be_seen_is_asked_for(
    raw: dict[str, Any], strategy: Any, unknown: str
) -> None:
    component = recorded(strategy)
    assert component.name == "given"
    assert component.settings["of"].endswith(type(strategy).__name__)
    assert unknown in component.settings["unknown"]
    with pytest.raises(ConfigError, match="not all of its constructor arguments could be recorded") as caught:
        make_strategy(component)
    assert "strategy=…" in caught.value.fix


def test_a_run_with_such_a_strategy_goes_on_with_it_only(raw: dict[str, Any]) -> None:
    raw["data"]["source"] = {"name": "shifted_digits", "train_per_class": 2, "test_size": 20}
    run = fedlab.run(raw, strategy=Called(choose=sorted), until=1)
    told = repeat(RunRecord.open(run.path))
    assert told["from_folder"] == 'fedlab.run("config.yaml", strategy=…)'
    assert "could not be recorded: choose" in told["given"][0]
    with pytest.raises(ConfigErrors, match="strategy object that this was run with"):
        fedlab.resume(run.path)
    assert len(fedlab.resume(run.path, strategy=Called(choose=sorted)).history.rounds) == 2


def test_what_is_recorded_is_a_yaml_file_that_is_read_back(raw: dict[str, Any]) -> None:
    run = fedlab.run(raw, data=arrays(), method=Mine(), strategy=FedAvg(fraction_evaluate=0.5), until=1)
    found = yaml.safe_load(run.folder.config.read_text())
    assert found["method"]["name"].endswith(":Mine")
    assert found["federation"]["strategy"]["fraction_evaluate"] == 0.5
    assert fedlab.load(run.path).config == run.config
