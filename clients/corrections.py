"""The client's part of federated algorithms: it changes the gradients of local steps, whatever the method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedlab.errors import FedLabError
from fedlab.method import ClientState
from fedlab.protocol.messages import ALGORITHM, CONTROL, STEP_WEIGHT


@dataclass(frozen=True)
class Start:
    """What a client starts its round from.

    Args:
        parameters: the parameters that are trained and averaged, by name; they hold the received values.
        arrays: all arrays of the message.
        state: the client state.
        settings: the settings that the strategy sent.
    """

    parameters: Mapping[str, Tensor]
    arrays: Mapping[str, np.ndarray]
    state: ClientState
    settings: Mapping[str, object]

    def number(self, key: str) -> float:
        """The value of a numeric setting; 0 if the strategy did not send it or if it is not a number."""
        value = self.settings.get(key, 0.0)
        return float(value) if isinstance(value, int | float) else 0.0


class Correction:
    """Base of the client's parts of all algorithms.

    Args:
        start: what the client starts its round from.
    """

    def __init__(self, start: Start) -> None:
        self.start = start
        self.names = {id(p): name for name, p in start.parameters.items()}
        self.received = {name: p.detach().clone() for name, p in start.parameters.items()}

    def apply(self, optimizer: torch.optim.Optimizer) -> None:
        """Change the gradients in place, before they are clipped. It is called before each step of each optimizer."""

    def finish(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Arrays to send, and metrics. An array replaces the network state of the same name or is sent in addition."""
        return {}, {}

    def _trained(self, optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor, Tensor, float, float]]:
        """(name, parameter, gradient, lr, momentum) of the averaged parameters that the optimizer will change."""
        return [
            (self.names[id(p)], p, p.grad, float(group["lr"]), float(group.get("momentum", 0.0)))
            for group in optimizer.param_groups
            for p in group["params"]
            if id(p) in self.names and p.grad is not None
        ]


class Proximal(Correction):
    """FedProx: adds the gradient of (μ/2)·‖w − x‖², where x are the received weights (Li et al. 2020, eq. 2)."""

    @torch.no_grad()
    def apply(self, optimizer: torch.optim.Optimizer) -> None:
        mu = self.start.number("proximal-mu")
        for name, p, gradient, _, _ in self._trained(optimizer):
            gradient.add_(p - self.received[name], alpha=mu)


class _StepWeights:
    """The weight A with which the gradients of a round enter the update x − y of SGD, for each parameter.

    A is defined by a constant gradient g, under which the weights are x − A·g after the steps taken so far. A proximal
    term with factor μ then adds −μ·A·g to the next gradient, and momentum ρ accumulates this like the rest of the
    gradient. Each step with learning rate η therefore sets b ← ρ·b + 1 − μ·A, then A ← A + η·b. The result is η·τ for
    τ steps of plain SGD, and η·‖a‖₁ of FedNova with momentum or with a proximal term (Wang et al. 2020, §4). It also
    holds for both together and for a learning rate that changes. Weight decay counts as part of the gradient.

    Args:
        mu: factor μ of a proximal term in the local objective.
    """

    def __init__(self, mu: float = 0.0) -> None:
        self._mu = mu
        self._buffer: dict[str, float] = {}
        self.total: dict[str, float] = {}

    def step(self, name: str, lr: float, momentum: float) -> None:
        """Count a step of the parameter `name`."""
        before, carried = self.total.get(name, 0.0), momentum * self._buffer.get(name, 0.0) + 1
        self._buffer[name] = carried - self._mu * before
        self.total[name] = (1 - lr * self._mu) * before + lr * carried


class Nova(Proximal):
    """FedNova (Wang et al. 2020, eq. 9), with an optional proximal term.

    The client sends its update divided by the weight A of its steps, (x − y)/A, in place of its weights; zeros if it
    took no step. `finish` raises FedLabError if parameters took steps of different weights.
    """

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self._weights = _StepWeights(start.number("proximal-mu"))

    def apply(self, optimizer: torch.optim.Optimizer) -> None:
        super().apply(optimizer)
        for name, _, _, lr, momentum in self._trained(optimizer):
            self._weights.step(name, lr, momentum)

    @torch.no_grad()
    def finish(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        weights = set(self._weights.total.values())
        if len(weights) > 1:
            raise FedLabError(
                "FedNova scales a client's whole update by one number, but its parameters took steps of different "
                f"weights ({min(weights):g} to {max(weights):g}): give all parameter groups one learning rate"
            )
        weight = weights.pop() if weights else 0.0
        update = {
            name: (self.received[name] - p) / weight if weight else torch.zeros_like(p)
            for name, p in self.start.parameters.items()
        }
        return update, {STEP_WEIGHT: weight}


class Scaffold(Correction):
    """SCAFFOLD with control variates of option II (Karimireddy et al. 2020, algorithm 1).

    Local steps use the gradient g − c_i + c. After them the client sets c_i⁺ = c_i − c + (x − y)/A, where A is the
    weight of its steps (τη for τ steps of plain SGD), and sends c_i⁺ − c_i beside its weights.
    """

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self._weights = _StepWeights()
        self._server = {
            name: torch.from_numpy(np.array(start.arrays[f"{CONTROL}{name}"])).to(p.device)
            for name, p in start.parameters.items()
        }
        self._own = {
            name: start.state[f"{CONTROL}{name}"] if f"{CONTROL}{name}" in start.state else torch.zeros_like(p)
            for name, p in self.received.items()
        }

    @torch.no_grad()
    def apply(self, optimizer: torch.optim.Optimizer) -> None:
        for name, _, gradient, lr, momentum in self._trained(optimizer):
            gradient.add_(self._server[name] - self._own[name])
            self._weights.step(name, lr, momentum)

    @torch.no_grad()
    def finish(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        change = {}
        for name, p in self.start.parameters.items():
            weight = self._weights.total.get(name)
            new = self._own[name]
            if weight:  # without a step there is no estimate of the gradient
                new = new - self._server[name] + (self.received[name] - p) / weight
            change[f"{CONTROL}{name}"] = new - self._own[name]
            self.start.state[f"{CONTROL}{name}"] = new
        return change, {}


class Dynamic(Correction):
    """FedDyn (Acar et al. 2021, algorithm 1).

    Local steps add the gradient of −⟨h_i, w⟩ + (α/2)·‖w − x‖², where x are the received weights. After them the client
    sets h_i ← h_i − α(y − x), where y are its trained weights, and keeps h_i for its next round.
    """

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self._alpha = start.number("alpha")
        self._own = {
            name: start.state[f"dynamic/{name}"] if f"dynamic/{name}" in start.state else torch.zeros_like(p)
            for name, p in self.received.items()
        }

    @torch.no_grad()
    def apply(self, optimizer: torch.optim.Optimizer) -> None:
        for name, p, gradient, _, _ in self._trained(optimizer):
            gradient.add_(p - self.received[name], alpha=self._alpha).sub_(self._own[name])

    @torch.no_grad()
    def finish(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        for name, p in self.start.parameters.items():
            self.start.state[f"dynamic/{name}"] = self._own[name] - self._alpha * (p - self.received[name])
        return {}, {}


_ALGORITHMS: dict[str, Callable[[Start], Correction]] = {"fednova": Nova, "scaffold": Scaffold, "feddyn": Dynamic}


def requested(start: Start) -> Correction | None:
    """The correction that the strategy asks for in the settings it sent; None for plain local training.

    Raises:
        FedLabError: the client does not know the algorithm.
    """
    name = start.settings.get(ALGORITHM)
    if name is None:
        return Proximal(start) if start.number("proximal-mu") > 0 else None
    if name not in _ALGORITHMS:
        raise FedLabError(f"the server asks for the algorithm {name!r}; this client knows {sorted(_ALGORITHMS)}")
    return _ALGORITHMS[str(name)](start)
