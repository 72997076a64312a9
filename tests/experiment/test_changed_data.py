"""A file that is overwritten between two runs is noticed: nothing old and nothing new is put together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedlab
from fedlab.config import Component, parse
from fedlab.data.partition.partition import make_steps, partition
from fedlab.data.samples import Dataset
from fedlab.data.sources.arrays import from_arrays
from fedlab.experiment.configuration import configure
from fedlab.experiment.result import Run
from fedlab.report.record import RunRecord
from fedlab.studies.compare import compare
from fedlab.studies.plan import Registered, finished
from fedlab.studies.spec import SweepSpec
from fedlab.studies.sweep import sweep


def save(file: Path, shift: int) -> None:
    images = (np.arange(24 * 3 * 8 * 8) % 251).astype(np.uint8).reshape(24, 3, 8, 8) + np.uint8(shift)
    labels = np.arange(24) % 3
    np.savez(file, x_train=images, y_train=labels, x_test=images, y_test=labels)


@pytest.fixture
def base(tmp_path: Path) -> dict[str, Any]:
    save(tmp_path / "d.npz", 0)
    return {
        "method": "supervised",
        "model": "logistic",
        "data": {
            "source": {"name": "npz", "path": str(tmp_path / "d.npz")},
            "partition": [{"name": "iid", "clients": 2}],
        },
        "federation": {"rounds": 1},
        "engine": {"name": "inline"},
        "tracking": {"console": "quiet", "tensorboard": False, "folder": str(tmp_path / "runs")},
    }


def spec(base: dict[str, Any], *seeds: int) -> SweepSpec:
    return parse(SweepSpec, {"base": base, "grid": {"training.lr": [0.1]}, "seeds": list(seeds)})


def paths(runs: dict[int, Run]) -> set[Path]:
    return {run.path for run in runs.values()}


def test_a_sweep_makes_the_runs_of_data_that_has_changed_anew_and_keeps_the_old_ones(
    base: dict[str, Any], tmp_path: Path
) -> None:
    old = sweep(spec(base, 0), tmp_path / "swept").batch.results["training.lr=0.1"]
    save(tmp_path / "d.npz", 1)
    told: list[str] = []
    new = sweep(spec(base, 0, 1), tmp_path / "swept", announce=told.append).batch.results["training.lr=0.1"]
    assert [text for text in told if "changed" in text] == [
        f"repeated, because the data has changed since {old[0].path}, which is kept"
    ]
    assert not paths(old) & paths(new)
    assert old[0].path.is_dir()
    assert len({run.data["fingerprint"] for run in new.values()}) == 1
    again: list[str] = []
    assert paths(
        sweep(spec(base, 0, 1), tmp_path / "swept", announce=again.append).batch.results["training.lr=0.1"]
    ) == (paths(new))
    save(tmp_path / "d.npz", 0)
    assert sweep(spec(base, 0), tmp_path / "swept").batch.results["training.lr=0.1"][0].path == old[0].path


def test_runs_of_equal_words_and_other_data_are_not_put_together(base: dict[str, Any], tmp_path: Path) -> None:
    one = fedlab.run(base)
    save(tmp_path / "d.npz", 1)
    two = fedlab.run({**base, "seed": 1})
    found = compare([one.path, two.path])
    assert found.differing == ["data (fingerprint)"]
    assert [len(group.records) for group in found.groups] == [1, 1]
    three = fedlab.run({**base, "seed": 2})
    assert [len(group.records) for group in compare([one.path, two.path, three.path]).groups] == [1, 2]


def test_defaults_that_are_spelled_out_or_not_make_no_two_groups(base: dict[str, Any]) -> None:
    one, two = fedlab.run(base), fedlab.run({**base, "seed": 1})
    text = one.folder.config.read_text()
    assert "  fraction: 1.0\n" in text
    one.folder.config.write_text(text.replace("    fraction: 1.0\n", ""))
    (one.path / ".config.yaml").unlink()  # as in a run of an earlier version, which had no such key
    assert compare([one.path, two.path]).differing == []
    assert finished(configure(base)) is not None


def test_a_run_that_cannot_be_read_is_said_once_and_the_others_count(
    base: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    one, damaged = fedlab.run(base), fedlab.run(base)
    damaged.folder.config.write_text("method: [")
    for _ in range(2):
        found = finished(configure(base))
        assert found is not None
        assert found.path == one.path
    (message,) = caplog.messages
    assert message.startswith(f"a run folder is not looked at, {damaged.path}: ")


def test_what_the_data_was_is_written_before_the_first_round(base: dict[str, Any]) -> None:
    from fedlab.data.sources import load_source

    run = fedlab.run(base, until=1)
    written = json.loads(run.folder.partition.read_text())
    dataset = load_source(run.config.data.source, 0)
    assert written["data"] == {
        "name": dataset.name, "fingerprint": dataset.fingerprint, "train": 24, "test": 24, "server": {}
    }  # fmt: skip
    meta = json.loads((run.checkpoint / "checkpoint.json").read_text())
    assert written["fingerprint"] == meta["data"]
    assert run.folder.partition.stat().st_mtime_ns <= run.folder.events.stat().st_mtime_ns


def test_the_code_that_made_a_run_is_recorded_and_told_where_it_differs(base: dict[str, Any], tmp_path: Path) -> None:
    one, two = fedlab.run(base), fedlab.run({**base, "seed": 1})
    assert compare([one.path, two.path]).other_code() == ""
    facts = json.loads(two.folder.environment.read_text())
    assert set(facts["code"]) == {"fedlab"}
    two.folder.environment.write_text(json.dumps({**facts, "code": {"fedlab": "0"}}))
    found = compare([one.path, two.path])
    assert found.other_code() == "made by different versions of the code: A seed 0; A seed 1"
    assert found.other_code() in found.to_markdown()
    assert RunRecord.open(two.path).code == {"fedlab": "0"}


def test_a_source_that_differs_by_seed_is_not_taken_for_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    def seeded(component: Component, seed: int) -> Dataset:
        images = np.full((4, 1, 4, 4), seed, np.uint8)
        return from_arrays(images, [0, 1, 0, 1], images, [0, 1, 0, 1])

    monkeypatch.setattr("fedlab.studies.plan.load_source", seeded)
    config = configure({"method": "supervised", "data": {"source": "digits"}})
    tried = Registered(1, frozenset(), seeded(config.data.source, 0).fingerprint, 0)
    other = config.with_overrides({"seed": 1})
    assert tried.same(seeded(config.data.source, 1).fingerprint, other)
    assert not tried.same(seeded(config.data.source, 1).fingerprint, config)
    assert not tried.same(seeded(config.data.source, 2).fingerprint, other)


def test_a_partition_is_the_same_whether_its_defaults_are_spelled_out_or_not() -> None:
    images = np.zeros((8, 1, 4, 4), np.uint8)
    dataset = from_arrays(images, np.arange(8) % 2, images, np.arange(8) % 2)

    def of(**more: Any) -> str:
        return partition(dataset, make_steps([Component(name="dirichlet", clients=2, **more)]), 0).fingerprint

    assert of() == of(alpha=0.5)
    assert of() != of(alpha=0.25)
