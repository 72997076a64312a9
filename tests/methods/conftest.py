"""A client or the server at work on its own, and small runs in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fedlab
from fedlab.assembly import build_networks, make_method, make_task
from fedlab.clients.trainer import LocalTrainer
from fedlab.config import Config, load_config, parse
from fedlab.data.samples import Samples
from fedlab.experiment.start import method_folder
from fedlab.method import ClientState, ServerContext
from fedlab.method.exchange import Exchanges
from fedlab.storage.cache import ResultCache
from tests.methods.shorter import shorter

CPU = torch.device("cpu")
CLASSES = 4
SHAPE = (3, 12, 12)


class Bench:
    """One method with its networks, and contexts to call its hooks with."""

    def __init__(self, folder: Path, method: Mapping[str, Any], **sections: Any) -> None:
        base = {"model": {"name": "convnet", "width": 8, "depth": 2}, "data": {"source": "digits"}}
        self.config = parse(Config, {**base, "method": method, **sections})
        self.folder = folder
        self.method = make_method(self.config.method)
        columns = {"image": ("float32", SHAPE), "label": ("int64", ())}
        self.task = make_task(self.config, columns, [str(c) for c in range(CLASSES)], 2)
        self.networks = build_networks(self.method, self.task, self.config.seed, CPU)
        self.exchanges = Exchanges(self.networks, self.method)
        self.shared: dict[str, Tensor] = {}
        self.private: dict[str, Tensor] = {}
        self.held: dict[str, dict[str, Tensor]] = {}

    def data(self, seed: int = 0, classes: tuple[int, ...] = (0, 1, 2, 3), per_class: int = 6) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.tensor(classes).repeat(per_class)
        return {"image": torch.randn(len(labels), *SHAPE, generator=generator) + 0.2 * seed, "label": labels}

    def client(
        self,
        data: dict[str, Tensor] | None = None,
        *,
        state: ClientState | None = None,
        round: int = 1,
        client: int = 0,
        plan: Mapping[str, bool] | None = None,
    ) -> LocalTrainer:
        data = self.data() if data is None else data
        names = tuple(str(c) for c in range(CLASSES))
        fingerprint = Samples({k: v.numpy() for k, v in data.items()}, names).fingerprint
        plan = self.method.plan(round, self.config.federation.rounds) if plan is None else plan
        self.exchanges.enter(plan)
        return LocalTrainer(
            method=self.method,
            data=data,
            state=ClientState() if state is None else state,
            shared=self.shared,
            client=client,
            client_name=str(client),
            examples=len(data["label"]),
            fingerprint=lambda: fingerprint,
            **self._work(round, plan, fingerprint),
        )

    def server(
        self,
        round: int = 0,
        *,
        before: Mapping[str, Tensor] | None = None,
        results: Mapping[int, Mapping[str, Tensor]] | None = None,
    ) -> ServerContext:
        plan = self.method.plan(round, self.config.federation.rounds) if round else {}
        return ServerContext(
            before=before or {},
            after=self.networks.state_dict(),
            shared=self.shared,
            private=self.private,
            data=self.held,
            results=results or {},
            batch_size=self.config.evaluation.batch_size,
            **self._work(round, plan, "held by the server"),
        )

    def prepare(self, *clients: dict[str, Tensor]) -> list[ClientState]:
        """The query before round 1; returns the clients' states."""
        states = [ClientState() for _ in clients]
        answers = {
            i: self.method.prepare(self.client(data, state=state, client=i, round=0, plan={}))
            for i, (data, state) in enumerate(zip(clients, states, strict=True))
        }
        self.method.server_prepare(self.server(results=answers))
        return states

    def weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.networks.state_dict().items()}

    def _work(self, round: int, plan: Mapping[str, Any], data: str) -> dict[str, Any]:
        return {
            "cache": ResultCache(self.folder / "cache", lambda: data, self.config.seed, CPU),
            "task": self.task,
            "networks": self.networks,
            "training": self.config.training,
            "device": CPU,
            "seed": self.config.seed,
            "round": round,
            "rounds": self.config.federation.rounds,
            "plan": plan,
        }


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., Bench]:
    """``bench(lambda_reg=0, training={"lr": 0.1})`` sets FedLGD's settings and other sections."""

    def make(**settings: Any) -> Bench:
        sections = {key: settings.pop(key) for key in ("training", "federation", "model", "seed") if key in settings}
        small = {"ipc_local": 3, "ipc_global": 2, "warmup_steps": 2, "dm_steps": 2, "gm_steps": 3, "real_batch": 5}
        return Bench(tmp_path, {"name": "fedlgd", **small, **settings}, **sections)

    return make


@pytest.fixture
def paper_networks() -> Callable[..., nn.ModuleDict]:
    """``paper_networks("asit", {"audio": ("float32", (192000,))}, classes)``: a paper.yaml's networks without memory.

    Checkpoints are not loaded: ``pretrained=None`` and the like are given as method settings.
    """

    def build(
        name: str,
        columns: Mapping[str, tuple[str, tuple[int, ...]]],
        class_names: Sequence[str] = (),
        *,
        file: str = "paper.yaml",
        vocabulary: Sequence[str] = (),
        **settings: Any,
    ) -> nn.ModuleDict:
        overrides = [f"method.{key}={json.dumps(value)}" for key, value in settings.items()]
        config = load_config(method_folder(name, "method") / file, overrides)
        task = make_task(config, columns, class_names, 4, vocabulary)
        with torch.device("meta"):
            return nn.ModuleDict(make_method(config.method).build(task))

    return build


SMALL_RUN: dict[str, Any] = {
    "method": {
        "name": "fedlgd",
        "ipc_local": 3,
        "ipc_global": 2,
        "warmup_steps": 2,
        "dm_steps": 2,
        "gm_steps": 2,
        "real_batch": 4,
        "spacing": 2,
        "updates": 1,
        "lambda_reg": 1.0,
    },
    "model": {"name": "convnet", "width": 8, "depth": 2},
    "data": {"source": {"name": "shifted_digits", "train_per_class": 5, "test_size": 60}, "partition": ["domain"]},
    "training": {"lr": 0.05, "batch_size": 32},
    "federation": {"rounds": 5},
    "evaluation": {"every": 5},
    "engine": {"name": "inline", "device": "cpu"},
}


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Callable[..., fedlab.Run]]:
    """``runner("pat", SMALL)`` makes ``run("method.csl=false", method=…)``: small runs that share one cache.

    A run that changes nothing is tried beforehand and draws its pictures, others are and do with ``whole=True``.
    """

    def make(name: str, small: Mapping[str, Any], **tracking: Any) -> Callable[..., fedlab.Run]:
        root = tmp_path_factory.mktemp(name)
        places = {"folder": str(root / "runs"), "cache": str(root / "cache")}
        quiet = {**places, "console": "quiet", "tensorboard": False, **tracking}

        def start(*overrides: str, whole: bool = False, **arguments: Any) -> fedlab.Run:
            with nullcontext() if whole or not (overrides or arguments) else shorter():
                return fedlab.run(parse(Config, {**small, "tracking": quiet}), overrides=overrides, **arguments)

        return start

    return make


@pytest.fixture(scope="session")
def run(runner: Callable[..., Callable[..., fedlab.Run]]) -> Callable[..., fedlab.Run]:
    """``run("method.lambda_reg=0", method=…)``: a small run in this process, equal ones sharing their warm-up."""
    return runner("methods", SMALL_RUN)


class Spy(nn.Module):
    """Counts what passes a network's feature extractor."""

    def __init__(self, network: Any, seen: list[tuple[nn.Module, Tensor, bool]]) -> None:
        super().__init__()
        self.network, self.seen = network, seen

    def features(self, x: Tensor) -> Tensor:
        self.seen.append((self.network, x.detach().clone(), torch.is_grad_enabled()))
        features: Tensor = self.network.features(x)
        return features


def _watch(lab: Any, monkeypatch: pytest.MonkeyPatch, random: bool) -> list[tuple[nn.Module, Tensor, bool]]:
    seen: list[tuple[nn.Module, Tensor, bool]] = []
    if random:
        make = type(lab.method)._random_extractor
        monkeypatch.setattr(type(lab.method), "_random_extractor", lambda self, *a, **k: Spy(make(*a, **k), seen))
    else:
        network = lab.networks["model"]
        features = network.features

        def spied(x: Tensor) -> Tensor:
            seen.append((network, x.detach().clone(), torch.is_grad_enabled()))
            result: Tensor = features(x)
            return result

        monkeypatch.setattr(network, "features", spied)
    return seen


@pytest.fixture
def watch() -> Any:
    """(lab, monkeypatch, random) → what passes the extractor from now on: network, images, whether with gradient."""
    return _watch
