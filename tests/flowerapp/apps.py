"""Flower apps in folders of their own, as `flwr new` lays them out, which compute with whole numbers only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROJECT = """
[project]
name = "{name}"
version = "1.0.0"
dependencies = ["flwr[simulation]>=1.20"]

[tool.flwr.app]
publisher = "somebody"

[tool.flwr.app.components]
serverapp = "{package}.server_app:app"
clientapp = "{package}.client_app:app"

[tool.flwr.app.config]
num-server-rounds = 2
fraction = 1.0
misbehave = ""
note.text = "a"

[tool.flwr.federations]
default = "local-simulation"

[tool.flwr.federations.local-simulation]
options.num-supernodes = 4
"""

# All sums are of small whole numbers over a power of two, so that they are the same in every order.
CLIENT = '''
import os, random, sys

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from {package}.task import step


def doubled(message, context, call_next):
    """A mod: what the client sends is worth twice as much."""
    reply = call_next(message, context)
    if "metrics" in reply.content:
        reply.content["metrics"]["modded"] = 1
    return reply


app = ClientApp(mods=[doubled])


@app.train()
def train(message: Message, context: Context) -> Message:
    client = int(context.node_config["partition-id"])
    assert context.node_config["num-partitions"] == 4
    how = context.run_config["misbehave"]
    if how == "raise" and client == 2:
        raise RuntimeError("client 2 has no data")
    if how == "hang":
        import time
        open("began", "w").close()
        time.sleep(600)
    seen = 1 + (context.state["memory"]["seen"] if "memory" in context.state else 0)
    context.state["memory"] = MetricRecord({{"seen": seen}})
    arrays = message.content["arrays"].to_numpy_ndarrays()
    rate = message.content["config"]["lr"]
    fresh = [step(values, client, seen, rate) for values in arrays]
    metrics = MetricRecord({{"loss": float(client), "num-examples": 8, "seen": seen, "list": [1.0, 2.0]}})
    metrics["draw"] = random.random() + float(np.random.rand())
    content = RecordDict({{"arrays": ArrayRecord(fresh), "metrics": metrics}})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    client = int(context.node_config["partition-id"])
    total = float(sum(values.sum() for values in message.content["arrays"].to_numpy_ndarrays()))
    metrics = MetricRecord({{"accuracy": client / 4, "total": total, "num-examples": 16}})
    return Message(RecordDict({{"metrics": metrics}}), reply_to=message)


@app.query()
def query(message: Message, context: Context) -> Message:
    answer = ConfigRecord({{"client": context.node_config["partition-id"]}})
    return Message(RecordDict({{"answer": answer}}), reply_to=message)
'''

TASK = """
import numpy as np


def step(values, client, seen, rate):
    return np.asarray(values + np.float32((client + 1) * seen * rate))
"""

SERVER = """
import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    # any records may be sent, also one with the name that FedLab uses itself
    asked = [Message(RecordDict({{"config": MetricRecord({{"x": 1}})}}), node, "query") for node in grid.get_node_ids()]
    answers = list(grid.send_and_receive(asked))
    assert sorted(reply.content["answer"]["client"] for reply in answers) == [0, 1, 2, 3]
    start = ArrayRecord([np.zeros((2, 3), np.float32), np.ones((), np.float32)])
    strategy = FedAvg(fraction_train=config["fraction"], fraction_evaluate=1.0)

    def on_server(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        if config["misbehave"] == "server" and server_round == 2:
            raise ArithmeticError("the server cannot count")
        return MetricRecord({{"first": float(arrays.to_numpy_ndarrays()[1])}})

    result = strategy.start(
        grid=grid,
        initial_arrays=start,
        train_config=ConfigRecord({{"lr": 2.0}}),
        num_rounds=config["num-server-rounds"],
        evaluate_fn=on_server,
    )
    np.savez("final.npz", *result.arrays.to_numpy_ndarrays())
"""

Write = Callable[..., Path]


@pytest.fixture
def write_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes an app into a folder of its own and returns the folder; the current folder is another one, empty."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def write(*, package: str = "numbers_app", project: str = PROJECT, **files: str) -> Path:
        folder = tmp_path / "apps" / package
        whole = {"server_app": SERVER, "client_app": CLIENT, "task": TASK, "__init__": ""} | files
        (folder / package).mkdir(parents=True)
        (folder / "pyproject.toml").write_text(project.format(name=package.replace("_", "-"), package=package))
        for name, text in whole.items():
            (folder / package / f"{name}.py").write_text(text.format(package=package))
        return folder

    return write


QUIET = ("tracking.console=quiet", "tracking.tensorboard=false", "tracking.report=false", "tracking.folder=runs")


@pytest.fixture
def run_app() -> Callable[..., Any]:
    """`fedlab.flowerapp.start.run_app` inline, without display and report."""
    from fedlab.flowerapp.start import run_app

    def run(folder: Path | str, *overrides: str, **named: Any) -> Any:
        return run_app(folder, overrides=["engine.name=inline", *QUIET, *overrides], **named)

    return run
