"""Who takes part in a round: a function of (seed, round, clients), over FedLab's own client ids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from pydantic import Field

from fedlab.config import Component, Fraction, Section, parse
from fedlab.registry import Registry
from fedlab.seeding import numpy_generator

SAMPLERS = Registry(
    "sampler",
    {"uniform": "fedlab.server.sampling:Uniform", "poisson": "fedlab.server.sampling:Poisson"},
    "fedlab.samplers",
)


class Sampler(Protocol):
    """Chooses the clients of a round."""

    def sample(self, clients: Sequence[int], round: int) -> list[int]:
        """Ids of the clients that train in `round`, ascending."""


class Uniform:
    """Uniformly without replacement: ⌊fraction · N⌋ clients, but at least one."""

    class Settings(Section):
        """Settings of uniform sampling."""

        fraction: Fraction = Field(default=1.0, description="share of the clients in each round")

    def __init__(self, settings: Settings, seed: int) -> None:
        self.fraction, self.seed = settings.fraction, seed

    def size(self, clients: int) -> int:
        """How many of so many clients train."""
        # 57 · 0.2 must give 11 and 10 · 0.3 must give 3, so a product just below an integer counts as that integer
        return max(1, math.floor(self.fraction * clients + 1e-9))

    def sample(self, clients: Sequence[int], round: int) -> list[int]:
        count = self.size(len(clients))
        if count == len(clients):
            return list(clients)
        chosen = numpy_generator(self.seed, "sampler", round).choice(len(clients), size=count, replace=False)
        return sorted(clients[int(index)] for index in chosen)


class Poisson:
    """Each client independently with the same probability, as differential privacy's amplification wants it.

    A round's cohort may be empty; the model stays as it is then, but for the noise of privacy.
    """

    class Settings(Section):
        """Settings of Poisson sampling."""

        rate: Fraction = Field(description="probability of each client in each round")

    def __init__(self, settings: Settings, seed: int) -> None:
        self.rate, self.seed = settings.rate, seed

    def sample(self, clients: Sequence[int], round: int) -> list[int]:
        draws = numpy_generator(self.seed, "sampler", "poisson", round).random(len(clients))
        return [client for client, draw in zip(clients, draws, strict=True) if draw < self.rate]


def make_sampler(component: Component, seed: int) -> Sampler:
    """The configured sampler, its settings validated.

    Raises:
        ConfigError, ConfigErrors: unknown sampler or setting.
    """
    found: Any = SAMPLERS.find(component.name, "federation.sampler.name")
    sampler: Sampler = found(parse(found.Settings, component.settings, "federation.sampler"), seed)
    return sampler
