"""Gates: pass/fail checks on the runs of an acceptance experiment."""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fedlab.config import Section, UnfitValue
from fedlab.metrics.direction import best_of
from fedlab.metrics.ranking import average_ranks
from fedlab.studies.plan import Results
from fedlab.tracking import History

Scope = Literal["mean", "pooled", "server", "unseen", "train", "logged"]
Statistic = Literal["mean", "median", "lower"]
LOCAL_ONLY = "local_only"
"""In a gate, this name stands for all arms in which a client trains alone; see `Acceptance.local_only`."""
Arms = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value), Field(min_length=1)
]
_CONFIDENCE = 0.9
_NOT_LOWER = "mean or median with at_most, of which a lower confidence bound says nothing"
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


def lower_bound(values: Sequence[float]) -> float:
    """The one-sided 90 % lower confidence bound of a mean, by Student's t distribution.

    Args:
        values: at least two independent values.
    """
    from scipy.stats import t

    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values) - float(t.ppf(_CONFIDENCE, len(values) - 1)) * error


class Gate(Section, ABC):
    """Base of all gates: what is read from runs, and when the gate is met."""

    name: str
    excludes: str = Field(
        default="", description="the wrong or simpler implementation that misses this gate, in words for the reader"
    )
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

    @property
    def fewest(self) -> int:
        """The number of seeds without which the gate cannot be judged."""
        return 1

    def with_arms(self, name: str, arms: tuple[str, ...]) -> Self:
        """The same gate with arms in the place of a name that stands for all of them."""
        changes = {
            key: tuple(new for old in found for new in (arms if old == name else (old,)))
            for key in ("arm", "left", "minus", "over", "among")
            if isinstance(found := getattr(self, key, None), tuple)
        }
        return self.model_copy(update=changes)

    @abstractmethod
    def seen(self, results: Results) -> dict[int, float]:
        """The value of each seed for which all arms have runs."""

    @abstractmethod
    def judge(self, seen: Mapping[int, float]) -> tuple[float, bool]:
        """The value that counts (for most gates the mean over the seeds), and whether the gate is met."""


class SeedsGate(Gate, ABC):
    """Base: gates that judge one number over the seeds."""

    statistic: Statistic = Field(
        default="mean",
        description="what is judged of the seeds' values: their mean, their median, or lower, the one-sided 90 % lower "
        "confidence bound of the mean",
    )

    @property
    def fewest(self) -> int:
        return 2 if self.statistic == "lower" else 1

    def _judged(self, seen: Mapping[int, float]) -> float:
        values = list(seen.values())
        if self.statistic == "lower":
            return lower_bound(values)
        return statistics.median(values) if self.statistic == "median" else statistics.fmean(values)

    def _worded(self, required: str) -> str:
        return required if self.statistic == "mean" else f"{self.statistic} {required}"


class MetricGate(SeedsGate, ABC):
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
            raise UnfitValue("name", self.name, "a gate with at_least or at_most")
        if self.statistic == "lower" and self.at_most is not None:
            raise UnfitValue("statistic", self.statistic, _NOT_LOWER)
        return self

    @property
    def required(self) -> str:
        bounds = (("≥", self.at_least), ("≤", self.at_most))
        return self._worded(" and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None))

    def judge(self, seen: Mapping[int, float]) -> tuple[float, bool]:
        value = self._judged(seen)
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
        return self._worded(f"≥ {self.at_least:g} points")

    def seen(self, results: Results) -> dict[int, float]:
        left, minus = (self._means(arms, results) for arms in (self.left, self.minus))
        return {seed: 100 * (left[seed] - minus[seed]) for seed in left if seed in minus}

    def judge(self, seen: Mapping[int, float]) -> tuple[float, bool]:
        value = self._judged(seen)
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


class RankGate(SeedsGate):
    """The rank of an arm among several, averaged over metrics; 1 is the best, and equal values share their ranks."""

    kind: Literal["rank"]
    arm: str
    among: Arms = Field(description="the arms that it is ranked with")
    metrics: tuple[str, ...] = Field(min_length=1, description="metrics of the evaluations, each of which is a task")
    scope: Scope = Field(default="mean", description=_SCOPES)
    at_most: float = Field(description="largest average rank")

    @model_validator(mode="after")
    def _can_be_ranked(self) -> Self:
        for metric in self.metrics:
            if best_of(metric) is None:
                raise UnfitValue(
                    "metrics", self.metrics, f"metrics of which is known whether more is better, unlike {metric}"
                )
        if self.statistic == "lower":
            raise UnfitValue("statistic", self.statistic, _NOT_LOWER)
        return self

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.arm, *self.among)))

    @property
    def required(self) -> str:
        return self._worded(f"average rank ≤ {self.at_most:g} of {len(self.arms)}")

    def seen(self, results: Results) -> dict[int, float]:
        lower = [best_of(metric) is min for metric in self.metrics]
        found = {}
        for seed in results[self.arm]:
            runs = [results[arm].get(seed) for arm in self.arms]
            scores = [
                [last_value(run.history, metric, self.scope) for metric in self.metrics]
                for run in runs
                if run is not None
            ]
            known = [[value for value in row if value is not None] for row in scores]
            if len(known) == len(self.arms) and all(len(row) == len(self.metrics) for row in known):
                found[seed] = float(average_ranks(known, lower)[0])
        return found

    def judge(self, seen: Mapping[int, float]) -> tuple[float, bool]:
        value = self._judged(seen)
        return value, value <= self.at_most


AnyGate = Annotated[
    DifferenceGate | ThresholdGate | QuotientGate | TrendGate | RatioGate | RankGate, Field(discriminator="kind")
]


def _series(history: History, metric: str, scope: Scope) -> list[tuple[int, float]]:
    if scope in ("train", "logged"):
        return history.logged(metric, "train" if scope == "train" else "server")
    return history.series(metric, scope)


def _divided(above: float, below: float) -> float:
    return above / below if below else math.inf
