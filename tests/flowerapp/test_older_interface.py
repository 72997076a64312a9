"""Apps of Flower's older interface: NumPyClient, client_fn, server_fn and strategies with configure_fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlab.errors import ClientError

Write, Run = Callable[..., Path], Callable[..., Any]

CLIENT = """
import numpy as np
from flwr.client import ClientApp, NumPyClient
from flwr.common import Context


class Client(NumPyClient):
    def __init__(self, context: Context) -> None:
        self.client = int(context.node_config["partition-id"])
        self.how = context.run_config["misbehave"]

    def get_parameters(self, config):
        return [np.zeros((2, 2), np.float32), np.ones(3, np.float32)]

    def fit(self, parameters, config):
        if self.how == "raise" and self.client == 1:
            raise RuntimeError("client 1 has no data")
        return [values + np.float32(self.client + 1) for values in parameters], 8, {{"kind": "x", "loss": 0.5}}

    def evaluate(self, parameters, config):
        return float(self.client), 4, {{"accuracy": self.client / 4}}


def client_fn(context: Context):
    return Client(context).to_client()


app = ClientApp(client_fn)
"""

SERVER = """
from flwr.common import Context
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg


def mean(metrics):
    total = sum(count for count, _ in metrics)
    return {{"accuracy": sum(count * values["accuracy"] for count, values in metrics) / total}}


def measure(number, parameters, config):
    return float(parameters[1][0]), {{"zeros": float(parameters[0].sum())}}


def server_fn(context: Context):
    strategy = FedAvg(
        evaluate_metrics_aggregation_fn=mean,
        evaluate_fn=measure,
    )
    config = ServerConfig(num_rounds=context.run_config["num-server-rounds"])
    return ServerAppComponents(strategy=strategy, config=config)


app = ServerApp(server_fn=server_fn)
"""


@pytest.fixture
def older(write_app: Write) -> Path:
    return write_app(package="older_app", client_app=CLIENT, server_app=SERVER)


def test_it_runs_and_its_record_is_that_of_the_newer_one(older: Path, run_app: Run) -> None:
    run = run_app(older)
    # clients add 1 to 4, on average 2.5 in each round
    assert [values.tolist() for values in run.arrays.values()] == [[[5.0, 5.0]] * 2, [6.0] * 3]
    assert [(event["round"], event["rounds"], event["clients"]) for event in run.history.rounds] == [
        (1, 2, [0, 1, 2, 3]),
        (2, 2, [0, 1, 2, 3]),
    ]
    assert run.history.rounds[0]["train"] == {"loss": 0.5}
    assert run.history.rounds[0]["bytes_up"] == 4 * 7 * 4
    last = run.history.evaluations[-1]
    assert last["clients"]["client 3"] == {"loss": 3.0, "accuracy": 0.75}
    assert last["strategy"] == {"loss": 1.5, "accuracy": 0.375}
    assert last["server"] == {"loss": 6.0, "zeros": 20.0}
    assert run.history.probed["server"] == {"loss": 1.0, "zeros": 0.0}
    assert last["samples"]["client 0"] == 4
    (left,) = run.history.left_out
    assert (left.count, left.examples) == (8, ("kind",))


def test_its_clients_use_all_workers_and_give_the_same(older: Path, run_app: Run, ray_workers: None) -> None:
    inline, ray = run_app(older), run_app(older, "engine.name=ray", "engine.workers=2")
    for name, values in inline.arrays.items():
        assert np.array_equal(values, ray.arrays[name])


def test_the_error_of_a_client_ends_the_run_although_the_older_loop_swallows_it(older: Path, run_app: Run) -> None:
    with pytest.raises(ClientError, match=r"client 1 failed in round 1, phase train(.|\n)*client 1 has no data"):
        run_app(older, run_config={"misbehave": "raise"})


def test_a_client_without_parameters_is_no_error_of_the_engine(write_app: Write, run_app: Run) -> None:
    """Flower then sends an array without any bytes, both ways."""
    client = CLIENT.replace("return [np.zeros((2, 2), np.float32), np.ones(3, np.float32)]", "return []")
    client = client.replace("values + np.float32(self.client + 1) for values in parameters", "np.ones(3, np.float32)")
    server = SERVER.replace("        evaluate_fn=", "        # evaluate_fn=")
    run = run_app(write_app(package="empty_app", client_app=client, server_app=server))
    assert run.arrays["0"].tolist() == [1.0] * 3
