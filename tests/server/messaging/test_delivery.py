"""Clients that lost what they were sent are served again, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch

import fedlab
from fedlab.clients.runtime import ClientRuntime
from fedlab.clients.work import MissingSharedError
from fedlab.config import Config
from fedlab.method import FitContext, Method, ServerContext
from fedlab.protocol.instructions import Instructions
from fedlab.server.messaging.shared import SharedTensors

Settings = Callable[..., Config]


@pytest.fixture
def anchored(plain: type[Method]) -> type[Method]:
    class Anchored(plain):  # type: ignore[valid-type, misc]  # a class made by a fixture
        """The server shares a tensor that changes every second round, and clients add it to their weights."""

        def server_prepare(self, ctx: ServerContext) -> None:
            ctx.shared["anchor"] = torch.zeros(5)

        def server_update(self, ctx: ServerContext) -> None:
            if ctx.round % 2:
                ctx.shared["anchor"] = ctx.shared["anchor"] + 0.01

        def fit(self, ctx: FitContext) -> None:
            super().fit(ctx)
            with torch.no_grad():
                for p in ctx.networks.parameters():
                    p.add_(ctx.shared["anchor"].sum())

    return Anchored


def test_shared_tensors_travel_only_when_changed(
    settings: Settings, samples: fedlab.Dataset, anchored: type[Method]
) -> None:
    run = fedlab.run(settings(federation__rounds=5), method=anchored, data=samples)
    shared = [round["bytes"].get("shared", {}).get("down", 0) for round in run.history.rounds]
    assert shared == [4 * 20, 4 * 20, 0, 4 * 20, 0]


@pytest.mark.parametrize("losers", [[0], [2], [0, 1, 2, 3]])
def test_a_client_that_lost_a_tensor_is_served_again(
    losers: list[int],
    settings: Settings,
    samples: fedlab.Dataset,
    anchored: type[Method],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = fedlab.run(settings(), method=anchored, data=samples)
    receive, refused = ClientRuntime._receive, []

    def forgetful(
        self: ClientRuntime, client: int, order: Instructions, sent: Mapping[str, np.ndarray]
    ) -> dict[str, torch.Tensor]:
        if order.round == 3 and client in losers and "anchor" in order.shared and "anchor" not in sent:
            refused.append(client)
            raise MissingSharedError("the disk is gone")
        return receive(self, client, order, sent)

    monkeypatch.setattr(ClientRuntime, "_receive", forgetful)
    lossy = fedlab.run(settings(), method=anchored, data=samples)
    assert refused == losers
    assert [round["clients"] for round in lossy.history.rounds] == [[0, 1, 2, 3]] * 3
    assert lossy.history.rounds[2]["bytes"]["shared"]["down"] == 20 * len(losers)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(lossy.model.state_dict()[name], value), name


def test_versions_never_repeat() -> None:
    shared = SharedTensors()
    shared["x"] = torch.zeros(1)
    first = shared.versions["x"]
    shared.delivered(0, {"x": first})
    del shared["x"]
    shared["x"] = torch.ones(1)
    assert shared.versions["x"] > first
    assert shared.outdated(0, ["x"]) == ("x",)


def test_a_new_version_is_a_copy() -> None:
    shared, value = SharedTensors(), torch.zeros(2)
    shared["x"] = value
    value.add_(1)
    assert shared["x"].tolist() == [0, 0]


def test_the_book_of_a_checkpoint_restores_who_holds_what() -> None:
    shared = SharedTensors()
    shared["x"], shared["y"] = torch.zeros(1), torch.ones(2)
    shared.delivered(3, dict(shared.versions))
    shared["y"] = torch.ones(2)
    again = SharedTensors()
    again.restore({"x": torch.zeros(1), "y": torch.ones(2)}, shared.book())
    assert again.outdated(3, ["x", "y"]) == ("y",)
    assert again.outdated(4, ["x", "y"]) == ("x", "y")
    again["x"] = torch.ones(1)
    assert again.versions["x"] == 4
