"""The context in which a method draws its pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedlab.method.assets import Holding
from fedlab.method.types import Task
from fedlab.seeding import torch_generator


@dataclass(frozen=True, kw_only=True)
class FigureContext:
    """What `Method.figures` and `Method.artifacts` can use.

    Args:
        task: facts that a method may depend on, such as the number of classes.
        round: number of finished rounds.
        shared: the server's shared tensors, on the CPU.
        client_names: the name of each client, by client id.
        networks: the server's networks by role, in evaluation mode.
        data: columns of each sample set that the server holds, by the set's name, on the device of the networks.
        client_state: returns the state of a simulated client, read from disk; None in a deployment, where the state
            is on another machine.
        client_test: returns the test columns of a simulated client, on the device of the networks; None in a
            deployment.
        denormalize: maps normalized images (n, C, H, W) to values in [0, 1], on the CPU.
        seed: the run's seed.
        private: the server's private tensors, on the CPU.
        batch_size: samples in a batch of evaluation: ``evaluation.batch_size``.
        holding: what the server holds of the method's assets.
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
    holding: Holding = field(default_factory=Holding)

    @property
    def holds(self) -> tuple[str, ...]:
        """Names of the assets that the server holds."""
        return self.holding.names

    def asset(self, name: str) -> nn.Module:
        """The network of an asset that the server holds, as `ServerContext.asset`."""
        return self.holding.network(name)

    def samples(self, *names: str) -> Mapping[str, Tensor]:
        """The samples to draw: those of the first of these sets that has any, or else the test samples of client 0.

        Args:
            names: names of the server's sample sets, in the order of preference.

        Returns:
            Their columns; empty if there is nothing to draw.
        """
        for columns in (*(self.data.get(name) for name in names), self.client_test(0)):
            if columns and len(next(iter(columns.values()))):
                return columns
        return {}

    @property
    def when(self) -> str:
        """The time at which pictures are drawn, for their titles: ``before round 1`` or, say, ``after round 7``."""
        return f"after round {self.round}" if self.round else "before round 1"

    def generator(self, *purpose: str | int) -> torch.Generator:
        """Return a CPU generator for one purpose, seeded from the run's seed, the round and the purpose."""
        return torch_generator(self.seed, "figures", self.round, *purpose)
