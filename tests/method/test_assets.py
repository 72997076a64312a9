"""Assets: built once and lazily, from their own seed, fixed, and within the reach of those alone who hold them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import nn

from fedlab.errors import FedLabError
from fedlab.method import Asset
from fedlab.method.assets import Assets, Holding, Shelf
from fedlab.storage.hashing import state_hash


def expert() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))


def counted(calls: list[str]) -> dict[str, Asset]:
    def build(name: str) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            calls.append(name)
            return expert()

        return make

    return {"uni": build("uni"), "conch": build("conch"), "large": None}


def test_a_network_is_built_when_it_is_first_asked_for_and_once_in_a_process() -> None:
    calls: list[str] = []
    shelf = Shelf()
    assets = Assets(counted(calls), seed=3, shelf=shelf)
    assert assets.names == ("uni", "conch", "large")
    assert calls == []
    network = assets.network("conch")
    assert calls == ["conch"]
    assert Assets(counted(calls), seed=3, shelf=shelf).network("conch") is network
    assert assets.hashes(["conch", "large"]) == {"conch": state_hash(network)}
    assert calls == ["conch"]
    assert pickle.loads(pickle.dumps(shelf)) == {}, "a worker builds its own"


def test_weights_depend_on_the_seed_and_the_name_and_on_nothing_that_was_drawn_before() -> None:
    first, second = Assets(counted([]), seed=3), Assets(counted([]), seed=3)
    first.network("uni")
    torch.rand(5)
    assert first.hashes(["conch"]) == second.hashes(["conch"])
    assert first.hashes(["uni"])["uni"] != first.hashes(["conch"])["conch"]
    assert Assets(counted([]), seed=4).hashes(["uni"]) != first.hashes(["uni"])
    state = torch.get_rng_state()
    Assets(counted([]), seed=5).network("uni")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_is_in_evaluation_mode_and_has_no_gradients() -> None:
    assets = Assets(counted([]))
    network = assets.network("uni")
    assert not any(module.training for module in network.modules())
    assert not any(p.requires_grad for p in network.parameters())
    network.train()
    assert not any(module.training for module in assets.network("uni").modules())


@pytest.mark.parametrize("mode", [torch.no_grad, lambda: torch.autocast("cpu", dtype=torch.bfloat16)])
def test_a_builder_can_train_in_whatever_mode_the_network_is_first_asked_for(
    mode: Callable[[], AbstractContextManager[Any]],
) -> None:
    """A loss asks for an expert without gradients, and the expert may have to be trained then."""

    def trained() -> nn.Module:
        network, x = nn.Linear(2, 1), torch.tensor([[0.1, 0.7]])
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        network(x).sum().square().backward()
        optimizer.step()
        return network

    expected = Assets({"expert": trained}).hashes(["expert"])
    with mode():
        assert Assets({"expert": trained}).hashes(["expert"]) == expected


def test_a_change_of_weights_or_buffers_is_found() -> None:
    assets = Assets(counted([]))
    batch_norm = assets.network("uni")[2]  # type: ignore[index]  # a sequence of layers
    assets.check_unchanged()
    batch_norm.train()(torch.randn(4, 3))
    with pytest.raises(FedLabError, match="local work changes the asset 'uni'"):
        assets.check_unchanged()


def test_what_is_not_held_cannot_be_reached() -> None:
    calls: list[str] = []
    holding = Holding("client 'lyon'", ("uni", "large"), Assets(counted(calls)))
    holding.network("uni")
    with pytest.raises(FedLabError, match=r"client 'lyon' does not hold the asset 'conch' \(it holds uni, large\)"):
        holding.network("conch")
    with pytest.raises(FedLabError, match="'large' is no network"):
        holding.network("large")
    assert holding.hashes().keys() == {"uni"}
    assert calls == ["uni"]
    with pytest.raises(FedLabError, match=r"this participant does not hold the asset 'uni' \(it holds nothing\)"):
        Holding().network("uni")
