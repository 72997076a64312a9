"""Who takes part in a round: a function of (seed, round, clients, what is known of them), over FedLab's client ids."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import Field

from fedlab.config import Component, Fraction, Section, parse
from fedlab.registry import Registry
from fedlab.seeding import numpy_generator

SAMPLERS = Registry(
    "sampler",
    {
        "uniform": "fedlab.server.participation.sampling:Uniform",
        "weighted": "fedlab.server.participation.samplers:Weighted",
        "power_of_choice": "fedlab.server.participation.samplers:PowerOfChoice",
        "poisson": "fedlab.server.participation.samplers:Poisson",
        "fixed": "fedlab.server.participation.samplers:Fixed",
    },
    "fedlab.samplers",
)


@dataclass(frozen=True)
class Known:
    """What the server knows of clients.

    Args:
        examples: training samples of clients; the server asks those it does not know yet.
        losses: training loss each client reported last; clients that never trained have none.
    """

    examples: Callable[[Sequence[int]], Sequence[int]]
    losses: Mapping[int, float]


class Sampler(Protocol):
    """Chooses the clients of a round.

    Args:
        loss: training metric of the clients it wants as `Known.losses`; None for one that needs none.
    """

    loss: str | None

    def size(self, population: int) -> int:
        """Clients wanted in a round of a federation of so many."""

    def sample(self, clients: Sequence[int], round: int, count: int, known: Known) -> list[int]:
        """Ids of at most `count` of `clients` that train in `round`, ascending."""


class FractionSettings(Section):
    """Settings of samplers that take a fixed share of the clients."""

    fraction: Fraction = Field(default=1.0, description="share of the clients in each round")


class FractionSampler:
    """Base: ⌊fraction · N⌋ clients, but at least one."""

    Settings = FractionSettings
    loss: str | None = None

    def __init__(self, settings: Any, seed: int) -> None:
        self.settings, self.seed = settings, seed

    def size(self, population: int) -> int:
        # 57 · 0.2 must give 11 and 10 · 0.3 must give 3, so a product just below an integer counts as that integer
        fraction: float = self.settings.fraction
        return max(1, math.floor(fraction * population + 1e-9))


class Uniform(FractionSampler):
    """Uniformly without replacement."""

    def sample(self, clients: Sequence[int], round: int, count: int, known: Known) -> list[int]:
        if count >= len(clients):
            return list(clients)
        chosen = numpy_generator(self.seed, "sampler", round).choice(len(clients), size=count, replace=False)
        return sorted(clients[int(index)] for index in chosen)


def make_sampler(component: Component, seed: int) -> Sampler:
    """The configured sampler, its settings validated.

    Raises:
        ConfigError, ConfigErrors: unknown sampler or setting.
    """
    found: Any = SAMPLERS.find(component.name, "federation.sampler.name")
    sampler: Sampler = found(parse(found.Settings, component.settings, "federation.sampler"), seed)
    return sampler
