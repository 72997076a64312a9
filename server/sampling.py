"""Who takes part in a round: a function of (seed, round, clients), over FedLab's own client ids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from pydantic import Field

from fedlab.config import Component, Fraction, Section, parse
from fedlab.registry import Registry
from fedlab.seeding import numpy_generator

SAMPLERS = Registry("sampler", {"uniform": "fedlab.server.sampling:Uniform"}, "fedlab.samplers")


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

    def sample(self, clients: Sequence[int], round: int) -> list[int]:
        # 57 · 0.2 must give 11 and 10 · 0.3 must give 3, so a product just below an integer counts as that integer
        count = max(1, math.floor(self.fraction * len(clients) + 1e-9))
        if count == len(clients):
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
