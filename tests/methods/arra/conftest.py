"""A small ARRA, and one step of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedlab.assembly import build_networks, make_method, make_task
from fedlab.clients.trainer import LocalTrainer
from fedlab.config import Config, parse
from fedlab.method import ClientState, ServerContext, Step
from fedlab.method.exchange import Exchanges
from fedlab.methods.arra.llm import TokenLLM
from fedlab.methods.arra.method import ARRA

SMALL: dict[str, Any] = {
    "llm": {"width": 16, "hidden": 24, "blocks": 3, "heads": 2, "dropout": 0.0},
    "tokenizer": {"codes": 8, "patch": 4, "images": 16},
    "encoder": {"width": 6, "steps": 2, "batch_size": 8}, "judge": {"width": 6, "steps": 2, "batch_size": 8},
    "generation": {"guidance": 2.0, "samples": 6, "gallery": 2}, "drop_prompt": 0.0,
}  # fmt: skip
VOCABULARY = ("<pad>", "<end>", "blue", "red", "round")
SHAPE = (3, 16, 16)
CPU = torch.device("cpu")


class Lab:
    """A method with its networks, as a client has them in a step."""

    def __init__(self, **settings: Any) -> None:
        sections = {"data": {"source": "shapecap"}, "method": {"name": "arra", **SMALL, **settings}}
        self.config = parse(Config, sections)
        method = make_method(self.config.method)
        assert isinstance(method, ARRA)
        self.method = method
        columns: Any = {"image": ("float32", SHAPE), "text": ("int64", (3,))}
        self.task = make_task(self.config, columns, (), 2, VOCABULARY)
        self.networks = build_networks(method, self.task, 0, CPU)
        self.private: dict[str, Tensor] = {}
        Exchanges(self.networks, method).enter({})
        generator = torch.Generator().manual_seed(0)
        self.networks["tokenizer"].codebook.copy_(torch.rand(8, 48, generator=generator))
        self.llm = self.networks["llm"]
        assert isinstance(self.llm, TokenLLM)
        self.layout = self.llm.layout

    def samples(self, n: int = 5, seed: int = 0) -> dict[str, Tensor]:
        """Captions of one or two words, and images."""
        generator = torch.Generator().manual_seed(seed)
        text = torch.tensor([[2, 1, 0], [3, 4, 1]]).repeat(n, 1)[:n]
        return {"image": torch.randn(n, *SHAPE, generator=generator), "text": text}

    def batch(self, n: int = 5, seed: int = 0) -> dict[str, Tensor]:
        """As `fit` makes it."""
        samples = self.samples(n, seed)
        pixels = self.networks["pixels"](samples["image"])
        with torch.no_grad():
            target = self.networks["encoder"].features(pixels)
        return {"text": samples["text"], "codes": self.networks["tokenizer"].encode(pixels), "target": target}

    def step(self) -> Step:
        return Step(
            round=1, epoch=0, index=0, per_round=1, global_step=0, total_steps=1, plan={}, shared={}, scratch={},
            log=lambda name, value: None,
        )  # fmt: skip

    def loss(self, batch: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        return self.method.loss(self.networks, batch or self.batch(), self.step())

    def trained(self, steps: int) -> None:
        parameters = self.method.param_groups(self.networks, {})
        optimizer = torch.optim.AdamW(parameters, lr=0.01)
        for seed in range(steps):
            optimizer.zero_grad()
            torch.stack(list(self.loss(self.batch(seed=seed)).values())).sum().backward()
            optimizer.step()

    def client(self, data: dict[str, Tensor], state: ClientState, fingerprint: str = "a") -> LocalTrainer:
        return LocalTrainer(
            method=self.method, data=data, state=state, shared={}, client=0, client_name="0", examples=1,
            fingerprint=lambda: fingerprint, **self._work(1),
        )  # fmt: skip

    def server(self, round: int = 0, **held: dict[str, Tensor]) -> ServerContext:
        return ServerContext(
            before={}, after=self.networks.state_dict(), shared={}, private=self.private, data=held, results={},
            batch_size=4, **self._work(round),
        )  # fmt: skip

    def _work(self, round: int) -> dict[str, Any]:
        return {
            "task": self.task, "networks": self.networks, "training": self.config.training, "device": CPU, "seed": 0,
            "round": round, "rounds": 2, "plan": {},
        }  # fmt: skip


@pytest.fixture
def lab() -> Callable[..., Lab]:
    return Lab
