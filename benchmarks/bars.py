"""What FedLab is to reach, and whether it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import linear_regression, median
from typing import Literal

from benchmarks.contest import Result

INLINE, RAY_1, RAY_2 = "FedLab inline", "FedLab ray, 1 worker", "FedLab ray, 2 workers"
BARE, BARE_2, STOCK, PFL = "bare PyTorch loop", "two bare loops at once", "Flower simulation", "pfl-research"
APP = "the same Flower app on FedLab ray, 2 workers"
TURNS = "FedLab inline and the bare loop in one process"
TRAIN, SMALL, MIDDLE, LARGE, HUGE = "train", "empty-4KB", "empty-6.5MB", "empty-40MB", "empty-344MB"
WHOLE = "empty-all"
SCALE = "scale"
FEW, MANY, MOST = "10 clients", "1,000 clients", "100,000 clients"
Results = Mapping[str, Mapping[str, Result]]
"""By workload and contender."""


def cpu_ratio(results: Mapping[str, Result], one: str, other: str) -> float:
    """Median over rounds of the ratio of CPU times; round by round, since the machine's speed changes."""
    return _ratio(results[one].cpu, results[other].cpu)


def wall_ratio(results: Mapping[str, Result], one: str, other: str) -> float:
    """Median over rounds of the ratio of wall times."""
    return _ratio(results[one].wall, results[other].wall)


def part_ratio(result: Result, one: str, other: str) -> float:
    """Median over rounds of the ratio of the CPU times of two parts of a contender's rounds."""
    return _ratio(result.parts[one], result.parts[other])


def level(result: Result) -> float:
    """Megabytes at the end of a round, median."""
    return median(result.held)


def growth(result: Result, rounds: int) -> float:
    """Share by which memory grows in so many rounds: the slope of a line through all but the first quarter."""
    settled = result.held[len(result.held) // 4 :]
    slope = linear_regression(range(len(settled)), settled).slope if len(settled) > 1 else 0.0
    return slope * rounds / level(result)


@dataclass(frozen=True)
class Bar:
    """One bar.

    Args:
        text: what is measured.
        workload: in which.
        needs: contenders it is measured on.
        value: makes the value of the workload's results.
        limit: to be reached; None for a value that is reported and not judged.
        side: of the limit.
        unit: behind the numbers.
        wall: it is a wall time, which other users of the machine spoil.
    """

    text: str
    workload: str
    needs: tuple[str, ...]
    value: Callable[[Mapping[str, Result]], float]
    limit: float | None = None
    side: Literal["at most", "at least"] = "at most"
    unit: str = "×"
    wall: bool = False


BARS = (
    Bar(
        "CPU of FedLab inline over the bare loop, client by client in one process", TRAIN, (TURNS,),
        lambda r: part_ratio(r[TURNS], INLINE, BARE), 1.03,
    ),
    Bar(
        "CPU of FedLab inline over the bare loop, each in processes of its own", TRAIN, (INLINE, BARE),
        lambda r: cpu_ratio(r, INLINE, BARE), 1.03,
    ),
    Bar(
        "CPU of FedLab ray, 1 worker, over the bare loop", TRAIN, (RAY_1, BARE), lambda r: cpu_ratio(r, RAY_1, BARE),
        1.10,
    ),
    Bar(
        "CPU of FedLab ray, 2 workers, over two bare loops at once", TRAIN, (RAY_2, BARE_2),
        lambda r: cpu_ratio(r, RAY_2, BARE_2), 1.05,
    ),
    Bar(
        "wall time of FedLab ray, 2 workers, over two bare loops at once", TRAIN, (RAY_2, BARE_2),
        lambda r: wall_ratio(r, RAY_2, BARE_2), 1.15, wall=True,
    ),
    Bar(
        "CPU of stock Flower over FedLab ray, 2 workers", TRAIN, (STOCK, RAY_2), lambda r: cpu_ratio(r, STOCK, RAY_2),
    ),
    Bar(
        "CPU of stock Flower over the same Flower app on FedLab ray, 2 workers", TRAIN, (STOCK, APP),
        lambda r: cpu_ratio(r, STOCK, APP),
    ),
    Bar(
        "wall time of stock Flower over the same Flower app on FedLab ray, 2 workers", TRAIN, (STOCK, APP),
        lambda r: wall_ratio(r, STOCK, APP), wall=True,
    ),
    Bar(
        "empty round, 50 of 1,000 clients, 6.5 MB", MIDDLE, (RAY_2,), lambda r: median(r[RAY_2].wall), 0.25, unit=" s",
        wall=True,
    ),
    Bar("the same, stock Flower over FedLab", MIDDLE, (STOCK, RAY_2), lambda r: wall_ratio(r, STOCK, RAY_2), wall=True),
    Bar(
        "the same, stock Flower over the same Flower app on FedLab", MIDDLE, (STOCK, APP),
        lambda r: wall_ratio(r, STOCK, APP), wall=True,
    ),
    Bar(
        "empty round, 1,000 of 1,000 clients, 6.5 MB", WHOLE, (RAY_2,), lambda r: median(r[RAY_2].wall), 2.5,
        unit=" s", wall=True,
    ),
    Bar("the same, stock Flower over FedLab", WHOLE, (STOCK, RAY_2), lambda r: wall_ratio(r, STOCK, RAY_2), wall=True),
    Bar("the same, memory of FedLab, all processes", WHOLE, (RAY_2,), lambda r: r[RAY_2].tree / 1000, 1.4, unit=" GB"),
    Bar(
        "the same, memory of FedLab over stock Flower", WHOLE, (RAY_2, STOCK), lambda r: r[RAY_2].tree / r[STOCK].tree,
    ),
    Bar(
        "start with 100,000 clients, more than with 10", SCALE, (FEW, MOST), lambda r: r[MOST].start - r[FEW].start,
        20.0, unit=" s", wall=True,
    ),
    Bar(
        "memory with 100,000 clients over that with 1,000 and 10, largest over smallest", SCALE, (FEW, MANY, MOST),
        lambda r: max(level(found) for found in r.values()) / min(level(found) for found in r.values()), 1.10,
    ),
    Bar(
        "growth of memory over 200 rounds of 100,000 clients", SCALE, (MOST,), lambda r: growth(r[MOST], 200), 0.05,
        unit=" of it",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """A bar and what was seen.

    Args:
        bar: which.
        seen: its value, None where a contender did not take part.
        loaded: it is a wall time seen while others used the machine.
    """

    bar: Bar
    seen: float | None
    loaded: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the limit was reached; None where there is none, and where the bar was not measured."""
        if self.seen is None or self.bar.limit is None:
            return None
        return self.seen <= self.bar.limit if self.bar.side == "at most" else self.seen >= self.bar.limit

    @property
    def word(self) -> str:
        """``met`` or ``missed``, ``reported`` where there is no limit, or ``not measured``."""
        if self.seen is None:
            return "not measured"
        said = {True: "met", False: "**missed**", None: "reported"}[self.met]
        return f"{said} †" if self.loaded else said


def judge(results: Results) -> list[Verdict]:
    """Every bar's verdict."""
    verdicts = []
    for bar in BARS:
        found = results.get(bar.workload, {})
        if all(name in found for name in bar.needs):
            loaded = bar.wall and any(found[name].loaded for name in bar.needs)
            verdicts.append(Verdict(bar, bar.value(found), loaded))
        else:
            verdicts.append(Verdict(bar, None))
    return verdicts


def _ratio(one: list[float], other: list[float]) -> float:
    return median(a / b for a, b in zip(one, other, strict=True))
