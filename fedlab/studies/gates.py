"""Gates: pass/fail checks on the runs of an acceptance experiment."""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fedlab.config import Section
from fedlab.studies.plan import Results
from fedlab.tracking import History

Scope = Literal["mean", "pooled", "server", "unseen", "train", "logged"]
Arms = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value), Field(min_length=1)
]
_SCOPES = "mean over clients, all their tests pooled, server's data, unseen clients; or logged by clients or server"


def last_value(history: History, metric: str, scope: Scope = "mean") -> float | None:
    """The last value of a metric; None where there is none.

    Args:
        history: of a run.
        metric: its name.
        scope: ``mean``, ``pooled``, ``server`` or ``unseen`` of the evaluations, or what clients (``train``) or the
            server (``logged``) logged.
    """
    series = _series(history, metric, scope)
    return series[-1][1] if series else None


class Gate(Section, ABC):
    """Base of all gates: what is read from runs, and when the gate is met."""

    name: str
    void: bool = Field(
        default=False, description="if this gate is not met, the experiment is void: it can say nothing about the claim"
    )

    @property
    @abstractmethod
    def arms(self) -> tuple[str, ...]:
        """The arms whose runs the gate needs."""

    @property
    @abstractmethod
    def required(self) -> str:
        """The threshold in words."""

    @abstractmethod
    def seen(self, results: Results) -> dict[int, float]:
        """The value of each seed for which all arms have runs."""

    @abstractmethod
    def judge(self, seen: Mapping[int, float]) -> tuple[float, bool]:
        """The value that counts (for most gates the mean over the seeds), and whether the gate is met."""


class MetricGate(Gate, ABC):
    """Base: gates over the values of one metric."""

    metric: str = Field(default="accuracy", description="metric of the evaluations, or the name of a logged value")
    scope: Scope = Field(default="mean", description=_SCOPES)

    def _means(self, arms: tuple[str, ...], results: Results) -> dict[int, float]:
        """The last value by seed, mean over `arms`, for the seeds all of them have."""
        values = [
            {seed: last_value(run.history, self.metric, self.scope) for seed, run in results[arm].items()}
            for arm in arms
        ]
        complete = {seed: [found.get(seed) for found in values] for seed in values[0]}
        return {
            seed: statistics.fmean(known)
            for seed, found in complete.items()
            if len(known := [value for value in found if value is not None]) == len(arms)
        }


class Bounded(MetricGate, ABC):
    """Base: one number between bounds."""

    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.at_least is None and self.at_most is None:
            raise ValueError(f"gate {self.name!r} needs at_least or at_most")
        return self

    @property
    def required(self) -> str:
        bounds = (("≥", self.at_least), ("≤", self.at_most))
        return " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)

    def judge(self, seen: Mapping[int, float]) -> tuple[float, bool]:
        value = statistics.fmean(seen.values())
        low, high = self.at_least, self.at_most
        return value, (low is None or value >= low) and (high is None or value <= high)


class DifferenceGate(MetricGate):
    """One arm exceeds another at the last evaluation; of several arms, their mean counts."""

    kind: Literal["difference"]
    left: Arms = Field(description="arm or arms that should be better")
    minus: Arms = Field(description="arm or arms that they are compared with")
    at_least: float = Field(description="smallest difference in percentage points (hundredths of the metric)")

    @property
    def arms(self) -> tuple[str, ...]:
        return *self.left, *self.minus

    @property
    def required(self) -> str:
        return f"≥ {self.at_least:g} points"

    def seen(self, results: Results) -> dict[int, float]:
        left, minus = (self._means(arms, results) for arms in (self.left, self.minus))
        return {seed: 100 * (left[seed] - minus[seed]) for seed in left if seed in minus}

    def judge(self, seen: Mapping[int, float]) -> tuple[float, bool]:
        value = statistics.fmean(seen.values())
        return value, value >= self.at_least


class ThresholdGate(Bounded):
    """The last value of one arm, or the mean of several, in the metric's own unit."""

    kind: Literal["threshold"]
    arm: Arms

    @property
    def arms(self) -> tuple[str, ...]:
        return self.arm

    def seen(self, results: Results) -> dict[int, float]:
        return self._means(self.arm, results)


class QuotientGate(Bounded):
    """The last value of one arm divided by another's."""

    kind: Literal["quotient"]
    left: Arms
    over: Arms

    @property
    def arms(self) -> tuple[str, ...]:
        return *self.left, *self.over

    def seen(self, results: Results) -> dict[int, float]:
        left, over = (self._means(arms, results) for arms in (self.left, self.over))
        return {seed: _divided(left[seed], over[seed]) for seed in left if seed in over}


class TrendGate(Bounded):
    """The last value of a series divided by its first."""

    kind: Literal["trend"]
    arm: str

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.arm,)

    def seen(self, results: Results) -> dict[int, float]:
        found = {seed: _series(run.history, self.metric, self.scope) for seed, run in results[self.arm].items()}
        return {seed: _divided(series[-1][1], series[0][1]) for seed, series in found.items() if len(series) > 1}


class RatioGate(Gate):
    """The ratio of two values the server logged stays below a bound in every round that logged them, in every seed."""

    kind: Literal["ratio"]
    arm: str
    server: tuple[str, str] = Field(description="names of the logged numerator and denominator")
    at_most: float

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.arm,)

    @property
    def required(self) -> str:
        return f"≤ {self.at_most:g} in every round"

    def seen(self, results: Results) -> dict[int, float]:
        worst = {}
        for seed, done in results[self.arm].items():
            above, below = (dict(done.history.logged(name, "server")) for name in self.server)
            ratios = [_divided(above[r], below[r]) for r in sorted(above.keys() & below.keys())]
            if ratios:
                worst[seed] = max(ratios)
        return worst

    def judge(self, seen: Mapping[int, float]) -> tuple[float, bool]:
        value = max(seen.values())
        return value, value <= self.at_most


AnyGate = Annotated[DifferenceGate | ThresholdGate | QuotientGate | TrendGate | RatioGate, Field(discriminator="kind")]


def _series(history: History, metric: str, scope: Scope) -> list[tuple[int, float]]:
    if scope in ("train", "logged"):
        return history.logged(metric, "train" if scope == "train" else "server")
    return history.series(metric, scope)


def _divided(above: float, below: float) -> float:
    return above / below if below else math.inf
