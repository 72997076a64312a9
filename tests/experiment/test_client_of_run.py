"""A client's own networks, state and metrics, from the folder of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedlab
from fedlab.errors import CheckpointError, ConfigError, DataError
from fedlab.method import Group
from fedlab.methods.supervised.method import Supervised

PIXELS = np.random.default_rng(0).integers(0, 256, (80, 1, 8, 8)).astype(np.uint8)
LABELS = (np.arange(80) * 7 // 3) % 4


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Any]:
    return {
        "method": "supervised",
        "model": {"name": "convnet", "width": 4, "depth": 2},
        "data": {"partition": [{"name": "dirichlet", "clients": 3, "alpha": 0.5}], "mean": [0.3], "std": [0.6]},
        "training": {"lr": 0.1, "batch_size": 8},
        "federation": {"rounds": 3},
        "engine": {"name": "inline"},
        "tracking": {"console": "quiet", "tensorboard": False, "report": False, "folder": str(tmp_path / "runs")},
    }


def data() -> fedlab.Dataset:
    return fedlab.from_arrays(PIXELS[:50], LABELS[:50], PIXELS[50:], LABELS[50:])


def samples_of(run: fedlab.Run, client: int) -> tuple[np.ndarray, np.ndarray]:
    """A client's test samples, as the run divides them."""
    from fedlab.data.federated import FederatedData

    own = data()
    part = FederatedData(own, run.config.data, run.config.seed).partition[client]
    return own.test["image"][part.test], own.test["label"][part.test]


def right(predicted: torch.Tensor, labels: np.ndarray) -> float:
    return float((predicted.argmax(1).numpy() == labels).mean())


class LocalHead(Supervised):
    """Averages the body and keeps the head on each client."""

    def exchange(self, plan: Any) -> tuple[Group, ...]:
        return Group("head", ("model.head",), mode="local"), Group("body", ("model",))


@pytest.mark.parametrize("by", ["exchange.local", "method"])
def test_a_clients_own_networks_give_the_accuracy_that_was_recorded_for_it(raw: dict[str, Any], by: str) -> None:
    if by == "method":
        run = fedlab.run(raw, data=data(), method=LocalHead)
    else:
        run = fedlab.run(raw, data=data(), overrides={"exchange.local": ["model.head.*"]})
    loaded = fedlab.load(run.path)
    clients = [loaded.client(number) for number in range(3)]
    for client in clients:
        images, labels = samples_of(run, client.id)
        assert right(client.predict(images), labels) == pytest.approx(client.metrics["accuracy"])
        assert client.name in run.metrics["clients"]
        body = {name: value for name, value in client.model.state_dict().items() if "head" not in name}
        assert all(torch.equal(run.model.state_dict()[name], value) for name, value in body.items())
    heads = [client.model["model"].head.weight for client in clients]
    assert not torch.equal(heads[0], heads[1])
    assert torch.equal(clients[0].state["network/model.head.weight"], heads[0])
    assert loaded.client(clients[1].name).id == 1
    assert not torch.equal(heads[0], loaded.model["model"].head.weight), "the run's own networks are not changed"


def test_without_local_state_all_clients_have_the_networks_of_the_run(raw: dict[str, Any]) -> None:
    run = fedlab.run(raw, data=data())
    client = run.client(2)
    assert not client.state
    images, labels = samples_of(run, 2)
    assert torch.equal(client.predict(images), run.predict(images))
    assert right(run.predict(images), labels) == pytest.approx(run.metrics["clients"][client.name]["accuracy"])


def test_a_client_that_has_not_trained_has_what_it_would_begin_with(raw: dict[str, Any]) -> None:
    run = fedlab.run(raw, data=data(), overrides={"exchange.local": ["model.head.*"], "data.unseen": ["2"]})
    built = run._initial()["model"]
    assert torch.equal(run.client(2).model["model"].head.weight, built.head.weight)
    assert not torch.equal(run.client(0).model["model"].head.weight, built.head.weight)


def test_the_state_is_that_of_the_last_checkpoint(raw: dict[str, Any]) -> None:
    raw["tracking"]["checkpoint_every"] = 1
    run = fedlab.run(raw, data=data(), overrides={"exchange.local": ["model.head.*"]})
    last = run.client(0).model["model"].head.weight
    (run.checkpoint / "checkpoint.json").unlink()
    earlier = fedlab.load(run.path).client(0).model["model"].head.weight
    assert not torch.equal(earlier, last)
    short = fedlab.run(
        {**raw, "federation": {"rounds": 3}}, data=data(), overrides={"exchange.local": ["model.head.*"]}, until=2
    )
    assert torch.equal(short.client(0).model["model"].head.weight, earlier)


@pytest.mark.parametrize("client", [3, -1, "4", "zero"])
def test_a_client_that_is_not_there_is_refused(raw: dict[str, Any], client: Any) -> None:
    run = fedlab.run({**raw, "federation": {"rounds": 1}}, data=data())
    with pytest.raises(DataError) as told:
        run.client(client)
    assert told.value.key == "client"


def test_a_run_without_a_checkpoint_has_no_clients_networks(raw: dict[str, Any]) -> None:
    run = fedlab.run({**raw, "federation": {"rounds": 1}}, data=data())
    (run.checkpoint / "checkpoint.json").unlink()
    with pytest.raises(CheckpointError, match="before its first one"):
        fedlab.load(run.path).client(0)


def test_a_given_network_is_needed_with_its_weights_where_a_client_begins_with_them(raw: dict[str, Any]) -> None:
    def net(seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))

    changes = {"exchange.local": ["model.1.*"], "data.unseen": ["2"]}
    run = fedlab.run(raw, data=data(), model=net(0), overrides=changes)
    assert torch.equal(run.client(2).model["model"][1].weight, net(0)[1].weight)
    other = fedlab.load(run.path, model=net(1))
    assert torch.equal(other.client(0).model["model"][1].weight, run.client(0).model["model"][1].weight)
    with pytest.raises(ConfigError, match="the network of this configuration"):
        other.client(2)
