"""Client throughput on one GPU: FedLab's workers and its vectorized cohort beside two loops in one process.

``python benchmarks/gpu.py`` prints a table in Markdown. Without a GPU it says so and measures nothing; ``--cpu``
measures the loops and the vectorized cohort on the CPU all the same, in CPU time instead of time on the clock. Every
figure is the median over rounds after one to warm up, and the contenders of a workload are measured one after the other
on the same machine, so compare ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from flwr.app import Message
from torch import Tensor, nn
from torch.nn import functional as F

import fedlab
from fedlab.config import Component
from fedlab.data.samples import Dataset, Samples
from fedlab.models import build_model
from fedlab.server.strategies.average import Composition, FedAvg
from fedlab.server.strategies.rounds import Arrays, TrainingRound

_CLASSES, _LR = 10, 0.1


@dataclass(frozen=True)
class Work:
    """One workload: a cohort of equal clients, one local epoch each.

    Args:
        model: component of the network.
        shape: of an image.
        clients: of the federation.
        cohort: clients of a round.
        samples: images of a client.
        batch: batch size.
        rounds: measured rounds.
    """

    model: Component
    shape: tuple[int, int, int]
    clients: int = 256
    cohort: int = 64
    samples: int = 50
    batch: int = 10
    rounds: int = 5

    def columns(self) -> tuple[np.ndarray, np.ndarray]:
        """Images (clients · samples, …) in [0, 1] and labels."""
        rng = np.random.default_rng(0)
        count = self.clients * self.samples
        return rng.random((count, *self.shape), dtype=np.float32), rng.integers(0, _CLASSES, count)

    def network(self) -> nn.Module:
        """A fresh network."""
        return build_model(self.model, self.shape, _CLASSES)


WORKLOADS = {
    "simple_cnn, 3×32×32": Work(Component(name="simple_cnn"), (3, 32, 32)),
    "convnet of width 8, 1×16×16": Work(Component(name="convnet", width=8, depth=2), (1, 16, 16)),
    "logistic regression, 1×28×28": Work(Component(name="logistic"), (1, 28, 28)),
}


class Timed(FedAvg):
    """FedAvg that notes what its rounds take.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock, self._began, self.taken = clock, 0.0, list[float]()

    def compose(self, round: TrainingRound, current: Arrays, settings: Mapping[str, Any] | None = None) -> Composition:
        self._began = self._clock()
        return super().compose(round, current, settings)

    def combine(self, sent: Composition, replies: Iterable[Message]) -> Arrays | None:
        result = super().combine(sent, replies)
        self.taken.append(self._clock() - self._began)
        return result


def bare(work: Work, device: torch.device) -> float:
    """Seconds of a round of the plainest loop: all data on the device, one network, weights added up in place."""
    model = work.network().to(device)
    images, labels = (torch.from_numpy(values).to(device) for values in work.columns())
    images, labels = images.view(work.clients, work.samples, *work.shape), labels.view(work.clients, -1)
    server = {name: value.clone() for name, value in model.state_dict().items()}

    def a_round() -> None:
        total = {name: torch.zeros_like(value) for name, value in server.items()}
        for client in torch.randperm(work.clients)[: work.cohort].tolist():
            model.load_state_dict(server)
            _epoch(model, images[client], labels[client], work.batch)
            for name, value in model.state_dict().items():
                total[name] += value
        for name, value in total.items():
            server[name] = value / work.cohort

    return _seconds(a_round, work.rounds, device)


def pfl_style(work: Work, device: torch.device) -> float:
    """Seconds of a round as pfl-research goes about it in one process.

    A client's data comes from the host; it starts from a copy of the central parameters, its statistics are the
    difference to them, weighted and summed, and a central optimizer takes the step.
    """
    model = work.network().to(device)
    images, labels = (torch.from_numpy(values) for values in work.columns())
    central = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(central, lr=1.0)

    def a_round() -> None:
        start = [p.detach().clone() for p in central]
        total = [torch.zeros_like(p) for p in central]
        for client in torch.randperm(work.clients)[: work.cohort].tolist():
            part = slice(client * work.samples, (client + 1) * work.samples)
            _restore(central, start)
            _epoch(model, images[part].to(device), labels[part].to(device), work.batch)
            for summed, before, after in zip(total, start, central, strict=True):
                summed.add_(before - after.detach(), alpha=work.samples)
        _restore(central, start)
        for p, summed in zip(central, total, strict=True):
            p.grad = summed / (work.samples * work.cohort)
        optimizer.step()

    return _seconds(a_round, work.rounds, device)


def ours(work: Work, device: torch.device, **engine: Any) -> float:
    """Seconds of FedLab's rounds, from the messages' making to the average."""
    images, labels = work.columns()
    names = tuple(map(str, range(_CLASSES)))
    columns = {"image": images, "label": labels}
    # one sample to test: evaluation is no part of this
    test = Samples({name: values[:1] for name, values in columns.items()}, names)
    config: dict[str, Any] = {
        "method": {"name": "supervised"},
        "model": {"name": work.model.name, **work.model.settings},
        "data": {"source": {"name": "digits"}, "partition": [{"name": "iid", "clients": work.clients}]},
        "training": {"lr": _LR, "batch_size": work.batch},
        "federation": {
            "rounds": work.rounds + 1,
            "sampler": {"name": "uniform", "fraction": work.cohort / work.clients},
        },
        "evaluation": {"every": work.rounds + 1},
        "engine": {"device": device.type, **engine},
    }
    with tempfile.TemporaryDirectory(prefix="fedlab-gpu-benchmark-") as folder:
        config["tracking"] = {"folder": folder, "console": "quiet", "tensorboard": False, "checkpoint_every": 10**6}
        timed = Timed(_clock(device))
        run = fedlab.run(config, data=Dataset("noise", Samples(columns, names), test), strategy=timed)
        for warning in run.history.warnings:
            print(f"*{warning}*\n")
    return statistics.median(timed.taken[1:])


def contenders(gpu: bool) -> dict[str, Callable[[Work, torch.device], float]]:
    """What is measured, by its name in the table."""

    def engine(**settings: Any) -> Callable[[Work, torch.device], float]:
        return lambda work, device: ours(work, device, **settings)

    loops: dict[str, Callable[[Work, torch.device], float]] = {"bare loop": bare, "sequential, pfl style": pfl_style}
    alone = {"FedLab inline": engine(name="inline")}
    workers = {f"FedLab ray, {n} workers": engine(name="ray", workers=n) for n in (1, 2, 4)} if gpu else {}
    together = {f"FedLab inline, vectorized by {n}": engine(name="inline", vectorize=n) for n in (8, 16, 32)}
    both = {"FedLab ray, 2 workers, vectorized by 16": engine(name="ray", workers=2, vectorize=16)} if gpu else {}
    return {**loops, **alone, **workers, **together, **both}


def table(name: str, work: Work, device: torch.device, hardware: str) -> Iterable[str]:
    """The lines of a workload's table."""
    yield f"**{name}** on {hardware}: {work.cohort} clients a round, {work.samples} images each, batch {work.batch}"
    yield ""
    yield "| contender | clients/s | × bare loop | × pfl style |"
    yield "|---|---:|---:|---:|"
    seen: list[float] = []
    for contender, measure in contenders(device.type == "cuda").items():
        seen.append(work.cohort / measure(work, device))
        yield f"| {contender} | {seen[-1]:.1f} | {seen[-1] / seen[0]:.2f} | {_over(seen):s} |"
    yield ""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cpu", action="store_true", help="measure on the CPU, loops and vectorized cohort only")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if torch.cuda.is_available() and not chosen.cpu:
        device, hardware = torch.device("cuda"), torch.cuda.get_device_name()
    elif chosen.cpu:
        device, hardware = torch.device("cpu"), f"one CPU core ({torch.backends.cpu.get_cpu_capability()}), no GPU"
    else:
        print("No CUDA GPU that torch can use: nothing was measured. --cpu measures what does not need one.")
        return
    for name, work in WORKLOADS.items():
        work = replace(work, clients=64, cohort=32, rounds=3) if chosen.cpu else work  # cores are slower
        for line in table(name, work, device, hardware):
            print(line, flush=True)


def _epoch(model: nn.Module, images: Tensor, labels: Tensor, batch: int) -> None:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=_LR)
    for indices in torch.randperm(len(images)).split(batch):
        optimizer.zero_grad()
        F.cross_entropy(model(images[indices.to(images.device)]), labels[indices.to(labels.device)]).backward()
        optimizer.step()


@torch.no_grad()
def _restore(parameters: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    for p, value in zip(parameters, values, strict=True):
        p.copy_(value)


def _seconds(a_round: Callable[[], None], rounds: int, device: torch.device) -> float:
    clock, taken = _clock(device), []
    for _ in range(rounds + 1):
        began = clock()
        a_round()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(clock() - began)
    return statistics.median(taken[1:])


def _clock(device: torch.device) -> Callable[[], float]:
    """A machine whose cores are shared is measured by what this process got of them."""
    return time.perf_counter if device.type == "cuda" else time.process_time


def _over(seen: list[float]) -> str:
    return f"{seen[-1] / seen[1]:.2f}" if len(seen) > 1 else ""


if __name__ == "__main__":
    main()
