"""A small ISA, and one step of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedlab.assembly import build_networks, make_method, make_task
from fedlab.clients.trainer import LocalTrainer
from fedlab.config import Component, Config, parse
from fedlab.data.generated.edits import WORDS
from fedlab.data.sources import load_source
from fedlab.method import ClientState, EvaluationContext, ServerContext, Step
from fedlab.method.exchange import Exchanges
from fedlab.methods.isa.method import ISA
from fedlab.models.blip import Blip

SMALL: dict[str, Any] = {
    "encoder": {"widths": [8, 12, 16]}, "learner": {"tokens": 3, "heads": 2, "dropout": 0.0},
}  # fmt: skip
CPU = torch.device("cpu")


class Lab:
    """A method with its networks, as client and server have them."""

    def __init__(self, **settings: Any) -> None:
        sections = {
            "data": {"source": "edited_scenes"}, "training": {"batch_size": 8},
            "method": {"name": "isa", **SMALL, **settings},
        }  # fmt: skip
        self.config = parse(Config, sections)
        method = make_method(self.config.method)
        assert isinstance(method, ISA)
        self.method = method
        columns: Any = {"image": ("float32", (3, 32, 32))}
        self.task = make_task(self.config, columns, (), 2, WORDS)
        self.networks = build_networks(method, self.task, 0, CPU)
        Exchanges(self.networks, method).enter({})
        self.private: dict[str, Tensor] = {}
        self.shared: dict[str, Tensor] = {}
        vl = self.networks["vl"]
        assert isinstance(vl, Blip)
        self.vl = vl

    def photos(self, n: int = 8, seed: int = 0) -> dict[str, Tensor]:
        """Normalized pictures of different objects."""
        source = Component(name="edited_scenes", train=48, test=48, gallery=1, references=1, data_seed=seed)
        images = load_source(source, 0).train["image"]
        return {"image": (torch.from_numpy(images[:n]).float() / 255 - 0.5) / 0.5}

    def sets(self, gallery: int = 2, references: int = 1) -> dict[str, dict[str, Tensor]]:
        """What the server holds."""
        source = Component(name="edited_scenes", train=48, test=48, gallery=gallery, references=references)
        held = {
            name: {column: torch.from_numpy(values) for column, values in samples.columns.items()}
            for name, samples in load_source(source, 0).server.items()
        }
        held["gallery"]["image"] = (held["gallery"]["image"].float() / 255 - 0.5) / 0.5
        return held

    def batch(self, n: int = 8, seed: int = 0) -> dict[str, Tensor]:
        """As `fit` makes it."""
        client = self.client(self.photos(n, seed), ClientState())
        batch = {**client.data, **self.method._seen(client)}
        collate = self.method.batch_spec({}).collate
        return collate(batch, torch.Generator().manual_seed(seed)) if collate else batch

    def step(self) -> Step:
        return Step(
            round=1, epoch=0, index=0, per_round=1, global_step=0, total_steps=1, plan={}, shared=self.shared,
            scratch={}, log=lambda name, value: None,
        )  # fmt: skip

    def loss(self, batch: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        return self.method.loss(self.networks, self.batch() if batch is None else batch, self.step())

    def client(self, data: dict[str, Tensor], state: ClientState, fingerprint: str = "a") -> LocalTrainer:
        return LocalTrainer(
            method=self.method, data=data, state=state, shared=self.shared, client=0, client_name="0", examples=1,
            fingerprint=lambda: fingerprint, **self._work(),
        )  # fmt: skip

    def server(self, **held: dict[str, Tensor]) -> ServerContext:
        return ServerContext(
            before={}, after=self.networks.state_dict(), shared=self.shared, private=self.private, data=held,
            results={}, batch_size=64, **self._work(),
        )  # fmt: skip

    def evaluation(self, data: dict[str, Tensor]) -> EvaluationContext:
        self.networks.eval()
        return EvaluationContext(
            data=data, train_data=dict, state={}, batch_size=8, client=0, **self._work()
        )  # fmt: skip

    def _work(self) -> dict[str, Any]:
        return {
            "task": self.task, "networks": self.networks, "training": self.config.training, "device": CPU, "seed": 0,
            "round": 1, "rounds": 2, "plan": {},
        }  # fmt: skip


@pytest.fixture
def lab() -> Callable[..., Lab]:
    return Lab
