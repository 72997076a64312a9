"""Training of several clients as one batch: their networks are stacked, and one backward pass yields all gradients.

Everything else is the same as for a client that trains alone: its batches, its dropout masks (on the CPU), its
schedule, the clipping of its gradient and the corrections of federated algorithms. Only the order of floating-point
additions inside matrix products and convolutions differs. Results therefore agree to floating-point tolerance, but not
bit for bit.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedlab.clients.corrections import Correction, Start, requested
from fedlab.clients.functional import MethodLoss
from fedlab.clients.trainer import LocalTrainer
from fedlab.clients.vectorized.dropout import SeparateDropout
from fedlab.config import TrainingConfig
from fedlab.errors import FedLabError
from fedlab.method import Batch, ClientState, Method, NotFiniteError, Optimizer, Plan, Step, loss_not_finite
from fedlab.protocol.effort import Effort

Stack = dict[str, Tensor]


class NotVectorizableError(FedLabError):
    """These clients cannot be trained as one batch."""


def refusal(method: Method, training: TrainingConfig, plan: Plan) -> str | None:
    """The reason why clients cannot be trained as one batch; None if nothing known before the training forbids it.

    Args:
        method: the method.
        training: the training section of the round.
        plan: the plan of the round.
    """
    name = type(method).__name__
    if not method.promises("functional_loss"):
        return f"{name} does not declare functional_loss"
    for hook in ("fit", "after_step", "assets"):
        if method.overrides(hook):
            return f"{name} has a {hook}() of its own"
    if counts_steps(method, training) and method.batch_spec(plan).sampler is not None:
        return f"{name} draws its own batches, so that clients may be at different points of the schedule"
    return None


def counts_steps(method: Method, training: TrainingConfig) -> bool:
    """Whether the optimizer's values depend on a client's number of steps, which must then be equal in a batch."""
    return training.schedule != "constant" or training.warmup_steps > 0 or method.overrides("schedule")


@dataclass
class Fitted:
    """The result of a client's local training.

    Args:
        state: the client state.
        tensors: the network state after training, by name; the network state that is missing here did not change.
        arrays: arrays that the client's part of the federated algorithm sends.
        figures: metrics of the federated algorithm.
        logged: name and value of every term of the loss, in the order of the steps.
        seconds: the duration of the training, divided by the number of clients.
        error: the exception that ended the client's training early; None if there was none.
        effort: counts of the client's steps.
    """

    state: ClientState
    tensors: Stack = field(default_factory=dict)
    arrays: Stack = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    logged: list[tuple[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    error: Exception | None = None
    effort: Effort = field(default_factory=Effort)


class VectorizedClients:
    """Clients that are trained as one batch.

    Args:
        networks: the resident networks, which give structure, modes and the state that is not in `stack`.
        trainers: one for each client.
        generators: one for each client's dropout, with the seed of the client's global generator.
        stack: the network state of all clients that may change in training, (clients, …) by name. Training changes it
            in place.
        averaged: names of the parameters whose gradients federated algorithms correct.
        arrays: network state and other arrays that the server sent.
        settings: the settings that the strategy sent.
    """

    def __init__(
        self,
        networks: nn.ModuleDict,
        trainers: Sequence[LocalTrainer],
        generators: Sequence[torch.Generator],
        stack: Stack,
        averaged: Sequence[str],
        arrays: Mapping[str, np.ndarray],
        settings: Mapping[str, object],
    ) -> None:
        self._networks, self._trainers, self._generators, self._stack = networks, trainers, generators, stack
        self._loss = MethodLoss(networks, trainers[0])
        self._fitted = [Fitted(trainer.state, effort=trainer.effort) for trainer in trainers]
        self._states = _States([trainer.state for trainer in trainers], trainers[0].device)
        parameters = {name: stack[name] for name in averaged}
        self._correction: Correction | None = requested(Start(parameters, arrays, self._states, settings))

    def fit(self) -> list[Fitted]:
        """Do the local training of all clients.

        Returns:
            The results in the order of the trainers. A client whose loss is not finite has an error in it.

        Raises:
            NotVectorizableError: the method, the networks or the batches do not allow it.
        """
        began = time.perf_counter()
        first = self._trainers[0]
        first.set_modes()
        optimizer = self._optimizer(first)
        moved = {name: p for name, p in self._stack.items() if any(p is q for q in optimizer.parameters)}
        batches = [trainer.batches() for trainer in self._trainers]
        active = list(range(len(self._trainers)))
        while active:
            drawn = {row: found for row in active if (found := next(batches[row], None)) is not None}
            self._finish([row for row in active if row not in drawn])
            active = self._step(drawn, optimizer, moved) if drawn else []
        for fitted in self._fitted:
            fitted.seconds = (time.perf_counter() - began) / len(self._fitted)
        return self._fitted

    def _optimizer(self, first: LocalTrainer) -> Optimizer:
        """The run's optimizer for the stacked parameters. All optimizers work elementwise and so keep clients apart."""
        names = {id(p): name for name, p in self._networks.named_parameters()}
        groups = first.trainable_groups()
        strange = [p for group in groups for p in group["params"] if names.get(id(p)) not in self._stack]
        if strange:
            raise NotVectorizableError("param_groups() gives parameters that are none of the networks'")
        if any("clip_norm" in group for group in groups):
            raise NotVectorizableError("param_groups() gives a group a clip_norm of its own")
        stacked = [{**group, "params": [self._stack[names[id(p)]] for p in group["params"]]} for group in groups]
        return first.optimizer(stacked, clip_norm=None)  # a norm over all clients has no meaning

    def _step(self, drawn: Mapping[int, tuple[Batch, Step]], optimizer: Optimizer, moved: Stack) -> list[int]:
        """Take one step with each client that has a batch. Returns the rows of those whose loss is finite."""
        for p in moved.values():
            p.grad = None
        buckets: dict[Any, list[int]] = defaultdict(list)
        for row, (batch, _) in drawn.items():
            buckets[_signature(batch)].append(row)
        going: list[int] = []
        for rows in buckets.values():
            gradients, terms = self._gradients(rows, [drawn[row][0] for row in rows], drawn[rows[0]][1], moved)
            for name, gradient in gradients.items():
                p = moved[name]
                if len(rows) == len(p):
                    p.grad = gradient
                else:
                    p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                    p.grad[rows] = gradient
            going += self._record(rows, terms)
        first = drawn[min(drawn)][1]
        optimizer.set(partial(self._trainers[0].scheduled, first))
        if self._correction is not None:
            self._correction.apply(optimizer.torch)
        self._clip(moved)
        optimizer.torch.step()
        return sorted(going)

    def _gradients(self, rows: list[int], batches: Sequence[Batch], step: Step, moved: Stack) -> tuple[Stack, Stack]:
        """Gradients and loss terms of the clients in `rows`, (clients, …). Their buffers are updated in the stack."""
        whole = len(rows) == len(self._trainers)
        chosen = self._stack if whole else {name: value[rows] for name, value in self._stack.items()}
        batch = {name: torch.stack([b[name] for b in batches]) for name in batches[0]}

        def of_one(trained: Stack, rest: Stack, own: Batch) -> tuple[Tensor, Stack]:
            terms = {name: t.reshape(()) for name, t in self._loss.of({**trained, **rest}, own, step).items()}
            if not terms:
                raise NotVectorizableError("loss() skips a batch")
            return torch.stack([*terms.values()]).sum(), terms

        trained = {name: chosen[name] for name in moved}
        rest = {name: value for name, value in chosen.items() if name not in moved}
        each = torch.func.vmap(torch.func.grad(of_one, has_aux=True), randomness="error")
        with torch.no_grad(), SeparateDropout([self._generators[row] for row in rows]):
            gradients, terms = each(trained, rest, batch)
        if not whole:
            for name, value in rest.items():
                self._stack[name][rows] = value
        return gradients, terms

    def _record(self, rows: Sequence[int], terms: Stack) -> list[int]:
        """Log the loss terms of the clients in `rows`. Returns the rows of those whose loss is finite."""
        table = torch.stack([value.detach().float() for value in terms.values()], dim=1).tolist()
        finite = []
        for row, values in zip(rows, table, strict=True):
            named = dict(zip(terms, values, strict=True))
            if math.isfinite(sum(values)):
                finite.append(row)
                self._fitted[row].logged += named.items()
            else:
                self._fitted[row].error = NotFiniteError(loss_not_finite(self._trainers[row], named))
        return finite

    def _clip(self, moved: Stack) -> None:
        """Clip each client's gradient to ``training.clip_norm``, as `Optimizer.clip_gradients` does for one client."""
        training = self._trainers[0].training
        if training.clip_norm is None:
            return
        flat = [p.grad.flatten(1) for p in moved.values() if p.grad is not None]
        norms = [torch.linalg.vector_norm(g, dim=1) for g in flat]
        if training.clip == "global":
            norms = [torch.linalg.vector_norm(torch.stack(norms), dim=0)] * len(flat)
        for gradient, norm in zip(flat, norms, strict=True):
            gradient.mul_((training.clip_norm / (norm + 1e-6)).clamp(max=1.0)[:, None])  # clip_grad_norm_ adds 1e-6 too

    def _finish(self, rows: Sequence[int]) -> None:
        """Copy the state of clients that have taken their last step, because later steps still change their rows."""
        if not rows:
            return
        self._states.rows = rows
        arrays, figures = self._correction.finish() if self._correction is not None else ({}, {})
        for row in rows:
            fitted = self._fitted[row]
            fitted.tensors = {name: value[row].clone() for name, value in self._stack.items()}
            fitted.arrays, fitted.figures = {name: value[row].clone() for name, value in arrays.items()}, dict(figures)


class _States(ClientState):
    """The states of several clients, stacked.

    A tensor that a client lacks is zero, as in the corrections. Assigning a tensor changes only the clients in `rows`.
    """

    def __init__(self, states: Sequence[ClientState], device: torch.device) -> None:
        super().__init__(device=device)
        self._states = states
        self.rows: Sequence[int] = ()

    def __contains__(self, name: object) -> bool:
        return any(name in state for state in self._states)

    def __getitem__(self, name: str) -> Tensor:
        like = next(state[name] for state in self._states if name in state)
        return torch.stack([state[name] if name in state else torch.zeros_like(like) for state in self._states])

    def __setitem__(self, name: str, value: Tensor) -> None:
        for row in self.rows:
            self._states[row][name] = value[row]


def _signature(batch: Batch) -> tuple[tuple[str, torch.Size, torch.dtype], ...]:
    """Names, shapes and dtypes of a batch. Batches that agree in them can be stacked."""
    for name, value in batch.items():
        if not isinstance(value, Tensor):
            raise NotVectorizableError(f"a batch's {name!r} is a {type(value).__name__}, no tensor")
    return tuple((name, value.shape, value.dtype) for name, value in batch.items())
