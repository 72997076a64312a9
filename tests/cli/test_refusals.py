"""Bad input ends before a run folder is made and before an engine starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedlab.experiment.start

Cli = Callable[..., Any]


@pytest.fixture
def refused(cli: Cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs with the given overrides, which must be refused; returns the message."""

    def launch(*arguments: object, **more: object) -> None:
        raise AssertionError("an engine was started")

    monkeypatch.setattr(fedlab.experiment.start, "launch", launch)

    def run(*overrides: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        words = [word for override in ("engine.name=ray", *overrides) for word in ("--set", override)]
        done = cli("run", tiny, *words)
        assert done.exit_code == 2, (done.output, done.exception)
        assert sorted(tmp_path.rglob("*")) == before
        return " ".join(done.stderr.split())

    return run


def arrays() -> dict[str, np.ndarray]:
    x, y = np.zeros((20, 8, 8), np.float32), np.arange(20) % 2
    return {"x_train": x, "y_train": y, "x_test": x[:4], "y_test": y[:4]}


def test_unknown_keys(refused: Callable[..., str]) -> None:
    message = refused("federation.round=3", "enginee.name=ray")
    assert "federation.round = 3" in message
    assert "did you mean 'rounds'?" in message
    assert "did you mean 'engine'?" in message


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ("{name: iid, clients: 101}", "at most 100"),
        ("{name: dirichlet, clients: 60, min_samples: 2}", "at most 50"),
        ("{name: pathological, clients: 5, classes: 11}", "at most 10"),
        ("{name: shard, clients: 51, shards: 2}", "at most 50"),
        ("{name: size, clients: 60, rule: exponential}", "at most "),
        ("{name: natural}", "'group' column"),
        ("{name: corruption, corruptions: [fogg]}", "did you mean 'fog'"),
    ],
)
def test_an_impossible_partition_names_the_largest_feasible_value(
    refused: Callable[..., str], step: str, told: str
) -> None:
    message = refused(f"data.partition=[{step}]")
    assert message.startswith("error: data.partition.0")
    assert told in message


def test_more_clients_than_samples_after_a_step_that_divides_already(refused: Callable[..., str]) -> None:
    assert "data.partition.1.clients = 21" in refused("data.partition=[{name: domain}, {name: iid, clients: 21}]")


def test_missing_data(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "data.source.path" in refused(f"data.source={{name: npz, path: {tmp_path / 'none.npz'}}}")
    assert "data.source.path" in refused(f"data.source={{name: folder, path: {tmp_path / 'none'}}}")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x93NUMPY\x01\x00 no array"])
def test_a_corrupt_npz(refused: Callable[..., str], tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    assert str(path) in refused(f"data.source={{name: npz, path: {path}}}")


def test_an_npz_cut_short(refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, **arrays())
    path.write_bytes(path.read_bytes()[:-200])
    assert "a whole .npz archive" in refused(f"data.source={{name: npz, path: {path}}}")


def test_nan_in_the_data(refused: Callable[..., str], tmp_path: Path) -> None:
    held = arrays()
    held["x_train"][3, 2, 1] = np.nan
    np.savez(tmp_path / "data.npz", **held)
    message = refused(
        f"data.source={{name: npz, path: {tmp_path / 'data.npz'}}}", "data.partition=[{name: iid, clients: 2}]"
    )
    assert "NaN" in message
    assert "x_train" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_where_there_is_none(refused: Callable[..., str]) -> None:
    assert "engine.device = 'cuda'" in refused("engine.device=cuda")
    assert "engine.gpus_per_worker = 0.5" in refused("engine.gpus_per_worker=0.5")


def test_a_model_that_cannot_take_the_pictures(refused: Callable[..., str]) -> None:
    assert "model.depth" in refused("model={name: convnet, depth: 9}")


def test_statistics_that_do_not_fit_the_data(refused: Callable[..., str]) -> None:
    assert "data.mean" in refused("data.mean=[0.5, 0.5]")


def test_a_folder_that_cannot_be_written(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert "tracking.folder" in refused(f"tracking.folder={tmp_path / 'file' / 'runs'}")
