"""The client half of federated algorithms: changes to local steps, whatever the method."""

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
    """Where a client's round begins.

    Args:
        parameters: parameters that are trained and averaged, by state name, holding the received values.
        arrays: all arrays that came with the message.
        state: the client's lasting tensors.
        settings: the strategy's settings.
    """

    parameters: Mapping[str, Tensor]
    arrays: Mapping[str, np.ndarray]
    state: ClientState
    settings: Mapping[str, object]

    def number(self, key: str) -> float:
        """A numeric setting, 0 where the strategy sent none."""
        value = self.settings.get(key, 0.0)
        return float(value) if isinstance(value, int | float) else 0.0


class Correction:
    """Base of all client halves.

    Args:
        start: where the round begins.
    """

    def __init__(self, start: Start) -> None:
        self.start = start
        self.names = {id(p): name for name, p in start.parameters.items()}
        self.received = {name: p.detach().clone() for name, p in start.parameters.items()}

    def apply(self, optimizer: torch.optim.Optimizer) -> None:
        """Change gradients between backward and the optimizer's step; called for every step of every optimizer."""

    def finish(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Arrays to send, in place of the network state of the same name or beside it, and metrics."""
        return {}, {}

    def _trained(self, optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor, Tensor, float, float]]:
        """(name, parameter, gradient, lr, momentum) of those that are stepped now and count for the algorithm."""
        return [
            (self.names[id(p)], p, p.grad, float(group["lr"]), float(group.get("momentum", 0.0)))
            for group in optimizer.param_groups
            for p in group["params"]
            if id(p) in self.names and p.grad is not None
        ]


class Proximal(Correction):
    """FedProx: the gradient of (μ/2)·‖w − x‖², x the received weights (Li et al. 2020, eq. 2)."""

    @torch.no_grad()
    def apply(self, optimizer: torch.optim.Optimizer) -> None:
        mu = self.start.number("proximal-mu")
        for name, p, gradient, _, _ in self._trained(optimizer):
            gradient.add_(p - self.received[name], alpha=mu)


class _StepWeights:
    """With which weight A the round's gradients enter x − y, for SGD: Σ over steps of η, momentum and decay included.

    Under a constant gradient g the weights are at x − A·g after some steps, so that a proximal term μ adds −μ·A·g to
    the next gradient, and momentum ρ carries that on like the rest: b ← ρ·b + 1 − μ·A, then A ← A + η·b. This gives
    η·τ for plain SGD, η·‖a‖₁ of FedNova with momentum or with a proximal term (Wang et al. 2020, §4), and the right
    value for both together and where η follows a schedule.

    Args:
        mu: μ of a proximal term in the local objective.
    """

    def __init__(self, mu: float = 0.0) -> None:
        self._mu = mu
        self._buffer: dict[str, float] = {}
        self.total: dict[str, float] = {}

    def step(self, name: str, lr: float, momentum: float) -> None:
        """A step of one parameter."""
        before, carried = self.total.get(name, 0.0), momentum * self._buffer.get(name, 0.0) + 1
        self._buffer[name] = carried - self._mu * before
        self.total[name] = (1 - lr * self._mu) * before + lr * carried


class Nova(Proximal):
    """FedNova: the update divided by the weight of its steps (Wang et al. 2020, eq. 9), with optional proximal term."""

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

    Steps use g − c_i + c; afterwards c_i⁺ = c_i − c + (x − y)/A, A the weight of the steps (τη for plain SGD), and
    c_i⁺ − c_i is sent.
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
            if weight:  # a parameter that took no step has nothing to say about its gradient
                new = new - self._server[name] + (self.received[name] - p) / weight
            change[f"{CONTROL}{name}"] = new - self._own[name]
            self.start.state[f"{CONTROL}{name}"] = new
        return change, {}


class Dynamic(Correction):
    """FedDyn: the gradient of −⟨h_i, w⟩ + (α/2)·‖w − x‖², then h_i ← h_i − α(y − x) (Acar et al. 2021, algorithm 1)."""

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
    """The client half that the strategy asks for in a round's configuration.

    Raises:
        FedLabError: an algorithm this client does not know.
    """
    name = start.settings.get(ALGORITHM)
    if name is None:
        return Proximal(start) if start.number("proximal-mu") > 0 else None
    if name not in _ALGORITHMS:
        raise FedLabError(f"the server asks for the algorithm {name!r}; this client knows {sorted(_ALGORITHMS)}")
    return _ALGORITHMS[str(name)](start)
