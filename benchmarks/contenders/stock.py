"""Flower's own simulation, written as its documentation's PyTorch quickstart does it."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn

from benchmarks.contenders.bare import simple_cnn, train
from benchmarks.pace import Pace
from benchmarks.work import Work

WORKERS = 2
WORK = "BENCHMARK_WORK"
"""Environment variable that tells server and workers what to do."""


app = ClientApp()


@app.train()
def fit(message: Message, context: Context) -> Message:
    """The client: model from the message, one epoch, model and number of samples back."""
    torch.set_num_threads(1)
    work = Work.from_json(os.environ[WORK])
    arrays, examples = message.content["arrays"], 1
    if not work.payload:
        model = simple_cnn()
        model.load_state_dict(arrays.to_torch_state_dict())  # type: ignore[union-attr]  # it is an ArrayRecord
        client = int(context.node_config["partition-id"])
        images, labels = (values[0] for values in work.of_clients(range(client, client + 1)))
        train(model, torch.from_numpy(images), torch.from_numpy(labels), work)
        arrays, examples = ArrayRecord(OrderedDict(model.state_dict())), len(images)
    metrics = MetricRecord({"num-examples": examples})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


class Paced(FedAvg):
    """FedAvg whose rounds begin when it is their turn."""

    def __init__(self, pace: Pace, work: Work) -> None:
        super().__init__(
            fraction_train=work.cohort / work.clients,
            fraction_evaluate=0.0,
            min_train_nodes=work.cohort,
            min_available_nodes=work.clients,
        )
        self._pace = pace

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return super().configure_train(server_round, arrays, config, grid) if self._pace.tick() else []


server = ServerApp()


@server.main()
def serve(grid: Grid, context: Context) -> None:
    """The server: federated averaging, a round each time it is its turn."""
    work = Work.from_json(os.environ[WORK])
    model = nn.ParameterList([torch.zeros(work.payload)]) if work.payload else simple_cnn()
    strategy = Paced(Pace(work.rounds), work)
    strategy.start(grid, ArrayRecord(OrderedDict(model.state_dict())), num_rounds=work.rounds + 1)


def main(work: Work) -> None:
    """The simulation."""
    os.environ[WORK] = work.to_json()
    run_simulation(
        server,
        app,
        num_supernodes=work.clients,
        # without "local" Ray joins any cluster that somebody has started on this machine
        backend_config={
            "client_resources": {"num_cpus": 1},
            "init_args": {"address": "local", "num_cpus": WORKERS},
        },
    )
