"""Asynchronous training goes on without a client whose answer cannot be used, as synchronous training does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

import fedlab
from fedlab.clients import app as client_side
from fedlab.config import Config
from fedlab.errors import ClientError
from fedlab.protocol.messages import ARRAYS, array_record, to_numpy, to_record
from tests.server.nodes import Deployment, clients, count

Settings = Callable[..., Config]
ASYNCHRONOUS = {
    "federation__mode": "asynchronous",
    "federation__asynchronous": {"concurrency": 3, "buffer": 2},
    "federation__devices": {"speed": 200},
}


def spoilt(message: Message) -> None:
    record = array_record(message.content, ARRAYS)
    assert record is not None
    arrays = to_numpy(record, copy=True)
    arrays[min(arrays)].fill(np.nan)
    message.content[ARRAYS] = to_record(arrays)


def test_in_a_deployment(small: Settings, deployment: Deployment) -> None:
    nodes = deployment.submitted(small(**ASYNCHRONOUS), 3)

    def fate(client: int, kind: str, round: int, message: Message) -> str:
        if kind == "train" and client == 1 and ARRAYS in message.content and "metrics" in message.content:
            spoilt(message)
        return ""

    nodes.fate = fate
    run = deployment.serve(nodes)
    assert len(run.history.rounds) == 3
    assert all(1 not in of for of in clients(run))
    assert sum(map(len, clients(run))) >= 3
    assert count(run, "local trainings: what the client sent cannot be used") >= 1
    stopping = deployment.submitted(small(**ASYNCHRONOUS, federation__on_client_error="stop"), 3, token="s")
    stopping.fate = fate
    with pytest.raises(ClientError, match=r"client 1 failed in round .*, phase train"):
        deployment.serve(stopping)


def test_in_a_simulation(small: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = client_side._reply

    def changed(message: Message, context: Any, *arguments: Any, **options: Any) -> Message:
        made = reply(message, context, *arguments, **options)
        if context.node_config["partition-id"] == 1:
            spoilt(made)
        return made

    monkeypatch.setattr(client_side, "_reply", changed)
    run = fedlab.run(small(**ASYNCHRONOUS))
    assert len(run.history.rounds) == 3
    assert all(1 not in of for of in clients(run))
    assert count(run, "local trainings: what the client sent cannot be used") >= 1
    with pytest.raises(ClientError, match=r"client 1 failed in round .*, phase train"):
        fedlab.run(small(**ASYNCHRONOUS, federation__on_client_error="stop"))
