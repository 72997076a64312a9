"""Where weights start from: files and earlier runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import fedlab
from fedlab.config import Config, parse
from fedlab.errors import ConfigError


def config(tmp_path: Path, **changes: Any) -> Config:
    raw = {
        "method": "supervised",
        "model": "logistic",
        "data": {
            "source": {"name": "digits", "domains": ["mnist"], "train_per_domain": 60, "test_per_domain": 30},
            "partition": [{"name": "iid", "clients": 5}],
        },
        "federation": {"rounds": 1},
        "engine": {"name": "inline", "device": "cpu"},
        "tracking": {"folder": str(tmp_path / "runs"), "cache": str(tmp_path), "console": "quiet"},
        **changes,
    }
    return parse(Config, raw)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> fedlab.Run:
    return fedlab.run(config(tmp_path_factory.mktemp("earlier")))


def start(run: fedlab.Run) -> dict[str, torch.Tensor]:
    return dict(run.model["model"].state_dict())


@pytest.mark.parametrize("place", ["folder", "folder with role", "file"])
def test_a_run_starts_from_an_earlier_runs_weights(tmp_path: Path, earlier: fedlab.Run, place: str) -> None:
    source = {"folder": str(earlier.path), "folder with role": f"{earlier.path}#model", "file": str(tmp_path / "w.st")}
    safetensors.torch.save_file(start(earlier), tmp_path / "w.st")
    still = {"training": {"lr": 1e-30}, "init": {"model": source[place]}, "seed": 7}
    run = fedlab.run(config(tmp_path, **still))
    torch.testing.assert_close(start(run), start(earlier))


@pytest.mark.parametrize(
    ("init", "told"),
    [
        ({"modl": "x"}, "did you mean 'model'?"),
        ({"model": "nowhere.safetensors"}, "a .safetensors file or a run folder"),
        ({"model": "{run}#teacher"}, "a network of that run: model"),
        ({"model": "{empty}"}, "a complete checkpoint"),
        ({"model": "{other}"}, "the state of this network"),
    ],
)
def test_weights_that_are_not_there_or_do_not_fit_are_refused(
    tmp_path: Path, earlier: fedlab.Run, init: dict[str, str], told: str
) -> None:
    (tmp_path / "empty").mkdir()
    safetensors.torch.save_file({"weight": torch.zeros(3)}, tmp_path / "other")
    places = {"run": earlier.path, "empty": tmp_path / "empty", "other": tmp_path / "other"}
    with pytest.raises(ConfigError) as caught:
        fedlab.run(config(tmp_path, init={role: source.format(**places) for role, source in init.items()}))
    assert told in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_only_the_chosen_clients_train(tmp_path: Path) -> None:
    chosen = {"rounds": 2, "sampler": {"name": "fixed", "clients": [3]}}
    run = fedlab.run(config(tmp_path, federation=chosen))
    assert [event["clients"] for event in run.history.rounds] == [[3], [3]]
    assert len(run.metrics["clients"]) == 5


def test_a_chosen_client_that_is_not_there_or_held_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"federation\.sampler\.clients = 5"):
        fedlab.run(config(tmp_path, federation={"sampler": {"name": "fixed", "clients": [0, 5]}}))
    data = {**config(tmp_path).data.model_dump(mode="json"), "unseen": ["1"]}
    with pytest.raises(ConfigError, match="held out"):
        fedlab.run(config(tmp_path, data=data, federation={"sampler": {"name": "fixed", "clients": [1]}}))
