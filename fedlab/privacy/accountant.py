"""What releases cost, by the RDP accountant of Google's dp-accounting."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from typing import Any, Literal

from fedlab.errors import ConfigError

Adjacency = Literal["add-or-remove-one", "replace-one"]


def require_accountant(value: object) -> None:
    """Refuse privacy where the accountant is not installed.

    Raises:
        ConfigError: dp-accounting is missing.
    """
    if importlib.util.find_spec("dp_accounting") is None:
        raise ConfigError(
            "privacy.name", value, "the package dp-accounting, which counts ε", "pip install 'fedlab-sim[dp]'"
        )


@dataclass(frozen=True)
class Sampling:
    """How those whose privacy counts take part in one release: whole clients, or the examples of one.

    Args:
        kind: ``poisson``: each independently with probability `rate`. ``fixed-size``: `size` out of `population`
            without replacement. ``all``: every one.
        population: how many there are.
        size: how many take part; their expected number with ``poisson``.
    """

    kind: Literal["poisson", "fixed-size", "all"]
    population: int
    size: float

    @property
    def adjacency(self) -> Adjacency:
        """Which data sets the guarantee makes alike; where a count is fixed and known, one cannot be added to it."""
        return "add-or-remove-one" if self.kind == "poisson" else "replace-one"

    @property
    def words(self) -> str:
        """How it is named in a record."""
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
        releases: how many.
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
        neighbours = relation.ADD_OR_REMOVE_ONE
        rate = min(1.0, sampling.size / sampling.population)
        event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise_multiplier))
    else:
        neighbours = relation.REPLACE_ONE
        event = dp_accounting.GaussianDpEvent(noise_multiplier / 2)
        if sampling.kind == "fixed-size":
            event = dp_accounting.SampledWithoutReplacementDpEvent(sampling.population, int(sampling.size), event)
    accountant = rdp.RdpAccountant(neighboring_relation=neighbours)
    return float(accountant.compose(event, releases).get_epsilon(delta))
