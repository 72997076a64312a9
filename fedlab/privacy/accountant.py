"""The privacy budget that releases cost, by the RDP accountant of Google's dp-accounting."""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from fedlab.errors import ConfigError

Adjacency = Literal["add-or-remove-one", "replace-one"]
_WHOLE_ORDERS = (*range(2, 65), 96, 128, 192, 256, 512, 1024)
_MOST_NOISE = 1000  # no training survives more
_DIGITS = 3  # of a calibrated noise multiplier, rounded up: machines may differ in the last bits


def require_accountant(value: object) -> None:
    """Refuse privacy if the accountant is not installed.

    Raises:
        ConfigError: dp-accounting is missing.
    """
    if importlib.util.find_spec("dp_accounting") is None:
        raise ConfigError(
            "privacy.name", value, "the package dp-accounting, which counts ε", "pip install 'fedlab-sim[dp]'"
        )


@dataclass(frozen=True)
class Sampling:
    """How the protected members (whole clients, or the examples of one client) take part in one release.

    Args:
        kind: ``poisson``: each independently with probability `rate`. ``fixed-size``: `size` out of `population`
            without replacement. ``all``: every one.
        population: number of members.
        size: number of members that take part; their expected number with ``poisson``.
    """

    kind: Literal["poisson", "fixed-size", "all"]
    population: int
    size: float

    @property
    def adjacency(self) -> Adjacency:
        """Which data sets the guarantee compares; if a number is fixed and known, members can only be replaced."""
        return "add-or-remove-one" if self.kind == "poisson" else "replace-one"

    @property
    def words(self) -> str:
        """The sampling as text for records."""
        if self.kind == "poisson":
            return f"poisson, rate {self.size / self.population:g}"
        return "all" if self.kind == "all" else f"{self.size:g} of {self.population} without replacement"


def epsilon(sampling: Sampling, noise_multiplier: float, releases: int, delta: float) -> float:
    """ε after so many Gaussian releases at δ; infinite without noise.

    A member changes a sum of terms of norm ≤ C by at most C where it comes or goes, but by 2C where it is replaced,
    so that noise of z·C is noise of z/2 sensitivities there.

    Args:
        sampling: of each release.
        noise_multiplier: z, standard deviation of the noise on the sum in units of C.
        releases: number of releases.
        delta: δ.
    """
    if releases == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    import dp_accounting
    from dp_accounting import rdp

    relation = dp_accounting.NeighboringRelation
    event: Any
    if sampling.kind == "poisson":
        neighbors = relation.ADD_OR_REMOVE_ONE
        rate = min(1.0, sampling.size / sampling.population)
        event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise_multiplier))
    else:
        neighbors = relation.REPLACE_ONE
        event = dp_accounting.GaussianDpEvent(noise_multiplier / 2)
        if sampling.kind == "fixed-size":
            event = dp_accounting.SampledWithoutReplacementDpEvent(sampling.population, int(sampling.size), event)
    accountant = rdp.RdpAccountant(neighboring_relation=neighbors)
    with _without_remarks():
        return float(accountant.compose(event, releases).get_epsilon(delta))


@dataclass(frozen=True, order=True)
class GaussianStep:
    """A noisy sum over examples, each of which is drawn independently.

    Args:
        rate: q, probability of each.
        noise_multiplier: σ, standard deviation of the noise in units of the largest term.
    """

    rate: float
    noise_multiplier: float


def composed_epsilon(steps: Mapping[GaussianStep, int], delta: float) -> float:
    """ε after so many steps of each kind at δ, for one example more or less; infinite where one has no noise."""
    taken = {step: count for step, count in steps.items() if count}
    if not taken:
        return 0.0
    if any(step.noise_multiplier == 0 for step in taken):
        return math.inf
    return _composed(tuple(sorted(taken.items())), delta)


@lru_cache(maxsize=4096)  # clients of one size cost the same
def _composed(steps: tuple[tuple[GaussianStep, int], ...], delta: float) -> float:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant()
    with _without_remarks():
        for step, count in steps:
            accountant.compose(PoissonSampledDpEvent(step.rate, GaussianDpEvent(step.noise_multiplier)), count)
        return float(accountant.get_epsilon(delta))


def noise_multiplier_for(target: float, delta: float, steps: Mapping[float, int]) -> float:
    """A σ, to three decimals, with which so many steps of each sampling rate keep within ε = `target`.

    It is at most a few per cent above the least: fractional orders, which make large ε smaller, take most of the time.

    Raises:
        ConfigError: no usable noise does.
    """
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    def event(noise_multiplier: float) -> Any:
        each = dp_accounting.GaussianDpEvent(noise_multiplier)
        return dp_accounting.ComposedDpEvent(
            [
                dp_accounting.SelfComposedDpEvent(dp_accounting.PoissonSampledDpEvent(rate, each), count)
                for rate, count in sorted(steps.items())
            ]
        )

    def accountant() -> Any:
        return RdpAccountant(_WHOLE_ORDERS)

    unit = 10.0**-_DIGITS
    bracket = dp_accounting.LowerEndpointAndGuess(0, 1)
    try:
        with _without_remarks():
            found = float(dp_accounting.calibrate_dp_mechanism(accountant, event, target, delta, bracket, tol=unit / 2))
    except dp_accounting.NoBracketIntervalFoundError:
        found = math.inf
    if found > _MOST_NOISE:
        expected = f"an ε that a noise multiplier below {_MOST_NOISE} reaches at δ = {delta:g}"
        raise ConfigError("privacy.target_epsilon", target, expected, "raise it, or privacy.delta")
    return round(math.ceil(found / unit) * unit, _DIGITS)


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Silences the library's remarks about orders that it leaves out; leaving one out can only make ε larger."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
