"""The contexts: objects that give a method's hooks the facts of a run and the operations that they need."""

from __future__ import annotations

import contextlib
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fedlab.config import TrainingConfig
from fedlab.method.assets import Holding
from fedlab.method.kept import packed, unpacked
from fedlab.method.optimizer import _OPTIMIZER_SETTINGS, NotFiniteError, Optimizer, with_rate
from fedlab.method.state import ClientState
from fedlab.method.timing import Stopwatch
from fedlab.method.types import Batch, Plan, Step, Task
from fedlab.seeding import torch_generator
from fedlab.storage.cache import ResultCache

Placed = TypeVar("Placed", Tensor, nn.Module)


class WorkContext:
    """Operations that hooks on clients and on the server share.

    Args:
        task: facts that a method may depend on, such as the number of classes.
        networks: networks by role, on `device`.
        training: the run's section ``training``, with the changes of `Method.training` for this round.
        device: the device that is computed on.
        seed: the run's seed.
        round: the round, from 1; 0 before the first round.
        rounds: number of rounds of the run.
        plan: the plan of this round; before the first round, the plan of round 1.
        scope: parts that precede the purpose of every random draw, such as ``("client", 3)``.
        cache: cache of results of earlier runs on the same data; None if results are neither looked up nor kept.
        preflight: whether this is the trial before a run. It is meant to find errors, so every loop runs only once.
        holding: what this participant holds of the method's assets.
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
        holding: Holding | None = None,
    ) -> None:
        self.task, self.networks, self.training, self.device = task, networks, training, device
        self.seed, self.round, self.rounds, self.plan = seed, round, rounds, plan
        self.preflight = preflight
        self._scope, self._cache, self._holding = scope, cache, Holding() if holding is None else holding
        self._logged: dict[str, list[float]] = {}
        self._stopwatch = Stopwatch(device)

    @property
    def holds(self) -> tuple[str, ...]:
        """Names of the assets that this client holds, or the server, in the order of `Method.assets`."""
        return self._holding.names

    def asset(self, name: str) -> nn.Module:
        """The network of an asset that is held here, on the device, in evaluation mode and without gradients.

        All clients of a process that hold it get the same object, which must not be changed.

        Args:
            name: one of `holds`.

        Raises:
            FedLabError: it is not held here, or is no network.
        """
        return self._holding.network(name)

    def generator(self, *purpose: str | int) -> torch.Generator:
        """A CPU generator for one purpose.

        Its seed depends on the run's seed, on the client (or the server), on the round and on the purpose.
        """
        return torch_generator(self.seed, *self._scope, self.round, *purpose)

    def cached(
        self, name: str, key: Mapping[str, Any], compute: Callable[[], Mapping[str, Tensor]], *, seeded: bool = True
    ) -> dict[str, Tensor]:
        """The result of `compute`, from the cache if an earlier run has computed it. The tensors are on the CPU.

        A result is used again only if name, data, seed, key, code, version of torch and kind of device are the same.
        The data of a client are its training samples, and those of the server all samples that it holds. Metrics that
        `compute` logs are kept too, so that every run has them.

        Args:
            name: name of what is computed.
            key: settings that the result depends on; they must be serializable as JSON.
            compute: returns the tensors by name.
            seeded: whether the result depends on the run's seed.
        """
        if self._cache is None:
            return {part: value.detach().cpu() for part, value in compute().items()}

        @functools.wraps(compute)
        def computed() -> dict[str, Tensor]:
            before, self._logged = self._logged, {}
            try:
                return packed(compute(), self._logged)
            finally:
                self._logged = before

        result, logged = unpacked(self._cache.get(name, key, computed, seeded=seeded))
        for metric, values in logged.items():
            self._logged.setdefault(metric, []).extend(values)
        return result

    def place(self, value: Placed) -> Placed:
        """Move a tensor or module to the device of this context, and return it."""
        return value.to(self.device)

    def steps(self, count: int) -> Iterator[int]:
        """Yield the numbers of ``range(count)``; in preflight at most the first."""
        yield from range(min(count, 1) if self.preflight else count)

    def iterate(
        self,
        columns: Mapping[str, Tensor],
        batch_size: int | None = None,
        epochs: int = 1,
        *,
        shuffle: str | None = None,
    ) -> Iterator[Batch]:
        """Yield batches of any samples, in preflight only one. `Method.batch_spec` is not used.

        Args:
            columns: samples as tensors of equal length, by name.
            batch_size: samples in a batch; default: ``training.batch_size``.
            epochs: number of passes over the samples.
            shuffle: purpose of the random order, which is a new one in each epoch; None keeps the order.
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
        """Apply `compute` to all samples, batch by batch, and concatenate the results to (n, …), in order.

        In preflight only one batch is computed, and the result of its first sample is repeated for all other samples.

        Args:
            columns: n > 0 samples as tensors of equal length, by name.
            compute: maps a batch of m samples to a tensor (m, …).
            batch_size: samples in a batch; default: ``training.batch_size``.
        """
        found = torch.cat([compute(batch) for batch in self.iterate(columns, batch_size)])
        missing = len(next(iter(columns.values()))) - len(found)
        return torch.cat([found, found[:1].expand(missing, *found.shape[1:])]) if missing else found

    def optimizer(self, params: Iterable[Any], **overrides: Any) -> Optimizer:
        """Make a new optimizer with the settings of the section ``training``, changed by `overrides`.

        Args:
            params: tensors or parameter groups. A group may set its own ``lr``, or an ``lr_factor`` by which the
                learning rate is multiplied, its own ``weight_decay``, and a ``clip_norm`` to which it is clipped alone.
            overrides: ``optimizer``, ``lr``, ``momentum``, ``betas``, ``eps``, ``weight_decay``, ``clip_norm`` or
                ``clip``.

        Raises:
            TypeError: an override has another name.
        """
        if unknown := set(overrides) - _OPTIMIZER_SETTINGS:
            raise TypeError(f"unknown optimizer settings: {sorted(unknown)}")
        settings = {**self.training.model_dump(), **overrides}
        params = [with_rate(group, settings["lr"]) for group in params]
        common = {name: settings[name] for name in ("lr", "weight_decay")}
        clipping = {name: settings[name] for name in ("clip_norm", "clip")}
        if settings["optimizer"] == "sgd":
            return Optimizer(torch.optim.SGD(params, momentum=settings["momentum"], **common), **clipping)
        kind = torch.optim.AdamW if settings["optimizer"] == "adamw" else torch.optim.Adam
        return Optimizer(kind(params, betas=settings["betas"], eps=settings["eps"], **common), **clipping)

    def step(self, terms: Mapping[str, Tensor] | Tensor, optimizer: Optimizer) -> float:
        """Do the backward pass of a loss, clip the gradients and take an optimizer step. Every term is logged.

        Args:
            terms: tensors with one element, by name, whose sum is the loss; or the loss itself.
            optimizer: only its parameters get gradients.

        Returns:
            The value of the loss before the step.

        Raises:
            NotFiniteError: the loss is NaN or infinite; neither gradients nor parameters have been changed.
        """
        named = dict(terms) if isinstance(terms, Mapping) else {"loss": terms}
        total = torch.stack([term.reshape(()) for term in named.values()]).sum()
        value = float(total.detach())
        if not math.isfinite(value):
            raise NotFiniteError(loss_not_finite(self, {name: float(term.detach()) for name, term in named.items()}))
        optimizer.torch.zero_grad(set_to_none=True)
        # Only the optimizer's own parameters get gradients: the double backward of a matching loss reaches the weights
        # of the network as well.
        torch.autograd.backward(total, inputs=[p for p in optimizer.parameters if p.requires_grad])
        self._before_update(optimizer)
        optimizer.clip_gradients()
        optimizer.torch.step()
        for name, term in named.items():
            self.log(name, float(term.detach()))
        return value

    def _before_update(self, optimizer: Optimizer) -> None:
        """Correct the gradients after the backward pass and before clipping, if a federated algorithm does so."""

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """A context manager for ``training.precision``. Forward passes outside `Method.loss` have to enter it."""
        if self.training.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def log(self, name: str, value: float) -> None:
        """Record a value of a metric. The mean of all its values in this round is reported."""
        self._logged.setdefault(name, []).append(float(value))

    def timed(self, name: str) -> contextlib.AbstractContextManager[None]:
        """A context manager that measures the wall time of the work in it.

        The times are in the event ``timing`` of a round, in ``fedlab show`` and in the report. They are no metrics,
        since equal runs take different times.

        Args:
            name: what is done, such as ``gallery``; times of equal names are added up.
        """
        return self._stopwatch.measure(name)

    @property
    def timings(self) -> dict[str, tuple[float, int]]:
        """What `timed` has measured: seconds in all and how often, by name."""
        return self._stopwatch.timings

    @property
    def metrics(self) -> dict[str, float]:
        """The mean of the logged values of each metric, by name."""
        return {name: math.fsum(values) / len(values) for name, values in self._logged.items()}


def loss_not_finite(ctx: WorkContext, terms: Mapping[str, float]) -> str:
    """The error message for a loss that is NaN or infinite, with the values of its terms by name."""
    values = ", ".join(f"{name} = {value}" for name, value in terms.items())
    advice = f"Lower the learning rate (training.lr = {ctx.training.lr}) or set training.clip_norm."
    return f"the loss is not finite in round {ctx.round}: {values}. {advice}"


class FitContext(WorkContext, ABC):
    """A client's part of a round. It has these attributes beside those of `WorkContext`.

    Attributes:
        client: the client's id, from 0.
        client_name: the client's name in the partition.
        data: its training columns, as tensors on the device.
        state: the tensors that the client keeps from round to round and never sends.
        shared: the server's shared tensors, on the device; empty before the first round.
        scratch: objects that are kept for this round only, and are also in ``step.scratch``.
        examples: the client's weight in averages by examples.
        validation: columns of the training samples that the client holds back, for choices such as a threshold; they
            have no samples unless ``data.validation`` asks for them.
        fingerprint: hash of the client's data.
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

    @property
    def validation(self) -> Mapping[str, Tensor]:
        return {}

    @abstractmethod
    def train(self, columns: Mapping[str, Tensor] | None = None) -> None:
        """Run the default training loop: `Method.loss`, an optimizer step and `Method.after_step` for each batch.

        Args:
            columns: samples to train on; default: ``data``.

        Raises:
            FedLabError: there is no parameter to train, or the loss is None.
            NotFiniteError: the loss is NaN or infinite.
        """

    @abstractmethod
    def batches(self, columns: Mapping[str, Tensor] | None = None) -> Iterator[tuple[Batch, Step]]:
        """Yield the batches of local training, each with its `Step`, drawn as `Method.batch_spec` says.

        They are those of ``training.local_epochs`` epochs, or ``training.local_steps`` batches if that is set. There
        are fewer if the server has limited the client's steps in this round, and one in preflight.

        Args:
            columns: samples to draw from; default: ``data``.
        """

    def data_generator(self, *purpose: str | int) -> torch.Generator:
        """A CPU generator seeded from the run's seed, the data and the purpose: equal data make equal draws."""
        return torch_generator(self.seed, "data", self.fingerprint, *purpose)


class ServerContext(WorkContext):
    """The server's part of a round.

    Args:
        before: network state that was sent to the clients in this round, on the device; empty before the first round
            and in an evaluation.
        after: current state of the networks, on the device. In `Method.server_update` it is the aggregated state. The
            tensors are those of ``networks``.
        shared: lasting tensors of which every client gets a copy. A tensor that is assigned, even with equal values, is
            sent to the clients again.
        private: lasting tensors that never leave the server.
        data: columns of each sample set that the server holds, by the set's name, on the device.
        results: tensors that clients sent beside the weights, by client id, on the device.
        batch_size: samples in a batch of evaluation, as on clients: ``evaluation.batch_size``.
        **work: all other arguments of `WorkContext`, except ``scope``.
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
        """Warn of something that puts the result in doubt, such as collapse, in the same words in every round."""
        self.alarms.append(message)
