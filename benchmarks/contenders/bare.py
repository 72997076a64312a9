"""The floor: a plain PyTorch loop in one process."""

from __future__ import annotations

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


def main(work: Work) -> None:
    """Federated averaging in a dozen lines."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, pace = simple_cnn(), Pace(work.rounds)
    images, labels = (torch.from_numpy(values.copy()) for values in work.data())
    images, labels = images.view(work.clients, work.samples, *images.shape[1:]), labels.view(work.clients, -1)
    server = {name: value.clone() for name, value in model.state_dict().items()}
    while pace.tick():
        total = {name: torch.zeros_like(value) for name, value in server.items()}
        for client in torch.randperm(work.clients)[: work.cohort]:
            model.load_state_dict(server)
            train(model, images[client], labels[client], work)
            for name, value in model.state_dict().items():
                total[name].add_(value, alpha=work.samples)
        server = {name: value / (work.samples * work.cohort) for name, value in total.items()}


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, work: Work) -> None:
    """One local epoch."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=work.lr)
    for indices in torch.randperm(len(images)).split(work.batch):
        optimizer.zero_grad()
        F.cross_entropy(model(images[indices]), labels[indices]).backward()
        optimizer.step()
