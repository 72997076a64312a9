"""The local training loop: batches, schedules and corrections of gradients. It is the same for all methods."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from fedlab.clients.corrections import Correction
from fedlab.config import TrainingConfig
from fedlab.distill.schedules import cosine
from fedlab.errors import FedLabError
from fedlab.method import Batch, ClientState, FitContext, Method, Optimizer, Step
from fedlab.protocol.effort import NO_SAMPLES, NOT_FULL, TOO_FEW, Effort


def schedule_factor(training: TrainingConfig, step: int, total: int) -> float:
    """Factor of the learning rate at a step of the run: linear warm-up, then constant or falling to zero.

    Args:
        training: the training section, which names the schedule and the number of warm-up steps.
        step: the step, counted from 0 over the whole run.
        total: number of steps of the whole run.
    """
    if step < training.warmup_steps:
        return (step + 1) / training.warmup_steps
    if training.schedule == "constant":
        return 1.0
    done = (step - training.warmup_steps) / max(1, total - training.warmup_steps)
    done = min(1.0, done)
    return 1 - done if training.schedule == "linear" else cosine(done, 1)


class LocalTrainer(FitContext):
    """The `FitContext` of one client in one round, with the client's data in memory.

    Args:
        method: the method whose loss is minimized.
        data: the columns of the training samples, on the device.
        state: the client state.
        shared: tensors received from the server, on the device.
        client: FedLab's client id.
        client_name: name of the client in the partition.
        examples: weight of the client in averages.
        fingerprint: computes the hash of the client's data.
        evaluating: roles that are not trained and therefore stay in evaluation mode.
        max_steps: largest number of batches over all calls of `batches`; None sets no limit. Schedules of the learning
            rate do not depend on it.
        validation: returns the columns of the training samples that the client holds back.
        augment: changes the images of training batches at random; None leaves them as they are.
        work: the arguments of `WorkContext`, except ``scope``.

    The attribute ``correction`` is the client's part of a federated algorithm; None is plain local training. The
    attribute ``effort`` counts the steps, ``other_steps`` those of a whole round that are on samples other than the
    client's own, which rehearsals need to know.
    """

    def __init__(
        self,
        *,
        method: Method,
        data: dict[str, Tensor],
        state: ClientState,
        shared: Mapping[str, Tensor],
        client: int,
        client_name: str,
        examples: int,
        fingerprint: Callable[[], str],
        evaluating: Sequence[str] = (),
        max_steps: int | None = None,
        validation: Callable[[], Mapping[str, Tensor]] = dict,
        augment: Callable[[Batch, torch.Generator], Batch] | None = None,
        **work: Any,
    ) -> None:
        super().__init__(scope=("client", client), **work)
        self._validation, self._augment = validation, augment
        self.method, self.data, self.state, self.shared = method, data, state, shared
        self.client, self.client_name, self.examples, self._fingerprint = client, client_name, examples, fingerprint
        self.scratch = {}
        self._evaluating = evaluating
        self._calls = 0
        self._left = math.inf if max_steps is None else max_steps
        self.correction: Correction | None = None
        self.effort = Effort()
        self.other_steps: int | None = None

    @cached_property
    def fingerprint(self) -> str:  # few methods use it, and hashing takes longer than a step
        return self._fingerprint()

    @cached_property
    def validation(self) -> Mapping[str, Tensor]:  # few methods use it, and a GPU has to receive it
        return self._validation()

    def train(self, columns: Mapping[str, Tensor] | None = None) -> None:
        optimizer = self.optimizer(self.trainable_groups())
        self.set_modes()
        for batch, step in self.batches(columns):
            optimizer.set(partial(self.scheduled, step))
            if self._descend(batch, step, optimizer):
                self.method.after_step(self.networks, step)

    def _descend(self, batch: Batch, step: Step, optimizer: Optimizer) -> bool:
        """Take a step on a batch. Returns False if the method skips the batch, that is, its loss has no terms."""
        with self.autocast():
            terms = self.method.loss(self.networks, batch, step)
        if terms is None:
            raise FedLabError(
                f"{type(self.method).__name__}.loss() returned None in round {self.round}: "
                "return the named terms of the loss, or {} to skip the batch"
            )
        if terms:
            self.step(terms, optimizer)
        else:
            self.effort.skipped += 1
        return bool(terms)

    def set_modes(self) -> None:
        """Put the networks into training mode, except the roles that are not trained and what the method changes."""
        self.networks.train()
        for role in self._evaluating:
            self.networks[role].eval()
        self.method.set_modes(self.networks, self.plan)

    def trainable_groups(self) -> list[dict[str, Any]]:
        """The method's parameter groups.

        Raises:
            FedLabError: no parameter in them requires a gradient.
        """
        groups = self.method.param_groups(self.networks, self.plan)
        if not any(p.requires_grad for group in groups for p in group["params"]):
            raise FedLabError(
                f"{type(self.method).__name__} has nothing to train in round {self.round}: "
                "param_groups() gave no parameter that requires a gradient; see exchange()"
            )
        return groups

    def scheduled(self, step: Step, group: Mapping[str, Any]) -> Mapping[str, float]:
        """Values that the optimizer uses for a parameter group in a step, such as ``lr``.

        They are those of `Method.schedule`. If these have no ``lr``, the group's learning rate follows
        ``training.schedule``.
        """
        own = self.method.schedule(step, group)
        if "lr" in own:
            return own
        return {"lr": group["lr"] * schedule_factor(self.training, step.global_step, step.total_steps), **own}

    def _before_update(self, optimizer: Optimizer) -> None:
        if self.correction is not None:
            self.correction.apply(optimizer.torch)

    def batches(self, columns: Mapping[str, Tensor] | None = None) -> Iterator[tuple[Batch, Step]]:
        columns = self.data if columns is None else columns
        spec = self.method.batch_spec(self.plan)
        sampler = spec.sampler or self._shuffled
        call, self._calls = self._calls, self._calls + 1
        limit = 1 if self.preflight else self.training.local_steps
        per_round, index = self.training.local_steps, 0
        for epoch in range(self.training.local_epochs) if limit is None else itertools.count():
            generator = self.generator("batches", call, epoch)
            drawn = list(sampler(columns, self.training.batch_size, generator))
            if per_round is None:
                per_round = len(drawn) * self.training.local_epochs
                if _length(columns) != _length(self.data):
                    self.other_steps = (self.other_steps or 0) + per_round
            for indices in drawn:
                if self._left <= 0:
                    return
                self._left -= 1
                batch: Batch = {name: values[indices.to(values.device)] for name, values in columns.items()}
                batch = self._augmented(batch, call, index)
                if spec.collate is not None:
                    batch = spec.collate(batch, generator)
                self.effort.batches += 1
                yield batch, self._step(epoch, index, per_round)
                index += 1
                if limit is not None and index >= limit:
                    return
            if not drawn:  # fewer samples than the sampler needs for one batch
                self.effort.missing += max(0, (per_round if limit is None else limit) - index)
                self.effort.reason = _why_none(columns, spec.sampler is None)
                return

    def _augmented(self, batch: Batch, call: int, index: int) -> Batch:
        # a generator of its own, so that the batches are the same with and without augmentation
        augment = self._augment
        return batch if augment is None else augment(batch, self.generator("augment", call, index))

    def _step(self, epoch: int, index: int, per_round: int) -> Step:
        return Step(
            round=self.round,
            epoch=epoch,
            index=index,
            per_round=per_round,
            global_step=(self.round - 1) * per_round + index,
            total_steps=self.rounds * per_round,
            plan=self.plan,
            shared=self.shared,
            scratch=self.scratch,
            log=self.log,
            holds=self.holds,
            asset=self.asset,
        )

    def _shuffled(self, columns: Mapping[str, Tensor], batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        order = torch.randperm(_length(columns), generator=generator)
        for indices in torch.split(order, batch_size) if len(order) else ():
            if len(indices) == batch_size or not self.training.drop_last:
                yield indices


def _length(columns: Mapping[str, Tensor]) -> int:
    return len(next(iter(columns.values()), ()))


def _why_none(columns: Mapping[str, Tensor], shuffled: bool) -> str:
    """The reason why no batch could be drawn from these samples."""
    if not _length(columns):
        return NO_SAMPLES
    return NOT_FULL if shuffled else TOO_FEW
