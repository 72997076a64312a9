"""Networks of a few parameters and a client at work on them, for answers that can be computed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedlab.clients.trainer import LocalTrainer
from fedlab.config import TrainingConfig
from fedlab.method import ClientState, Method, Step, Task


class Tiny(nn.Module):
    """Features z = a·x of one number, and logits b·z."""

    feature_dim = 1

    def __init__(self, a: float, b: tuple[float, ...]) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(1, 1, bias=False), nn.Linear(1, len(b), bias=False)
        with torch.no_grad():
            self.body.weight.fill_(a)
            self.head.weight.copy_(torch.tensor(b)[:, None])

    def features(self, x: Tensor) -> Tensor:
        z: Tensor = self.body(x)
        return z

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


def step(scratch: Mapping[str, Any], shared: Mapping[str, Tensor] | None = None) -> Step:
    """The first step of a round."""
    return Step(1, 0, 0, 1, 0, 1, {}, shared or {}, dict(scratch), lambda name, value: None)


def client(
    method: Method,
    networks: Mapping[str, nn.Module],
    x: list[float],
    y: list[int],
    *,
    shared: Mapping[str, Tensor] | None = None,
    state: ClientState | None = None,
    number: int = 0,
    **training: Any,
) -> LocalTrainer:
    """Client `number` with samples x and labels y in one batch and a learning rate of 0.1."""
    return LocalTrainer(
        method=method,
        data={"image": torch.tensor(x)[:, None], "label": torch.tensor(y)},
        state=ClientState() if state is None else state,
        shared=shared or {},
        client=number,
        client_name=str(number),
        examples=len(x),
        fingerprint=lambda: "tiny",
        task=Task(2, (1,), ("a", "b"), 2, "tiny", {}, lambda *arguments: nn.Identity()),
        networks=nn.ModuleDict(networks),
        training=TrainingConfig(**{"batch_size": 512, "lr": 0.1, **training}),
        device=torch.device("cpu"),
        seed=0,
        round=1,
        rounds=2,
        plan={},
    )
