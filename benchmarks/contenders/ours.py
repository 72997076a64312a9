"""FedLab, through `fedlab.run`: ``inline`` or a number of Ray workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fedlab
from benchmarks.pace import Pace
from benchmarks.work import CLASSES, Work
from fedlab.config import Section
from fedlab.data.samples import Dataset, Samples
from fedlab.method import Batch, EvaluationContext, FitContext, Method, Step, Task
from fedlab.server.strategies.average import Composition, FedAvg
from fedlab.server.strategies.rounds import Arrays, Cohort, TrainingRound

_RANGE = 6.0  # N(0, 1) as images in [0, 1], which `data.mean` and `data.std` make N(0, 1) again


class Supervised(Method):
    """Supervised training that measures nothing: there are no test samples."""

    def build(self, task: Task) -> dict[str, nn.Module]:
        return {"model": task.model()}

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        return {"ce": F.cross_entropy(networks["model"](batch["image"]), batch["label"])}


class _Payload(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(size))


class Echo(Method):
    """Sends back what it got."""

    class Settings(Section):
        """Settings of the echo."""

        payload: int = 1

    def build(self, task: Task) -> dict[str, nn.Module]:
        return {"model": _Payload(self.settings.payload)}

    def fit(self, ctx: FitContext) -> None:
        pass

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, np.ndarray]:
        return {}

    def evaluation_values(self, sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
        return {}


class Paced(FedAvg):
    """FedAvg whose rounds begin when it is their turn; a round ends where the next begins."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace

    def compose(self, round: TrainingRound, current: Arrays, settings: Mapping[str, Any] | None = None) -> Composition:
        if not self._pace.tick():
            round = replace(round, cohort=Cohort())  # nobody is left to train
        return super().compose(round, current, settings)


def main(work: Work, engine: str, clients: str | None = None) -> None:
    """The run, with another number of clients than the work's where one is given."""
    if clients is not None:
        work = replace(work, clients=int(clients), cohort=min(work.cohort, int(clients)))
    simulate(work, Pace(work.rounds), engine)


def simulate(work: Work, pace: Pace, engine: str) -> fedlab.Run:
    """A run whose rounds begin when `pace` says so.

    Args:
        work: what every client does.
        pace: of the contest.
        engine: ``inline`` or a number of Ray workers.
    """
    workers = {} if engine == "inline" else {"workers": int(engine)}
    config: dict[str, Any] = {
        "method": {"name": "supervised"},
        "model": {"name": "simple_cnn"},
        "data": {
            "source": {"name": "digits"},  # replaced below
            "partition": [{"name": "iid", "clients": work.clients}],
            "mean": [0.5],
            "std": [0.5 / _RANGE],
        },
        "training": {"lr": work.lr, "batch_size": work.batch},
        # the last round only tells when the one before is over
        "federation": {
            "rounds": work.rounds + 1,
            "sampler": {"name": "uniform", "fraction": work.cohort / work.clients},
        },
        # nobody is evaluated, since no client has test samples; all clients would be asked all the same
        "evaluation": {"every": work.rounds + 1, "clients": 1},
        "engine": {"name": "ray" if workers else "inline", **workers},
        "tracking": {"folder": work.folder, "console": "quiet", "tensorboard": False, "checkpoint_every": 10**6},
    }
    method: Method = Supervised()
    if work.payload:
        method = Echo(Echo.Settings(payload=work.payload))
    return fedlab.run(config, method=method, strategy=Paced(pace), data=_dataset(work))


def _dataset(work: Work) -> Dataset:
    if work.payload:
        return Dataset(
            "empty", *(Samples({"index": np.arange(count)}) for count in (max(work.clients, work.indices), 0))
        )
    images, labels = work.data()
    scaled = np.clip(images / (2 * _RANGE) + 0.5, 0, 1).astype(np.float32)
    columns = {"image": scaled, "label": labels}
    names = tuple(map(str, range(CLASSES)))
    return Dataset("noise", Samples(columns, names), Samples({k: v[:0] for k, v in columns.items()}, names))
