"""The floor: a plain PyTorch loop in one process."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.pace import Pace
from benchmarks.work import CLASSES, Work


def simple_cnn() -> nn.Module:
    """The network of all contenders, 1,626,442 parameters; FedLab's own is out of reach in pfl's environment."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(12544, 128),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(128, CLASSES),
    )


class Loop:
    """Federated averaging as one writes it without a framework.

    Args:
        work: what every client does.
        images: of its clients, (clients, samples, 3, 32, 32).
        labels: of its clients, (clients, samples).

    Attributes:
        server: the network state that the next round starts from, by name.
    """

    def __init__(self, work: Work, images: np.ndarray, labels: np.ndarray) -> None:
        self._work, self._model = work, simple_cnn()
        self._images, self._labels = torch.from_numpy(images), torch.from_numpy(labels)
        self.server = {name: value.clone() for name, value in self._model.state_dict().items()}

    def round(self, cohort: int) -> None:
        """Train `cohort` clients, drawn at random, and average them."""
        self.begin()
        for client in torch.randperm(len(self._labels))[:cohort].tolist():
            self.visit(client)
        self.end()

    def begin(self) -> None:
        """Start a round."""
        self._total = {name: torch.zeros_like(value) for name, value in self.server.items()}
        self._weight = 0

    def visit(self, client: int, generator: torch.Generator | None = None) -> None:
        """Train one client from the server's state and add its weights up.

        Args:
            client: its place among the images and labels.
            generator: draws the order of its samples; default: torch's global one.
        """
        self._model.load_state_dict(self.server)
        train(self._model, self._images[client], self._labels[client], self._work, generator)
        for name, value in self._model.state_dict().items():
            self._total[name].add_(value, alpha=self._work.samples)
        self._weight += self._work.samples

    def end(self) -> None:
        """Average what the round's clients sent."""
        self.server = {name: value / self._weight for name, value in self._total.items()}


def main(work: Work) -> None:
    """One loop over all clients."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    loop, pace = Loop(work, *work.of_clients(range(work.clients))), Pace(work.rounds)
    while pace.tick():
        loop.round(work.cohort)


def train(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, work: Work, generator: torch.Generator | None = None
) -> None:
    """One local epoch."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=work.lr)
    for indices in torch.randperm(len(images), generator=generator).split(work.batch):
        optimizer.zero_grad()
        F.cross_entropy(model(images[indices]), labels[indices]).backward()
        optimizer.step()
