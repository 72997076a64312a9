"""Samplers that look at what is known of the clients, and sampling of every client on its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from fedlab.config import Fraction, Positive, Section
from fedlab.seeding import numpy_generator
from fedlab.server.participation.sampling import FractionSampler, FractionSettings, Known


class Weighted(FractionSampler):
    """By training samples, without replacement: each draw takes a remaining client in proportion to its samples."""

    def sample(self, clients: Sequence[int], round: int, count: int, known: Known) -> list[int]:
        return sorted(_by_share(clients, count, known, numpy_generator(self.seed, "sampler", round)))


class PowerOfChoice(FractionSampler):
    """The clients of the highest last known loss among candidates drawn by data share (Cho et al. 2020, π_rpow-d)."""

    class Settings(FractionSettings):
        """Settings of power-of-choice."""

        candidates: Positive = Field(default=10, description="d, the candidates; as many as are wanted at least")
        metric: str = Field(default="ce", description="the clients' training metric that is their loss")

    def __init__(self, settings: Settings, seed: int) -> None:
        super().__init__(settings, seed)
        self.loss = settings.metric

    def sample(self, clients: Sequence[int], round: int, count: int, known: Known) -> list[int]:
        drawn = max(count, self.settings.candidates)
        candidates = _by_share(clients, drawn, known, numpy_generator(self.seed, "sampler", round))
        # a stable sort: among clients of one loss, those never seen above all, the order of the draw decides
        ranked = sorted(candidates, key=lambda client: -known.losses.get(client, math.inf))
        return sorted(ranked[:count])


class Poisson:
    """Each client on its own with one probability, so that rounds differ in size and may be empty."""

    class Settings(Section):
        """Settings of Poisson sampling."""

        probability: Fraction = Field(default=0.5, description="of each client to take part in a round")

    loss: str | None = None

    def __init__(self, settings: Settings, seed: int) -> None:
        self.probability, self.seed = settings.probability, seed

    def size(self, population: int) -> int:
        return population

    def sample(self, clients: Sequence[int], round: int, count: int, known: Known) -> list[int]:
        draws = numpy_generator(self.seed, "sampler", round).random(len(clients))
        return [client for client, draw in zip(clients, draws, strict=True) if draw < self.probability]


class Fixed:
    """The same clients in every round: with one of them, local training without a federation."""

    class Settings(Section):
        """Settings of a fixed choice."""

        clients: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1, description="ids of those that train")

    loss: str | None = None

    def __init__(self, settings: Settings, seed: int) -> None:
        self.clients = frozenset(settings.clients)

    def size(self, population: int) -> int:
        return len(self.clients)

    def sample(self, clients: Sequence[int], round: int, count: int, known: Known) -> list[int]:
        return [client for client in clients if client in self.clients]


def _by_share(clients: Sequence[int], count: int, known: Known, rng: np.random.Generator) -> list[int]:
    """At most `count` clients in the order drawn, each draw by the remaining clients' share of the samples."""
    weights = np.array(known.examples(clients), dtype=float)
    # exponential clocks with these rates ring in the order of successive weighted draws (Efraimidis, Spirakis 2006)
    with np.errstate(divide="ignore"):
        rings = rng.exponential(size=len(clients)) / weights
    return [clients[int(index)] for index in np.argsort(rings, kind="stable")[:count] if weights[index] > 0]
