"""Probes in runs: before round 1 and at every evaluation, alike on every engine and after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import fedlab
from fedlab.assembly import build_networks, make_method, make_task
from fedlab.data.federated import FederatedData
from fedlab.data.sources import load_source
from fedlab.errors import ConfigErrors
from fedlab.experiment.result import Run
from fedlab.experiment.start import configure
from fedlab.probes.base import Probed
from fedlab.probes.ridge import Ridge

PROBES: list[Any] = [
    "knn",
    {"name": "linear", "strength": [0.01, 1.0]},
    {"name": "few_shot", "ways": 3, "shots": 2, "queries": 2, "episodes": 5},
    "ridge",
]
CONFIG: dict[str, Any] = {
    "method": "supervised",
    "model": {"name": "convnet", "width": 8, "depth": 2},
    "data": {
        "source": {"name": "digits", "domains": ["handwritten"], "train_per_domain": 120, "test_per_domain": 60},
        "partition": [{"name": "iid", "clients": 3}],
        "unseen": ["2"],
        "held": {"probe": {"share": 0.5}, "test": {"split": "test", "share": 0.5}},
    },
    "training": {"lr": 0.05, "batch_size": 16},
    "federation": {"rounds": 2},
    "engine": {"name": "inline"},
    "tracking": {"console": "quiet", "tensorboard": False, "checkpoint_every": 1},
}


def run(folder: Path, *overrides: str, until: int | None = None, **changes: Any) -> Run:
    config = {**CONFIG, "probes": PROBES, **changes}
    return fedlab.run(config, overrides=[f"tracking.folder={folder}", *overrides], until=until)


def measured(found: Run) -> list[dict[str, Any]]:
    events = [found.history.probed, *found.history.evaluations]
    return [{k: v for k, v in event.items() if k not in ("time", "event")} for event in events]


def tensors(found: Run) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(found.checkpoint / "tensors.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("runs"))


def test_every_evaluation_and_the_start_are_probed(finished: Run) -> None:
    on_server = {"probe_knn", "probe_linear", "probe_linear_strength", "probe_few_shot", "probe_few_shot_std"}
    for event in measured(finished):
        assert on_server == set(event["server"])
        assert event["server_samples"] == {"probe": 60, "test": 30}
        assert "probe_ridge" in event["pooled"]
        assert set(event["clients"]) == {"0", "1", "2"}
        assert event["unseen"]["probe_ridge"] == event["clients"]["2"]["probe_ridge"]
    assert [event["round"] for event in measured(finished)] == [0, 1, 2]
    table = (finished.path / "metrics.csv").read_text().splitlines()
    assert sum(line.startswith("0,server,probe_knn,") for line in table) == 1


def test_the_summary_of_the_run_says_what_is_held_back(finished: Run) -> None:
    told = json.loads((finished.path / "partition.json").read_text())
    assert told["data"]["server"] == {"probe": 60, "test": 30}
    assert told["held"] == [
        "held out for the server: probe, 60 train samples, which the clients do not have",
        "held out for the server: test, 30 test samples, which the clients do not have",
    ]


def test_training_is_the_same_without_probes(finished: Run, tmp_path: Path) -> None:
    plain = run(tmp_path, probes=[])
    ours, theirs = tensors(finished), tensors(plain)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert ours.keys() == theirs.keys()
    assert plain.history.probed == {}
    ledgers = [(one.path / "ledger.csv").read_text() for one in (finished, plain)]
    assert ledgers[0] == ledgers[1]


def test_a_resumed_run_measures_the_same(finished: Run, tmp_path: Path) -> None:
    begun = run(tmp_path, until=1)
    assert measured(fedlab.resume(begun.path)) == measured(finished)


@pytest.mark.usefixtures("ray_workers")
def test_ray_measures_the_same(finished: Run, tmp_path: Path) -> None:
    assert measured(run(tmp_path, "engine.name=ray", "engine.workers=2")) == measured(finished)


def test_ridge_is_that_of_all_samples_in_one_place(finished: Run) -> None:
    config = configure({**CONFIG, "probes": PROBES})
    data = FederatedData(load_source(config.data.source, 0), config.data, 0)
    task = make_task(config, data.columns, data.class_names, data.num_clients)
    method = make_method(config.method)
    for networks, event in (
        (build_networks(method, task, 0, torch.device("cpu")).eval(), finished.history.probed),
        (finished.model, finished.history.evaluations[-1]),
    ):

        def pooled(split: str, networks: Any = networks) -> Probed:
            parts = [getattr(data.client(client), split) for client in (0, 1)]
            images = torch.from_numpy(np.concatenate([part["image"] for part in parts]))
            with torch.no_grad():
                vectors = networks["model"].features(images).numpy()
            return Probed(split, vectors, np.concatenate([part["label"] for part in parts]))

        values = Ridge().run(pooled("train"), pooled("test"), np.random.default_rng(0))
        assert values["score"] == pytest.approx(event["pooled"]["probe_ridge"], abs=1e-6)


def test_probes_on_clients_need_no_samples_on_the_server(tmp_path: Path) -> None:
    data = {**CONFIG["data"], "held": {}, "validation": 0.3}
    found = run(tmp_path, data=data, probes=["ridge", {"name": "ridge", "fit": "validation"}])
    assert {"probe_ridge_train", "probe_ridge_validation"} <= set(found.metrics["pooled"])
    assert found.metrics["server"] == {}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"probes": [{"name": "knn", "fit": "gallery"}]}, "a set that the server holds: probe, test"),
        ({"probes": [{"name": "knn", "label": "species"}]}, "a column of the set"),
        ({"probes": ["ridge"], "privacy": {"name": "central"}}, "their sums leave the clients without noise"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors, match=expected):
        run(tmp_path, **changes)
    assert not list(tmp_path.iterdir())
