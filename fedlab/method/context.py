"""What a method's hooks get to work with: verbs and facts, never plumbing."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fedlab.config import TrainingConfig
from fedlab.method.optimizer import _OPTIMIZER_SETTINGS, NotFiniteError, Optimizer
from fedlab.method.state import ClientState
from fedlab.method.types import Batch, Plan, Step, Task
from fedlab.seeding import torch_generator
from fedlab.storage.cache import ResultCache

Placed = TypeVar("Placed", Tensor, nn.Module)


class WorkContext:
    """Verbs shared by client and server work.

    Args:
        task: facts about the job.
        networks: networks by role, on `device`.
        training: the run's training section.
        device: where work happens.
        seed: the run's seed.
        round: federated round, 0 before the first.
        rounds: rounds of the run.
        plan: what this round asks for; before the first round, what that will ask for.
        scope: purpose prefix of every draw, e.g. ``("client", 3)``.
        cache: results of earlier runs on the same data; None keeps nothing.
        preflight: loops run once only; the point is to meet errors, not to train.
    """

    def __init__(
        self,
        *,
        task: Task,
        networks: nn.ModuleDict,
        training: TrainingConfig,
        device: torch.device,
        seed: int,
        round: int,
        rounds: int,
        plan: Plan,
        scope: tuple[str | int, ...],
        cache: ResultCache | None = None,
        preflight: bool = False,
    ) -> None:
        self.task, self.networks, self.training, self.device = task, networks, training, device
        self.seed, self.round, self.rounds, self.plan = seed, round, rounds, plan
        self.preflight = preflight
        self._scope, self._cache = scope, cache
        self._logged: dict[str, list[float]] = {}

    def generator(self, *purpose: str | int) -> torch.Generator:
        """A CPU generator for one purpose, a function of (seed, this client or server, round, purpose)."""
        return torch_generator(self.seed, *self._scope, self.round, *purpose)

    def cached(
        self, name: str, key: Mapping[str, Any], compute: Callable[[], Mapping[str, Tensor]], *, seeded: bool = True
    ) -> dict[str, Tensor]:
        """`compute()`, or its result from an earlier run with the same name, data, seed, key and code; on the CPU.

        A client's data are its training samples, the server's all the samples it holds.

        Args:
            name: what is computed.
            key: JSON-able settings the result depends on.
            compute: makes the tensors.
            seeded: whether the result depends on the run's seed.
        """
        if self._cache is None:
            return {part: value.detach().cpu() for part, value in compute().items()}
        return self._cache.get(name, key, compute, seeded=seeded)

    def place(self, value: Placed) -> Placed:
        """A tensor or module on the device of this work."""
        return value.to(self.device)

    def steps(self, count: int) -> Iterator[int]:
        """``range(count)``; a single step in preflight."""
        yield from range(min(count, 1) if self.preflight else count)

    def iterate(
        self,
        columns: Mapping[str, Tensor],
        batch_size: int | None = None,
        epochs: int = 1,
        *,
        shuffle: str | None = None,
    ) -> Iterator[Batch]:
        """Plain batches of any samples: passes over a memory bank, training on the server. A single one in preflight.

        Args:
            columns: tensors of one length.
            batch_size: default: the run's ``training.batch_size``.
            epochs: passes.
            shuffle: purpose of the draws; None keeps the order.
        """
        size, count = batch_size or self.training.batch_size, len(next(iter(columns.values()), ()))
        for epoch in range(epochs):
            purpose = ("iterate", shuffle or "", epoch)
            order = None if shuffle is None else torch.randperm(count, generator=self.generator(*purpose))
            for start in range(0, count, size):
                part = slice(start, start + size)
                yield {
                    name: values[part] if order is None else values[order[part].to(values.device)]
                    for name, values in columns.items()
                }
                if self.preflight:
                    return

    def computed(
        self, columns: Mapping[str, Tensor], compute: Callable[[Batch], Tensor], batch_size: int | None = None
    ) -> Tensor:
        """What `compute` makes of every sample, (n, …) in the samples' order; it is given them in plain batches.

        In preflight a single batch is computed, and its first sample stands for all that are left out.

        Args:
            columns: tensors of one length.
            compute: a batch of m samples → (m, …).
            batch_size: default: the run's ``training.batch_size``.
        """
        found = torch.cat([compute(batch) for batch in self.iterate(columns, batch_size)])
        missing = len(next(iter(columns.values()))) - len(found)
        return torch.cat([found, found[:1].expand(missing, *found.shape[1:])]) if missing else found

    def optimizer(self, params: Iterable[Any], **overrides: Any) -> Optimizer:
        """A fresh optimizer: the run's training section, changed by `overrides`.

        Args:
            params: tensors or parameter groups, which may set their own ``lr`` and ``weight_decay``.
            overrides: ``optimizer``, ``lr``, ``momentum``, ``betas``, ``eps``, ``weight_decay``, ``clip_norm``,
                ``clip``.
        """
        if unknown := set(overrides) - _OPTIMIZER_SETTINGS:
            raise TypeError(f"unknown optimizer settings: {sorted(unknown)}")
        settings = {**self.training.model_dump(), **overrides}
        common = {name: settings[name] for name in ("lr", "weight_decay")}
        clipping = {name: settings[name] for name in ("clip_norm", "clip")}
        if settings["optimizer"] == "sgd":
            return Optimizer(torch.optim.SGD(params, momentum=settings["momentum"], **common), **clipping)
        kind = torch.optim.AdamW if settings["optimizer"] == "adamw" else torch.optim.Adam
        return Optimizer(kind(params, betas=settings["betas"], eps=settings["eps"], **common), **clipping)

    def step(self, terms: Mapping[str, Tensor] | Tensor, optimizer: Optimizer) -> float:
        """Backward, clip and one optimizer step on the sum of `terms`; returns its value and logs every term.

        Raises:
            NotFiniteError: the loss is NaN or infinite; nothing has been changed.
        """
        named = dict(terms) if isinstance(terms, Mapping) else {"loss": terms}
        total = torch.stack([term.reshape(()) for term in named.values()]).sum()
        value = float(total.detach())
        if not math.isfinite(value):
            raise NotFiniteError(loss_not_finite(self, {name: float(term.detach()) for name, term in named.items()}))
        optimizer.torch.zero_grad(set_to_none=True)
        # only what this optimizer moves: a matching loss also reaches network weights through its double backward
        torch.autograd.backward(total, inputs=[p for p in optimizer.parameters if p.requires_grad])
        self._before_update(optimizer)
        optimizer.clip_gradients()
        optimizer.torch.step()
        for name, term in named.items():
            self.log(name, float(term.detach()))
        return value

    def _before_update(self, optimizer: Optimizer) -> None:
        """Hook for gradient corrections."""

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision as configured; wrap forward passes written outside `Method.loss` in it."""
        if self.training.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def log(self, name: str, value: float) -> None:
        """Record a value; the round's mean of each name is reported."""
        self._logged.setdefault(name, []).append(float(value))

    @property
    def metrics(self) -> dict[str, float]:
        """Mean of every logged name."""
        return {name: math.fsum(values) / len(values) for name, values in self._logged.items()}


def loss_not_finite(ctx: WorkContext, terms: Mapping[str, float]) -> str:
    """What to tell of a loss that is NaN or infinite."""
    values = ", ".join(f"{name} = {value}" for name, value in terms.items())
    advice = f"Lower the learning rate (training.lr = {ctx.training.lr}) or set training.clip_norm."
    return f"the loss is not finite in round {ctx.round}: {values}. {advice}"


class FitContext(WorkContext, ABC):
    """A client's round. Attributes beside those of `WorkContext`:

    ``client`` and ``client_name``: who this is; ``data``: its training columns as tensors on the device; ``state``:
    its lasting tensors; ``shared``: tensors received from the server, on the device; ``scratch``: objects that live for
    this round, which `Method.loss` and `after_step` see; ``examples``: its weight; ``fingerprint``: hash of its data.
    """

    client: int
    client_name: str
    data: dict[str, Tensor]
    state: ClientState
    shared: Mapping[str, Tensor]
    scratch: dict[str, Any]
    examples: int

    @property
    @abstractmethod
    def fingerprint(self) -> str: ...

    @abstractmethod
    def train(self, columns: Mapping[str, Tensor] | None = None) -> None:
        """The default loop: `Method.loss` and `after_step` over `batches` with the run's optimizer.

        Args:
            columns: samples to train on instead of ``data``.
        """

    @abstractmethod
    def batches(self, columns: Mapping[str, Tensor] | None = None) -> Iterator[tuple[Batch, Step]]:
        """Batches of ``training.local_epochs`` epochs over `columns` (default ``data``), in the method's own way."""

    def data_generator(self, *purpose: str | int) -> torch.Generator:
        """A CPU generator that depends on the data, not on who holds it: equal data, equal draws."""
        return torch_generator(self.seed, "data", self.fingerprint, *purpose)


class ServerContext(WorkContext):
    """The server's part of a round.

    Args:
        before: state sent to the clients in this round, on the device.
        after: aggregated state, on the device; ``networks`` hold it too.
        shared: lasting tensors of which every client has a copy; one that is assigned is sent again.
        private: lasting tensors that never leave the server.
        data: columns of the sample sets the server holds, by name, on the device.
        results: what clients sent beside the weights, by client id.
        batch_size: of evaluation, as clients have it: the run's ``evaluation.batch_size``.
    """

    def __init__(
        self,
        *,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        shared: MutableMapping[str, Tensor],
        private: MutableMapping[str, Tensor],
        data: Mapping[str, Mapping[str, Tensor]],
        results: Mapping[int, Mapping[str, Tensor]],
        batch_size: int,
        **work: Any,
    ) -> None:
        super().__init__(scope=("server",), **work)
        self.batch_size = batch_size
        self.before, self.after, self.shared, self.private = before, after, shared, private
        self.data, self.results, self.alarms = data, results, list[str]()

    def alarm(self, message: str) -> None:
        """Tell, in words that do not change from round to round, of what puts the result in doubt, such as collapse."""
        self.alarms.append(message)


class EvaluationContext(WorkContext):
    """A client's evaluation.

    Args:
        data: the client's test columns as tensors on the device.
        train_data: makes its training columns, for probes and nearest neighbors.
        state: the client's lasting tensors; changes are not kept.
        batch_size: samples per forward pass.
    """

    def __init__(
        self,
        *,
        data: Mapping[str, Tensor],
        train_data: Callable[[], Mapping[str, Tensor]],
        state: Mapping[str, Tensor],
        batch_size: int,
        **work: Any,
    ) -> None:
        super().__init__(**work)
        self.data, self.train_data, self.state, self.batch_size = data, train_data, state, batch_size

    def batches(self) -> Iterator[Batch]:
        """Test samples in order."""
        return self.iterate(self.data, self.batch_size)

    def classification(self, predict: Callable[[Batch], Tensor]) -> Mapping[str, np.ndarray]:
        """Confusion matrix and loss sum of `predict`, which returns logits (n, K)."""
        from fedlab.metrics import Classification

        metric = Classification(self.task.num_classes)
        for batch in self.batches():
            with self.autocast():
                logits = predict(batch)
            metric.update(logits.float(), batch["label"])
        return metric.state()


@dataclass(frozen=True, kw_only=True)
class FigureContext:
    """What `Method.figures` may look at.

    Args:
        task: facts about the job.
        round: rounds finished.
        shared: the server's tensors that clients have a copy of.
        client_names: one per client.
        networks: the server's networks by role, in evaluation mode.
        data: columns of the sample sets the server holds, by name, on the device of the networks.
        client_state: a simulated client's own state read from its disk, or None: a deployed node shows nothing.
        client_test: a simulated client's test columns, on the device of the networks, or None likewise.
        denormalize: normalized images (n, C, H, W) → [0, 1].
        seed: the run's seed.
        private: the server's tensors that never leave it.
        batch_size: of evaluation, the run's ``evaluation.batch_size``.
    """

    task: Task
    round: int
    shared: Mapping[str, Tensor]
    networks: nn.ModuleDict
    data: Mapping[str, Mapping[str, Tensor]]
    client_names: Sequence[str]
    client_state: Callable[[int], Mapping[str, Tensor] | None]
    client_test: Callable[[int], Mapping[str, Tensor] | None]
    denormalize: Callable[[Tensor], Tensor]
    seed: int
    batch_size: int
    private: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def when(self) -> str:
        """When the pictures are drawn, for their titles: ``before round 1``, ``after round 7``."""
        return f"after round {self.round}" if self.round else "before round 1"

    def generator(self, *purpose: str | int) -> torch.Generator:
        """A CPU generator for one purpose, a function of (seed, round, purpose)."""
        return torch_generator(self.seed, "figures", self.round, *purpose)
