"""Samplers: the rules that choose the cohort of a round."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import Field

from fedlab.config import Component, Fraction, Positive, Section, parse
from fedlab.errors import ConfigError
from fedlab.registry import GIVEN, Registry
from fedlab.seeding import numpy_generator

SAMPLERS = Registry(
    "sampler",
    {
        "uniform": "fedlab.server.participation.samplers:Uniform",
        "weighted": "fedlab.server.participation.samplers:Weighted",
        "power_of_choice": "fedlab.server.participation.samplers:PowerOfChoice",
        "poisson": "fedlab.server.participation.samplers:Poisson",
        "fixed": "fedlab.server.participation.samplers:Fixed",
    },
    "fedlab.samplers",
)

_SAMPLER = (
    "a sampler: an object with sample(clients, round, count, known), size(population) and loss, or a class of such "
    "objects with a nested class Settings(fedlab.config.Section)"
)
_EXAMPLE = "derive it from fedlab.server.participation.samplers.FractionSampler"


@dataclass(frozen=True)
class Known:
    """What a sampler may know of the clients.

    Args:
        examples: returns the weights of clients, by default their numbers of training samples. The server asks the
            clients whose weight it does not know yet.
        losses: the training loss that each client reported last. Clients that have not trained yet are missing.
    """

    examples: Callable[[Sequence[int]], Sequence[int]]
    losses: Mapping[int, float]


class Sampler(Protocol):
    """Chooses the clients of a round.

    Args:
        loss: name of the clients' training metric that the sampler needs as `Known.losses`; None if it needs none.
    """

    loss: str | None

    def size(self, population: int) -> int:
        """Number of clients to choose in a round, when `population` clients may train."""

    def sample(self, clients: Sequence[int], round: int, count: int, known: Known) -> list[int]:
        """Choose at most `count` of `clients` for a round. Returns their ids in ascending order."""


class FractionSettings(Section):
    """Settings of samplers that choose a fixed share of the clients."""

    fraction: Fraction = Field(default=1.0, description="share of the clients that take part in each round")


class FractionSampler:
    """Base of the samplers that choose ⌊fraction · N⌋ of the N clients that may train, but at least one."""

    Settings = FractionSettings
    loss: str | None = None

    def __init__(self, settings: Any, seed: int) -> None:
        self.settings, self.seed = settings, seed

    def size(self, population: int) -> int:
        # 57 · 0.2 must give 11 and 10 · 0.3 must give 3, so a product just below an integer counts as that integer
        fraction: float = self.settings.fraction
        return max(1, math.floor(fraction * population + 1e-9))


class Uniform(FractionSampler):
    """Draws clients uniformly without replacement."""

    def sample(self, clients: Sequence[int], round: int, count: int, known: Known) -> list[int]:
        if count >= len(clients):
            return list(clients)
        chosen = numpy_generator(self.seed, "sampler", round).choice(len(clients), size=count, replace=False)
        return sorted(clients[int(index)] for index in chosen)


def make_sampler(component: Component, seed: int, given: object = None) -> Sampler:
    """The sampler of a run, with validated settings.

    Args:
        component: names the sampler and holds its settings.
        seed: the run's seed.
        given: a sampler of the user's own in its place: an object, or a class that takes the settings and the seed.

    Raises:
        ConfigError, ConfigErrors: unknown sampler or setting, or what was given is no sampler.
    """
    if given is not None and not isinstance(given, type):
        return _checked(given)
    if given is None and component.name == GIVEN:
        raise ConfigError(
            "federation.sampler",
            component.settings.get("of", GIVEN),
            "the sampler object that this was run with",
            "make it again in Python and give it to fedlab.run(config, sampler=…) or fedlab.resume(run, sampler=…)",
        )
    found: Any = SAMPLERS.find(component.name, "federation.sampler.name") if given is None else given
    settings = getattr(found, "Settings", None)
    if not (isinstance(settings, type) and issubclass(settings, Section)):
        raise ConfigError("federation.sampler", found, _SAMPLER, _EXAMPLE)
    return _checked(found(parse(settings, component.settings, "federation.sampler"), seed))


def _checked(given: Any) -> Sampler:
    """What a user gave, as a sampler.

    Raises:
        ConfigError: it is none.
    """
    calls = (getattr(given, name, None) for name in ("sample", "size"))
    if not (all(map(callable, calls)) and hasattr(given, "loss")):
        raise ConfigError("federation.sampler", given, _SAMPLER, _EXAMPLE)
    sampler: Sampler = given
    return sampler


class Weighted(FractionSampler):
    """Draws clients without replacement, each with a probability proportional to its number of training samples."""

    def sample(self, clients: Sequence[int], round: int, count: int, known: Known) -> list[int]:
        return sorted(_by_share(clients, count, known, numpy_generator(self.seed, "sampler", round)))


class PowerOfChoice(FractionSampler):
    """Chooses the clients with the highest last reported loss among candidates (Cho et al. 2020, π_rpow-d).

    Candidates are drawn without replacement, with probabilities proportional to their numbers of training samples. A
    candidate that has not trained yet is chosen before all others.
    """

    class Settings(FractionSettings):
        """Settings of power-of-choice."""

        candidates: Positive = Field(
            default=10, description="number of candidates, d; at least the number of clients that are chosen"
        )
        metric: str = Field(default="ce", description="metric of the clients' training that is taken as their loss")

    def __init__(self, settings: Settings, seed: int) -> None:
        super().__init__(settings, seed)
        self.loss = settings.metric

    def sample(self, clients: Sequence[int], round: int, count: int, known: Known) -> list[int]:
        drawn = max(count, self.settings.candidates)
        candidates = _by_share(clients, drawn, known, numpy_generator(self.seed, "sampler", round))
        # the sort is stable: among clients of equal loss, such as those without one, the order of the draw decides
        ranked = sorted(candidates, key=lambda client: -known.losses.get(client, math.inf))
        return sorted(ranked[:count])


class Poisson:
    """Chooses every client independently with the same probability, so that cohorts differ in size and may be empty."""

    class Settings(Section):
        """Settings of Poisson sampling."""

        probability: Fraction = Field(default=0.5, description="probability that a client takes part in a round")

    loss: str | None = None

    def __init__(self, settings: Settings, seed: int) -> None:
        self.probability, self.seed = settings.probability, seed

    def size(self, population: int) -> int:
        return population

    def sample(self, clients: Sequence[int], round: int, count: int, known: Known) -> list[int]:
        draws = numpy_generator(self.seed, "sampler", round).random(len(clients))
        return [client for client, draw in zip(clients, draws, strict=True) if draw < self.probability]


class Fixed:
    """Chooses the same clients in every round. With a single client this is training without a federation."""

    class Settings(Section):
        """Settings of a fixed choice."""

        clients: tuple[Annotated[int, Field(ge=0)], ...] = Field(
            min_length=1, description="numbers of the clients that train, counted from 0"
        )

    loss: str | None = None

    def __init__(self, settings: Settings, seed: int) -> None:
        self.clients = frozenset(settings.clients)

    def size(self, population: int) -> int:
        return len(self.clients)

    def sample(self, clients: Sequence[int], round: int, count: int, known: Known) -> list[int]:
        return [client for client in clients if client in self.clients]


def _by_share(clients: Sequence[int], count: int, known: Known, rng: np.random.Generator) -> list[int]:
    """Draw at most `count` clients without replacement, each by its share of the remaining clients' samples.

    Clients are returned in the order of the draws. Clients without samples are never drawn.
    """
    weights = np.array(known.examples(clients), dtype=float)
    # sorting exponential variables with these rates gives the order of weighted draws (Efraimidis, Spirakis 2006)
    with np.errstate(divide="ignore"):
        rings = rng.exponential(size=len(clients)) / weights
    return [clients[int(index)] for index in np.argsort(rings, kind="stable")[:count] if weights[index] > 0]
