"""The privacy cost ε of noisy releases, computed with the RDP accountant of Google's dp-accounting."""

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
_MOST_NOISE = 1000  # no training succeeds with more noise
_DIGITS = 3  # a calibrated noise multiplier is rounded up to them, because machines may differ in the last bits


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
    """How the members whose privacy is protected take part in one release. Members are clients, or a client's examples.

    Args:
        kind: ``poisson``: each member takes part independently with probability ``size / population``. ``fixed-size``:
            `size` members are drawn without replacement. ``all``: every member takes part.
        population: number of members.
        size: number of members that take part; with ``poisson``, their expected number.
    """

    kind: Literal["poisson", "fixed-size", "all"]
    population: int
    size: float

    @property
    def adjacency(self) -> Adjacency:
        """Which data sets the guarantee compares. If the number of members is known, a member can only be replaced."""
        return "add-or-remove-one" if self.kind == "poisson" else "replace-one"

    @property
    def words(self) -> str:
        """The sampling as text, for events and reports."""
        if self.kind == "poisson":
            return f"poisson, rate {self.size / self.population:g}"
        return "all" if self.kind == "all" else f"{self.size:g} of {self.population} without replacement"


def epsilon(sampling: Sampling, noise_multiplier: float, releases: int, delta: float) -> float:
    """ε of a number of releases with Gaussian noise, for a given δ; infinite without noise, 0 without releases.

    Every term of the released sum has a norm of at most C. A member that is added or removed changes the sum by at most
    C. A member that is replaced changes it by at most 2C, so that the noise z·C is then z/2 in units of the
    sensitivity.

    Args:
        sampling: how members take part in each release.
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
    """A step of DP-SGD: a noisy sum over examples, each of which is drawn independently.

    Args:
        rate: probability q with which an example is drawn.
        noise_multiplier: σ, standard deviation of the noise in units of the clip norm.
    """

    rate: float
    noise_multiplier: float


def composed_epsilon(steps: Mapping[GaussianStep, int], delta: float) -> float:
    """ε of the steps, for a given δ, when one example is added or removed; infinite if a step has no noise.

    Args:
        steps: number of steps of each kind.
        delta: δ.
    """
    taken = {step: count for step, count in steps.items() if count}
    if not taken:
        return 0.0
    if any(step.noise_multiplier == 0 for step in taken):
        return math.inf
    return _composed(tuple(sorted(taken.items())), delta)


@lru_cache(maxsize=4096)  # clients with equally many examples have the same ε
def _composed(steps: tuple[tuple[GaussianStep, int], ...], delta: float) -> float:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant()
    with _without_remarks():
        for step, count in steps:
            accountant.compose(PoissonSampledDpEvent(step.rate, GaussianDpEvent(step.noise_multiplier)), count)
        return float(accountant.get_epsilon(delta))


def noise_multiplier_for(target: float, delta: float, steps: Mapping[float, int]) -> float:
    """A noise multiplier σ, rounded up to three decimals, with which the steps cost at most ε = `target`.

    It is at most a few percent above the smallest such σ, because only whole orders of the Rényi divergence are tried.
    Fractional orders would give a smaller σ for large ε, but would take most of the time.

    Args:
        target: largest ε.
        delta: δ.
        steps: number of steps by sampling rate.

    Raises:
        ConfigError: the target cannot be reached with a noise multiplier up to 1000.
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
    """Silence the library's messages about orders that it leaves out, which can only make ε larger."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
