"""Results of runs, and of several runs together: mean ± sample standard deviation."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from fedlab.metrics.direction import best_of
from fedlab.report.record import SERVER, RunRecord
from fedlab.report.values import (
    human_bytes,
    is_number,
    is_share,
    metric_names,
    metric_phrase,
    number,
)
from fedlab.tracking import Event
from fedlab.tracking.basis import alike, basis, server_basis
from fedlab.tracking.durations import human_seconds

_ON_SERVER = (("server", "server's data"),)
_ON_CLIENTS = (("clients", "mean over clients"), ("pooled", "pooled"), ("worst", "worst client"))


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of the values of several runs.

    Args:
        mean: None where there is no value.
        std: sample standard deviation (n − 1); None below two values.
        n: how many values there are.
    """

    mean: float | None
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread:
        """The spread of the values that are not None."""
        found = [value for value in values if value is not None]
        mean = statistics.fmean(found) if found else None
        return cls(mean, statistics.stdev(found) if len(found) > 1 else None, len(found))


@dataclass(frozen=True)
class Quantity:
    """A quantity that tables show for runs.

    Args:
        key: name of its column in a file.
        title: heading of its column in a table, with its unit.
        of: gives the value of a run; None if the run has none.
        text: writes a value in the unit of the title.
        difference: writes the difference between two values.
        counted: whether it is counted and not measured; then a deviation of zero is not shown.
    """

    key: str
    title: str
    of: Callable[[RunRecord], float | None]
    text: Callable[[float], str]
    difference: Callable[[float, float], str]
    counted: bool = False

    def shown(self, spread: Spread) -> str:
        """Mean ± standard deviation; without the latter if there is only one value."""
        if spread.mean is None:
            return "–"
        if spread.std is None or (self.counted and spread.std == 0):
            return self.text(spread.mean)
        return f"{self.text(spread.mean)} ± {self.text(spread.std)}"

    def compared(self, spread: Spread, other: Spread) -> str:
        """The same text, followed by the difference from `other`."""
        if spread.mean is None or other.mean is None:
            return self.shown(spread)
        return f"{self.shown(spread)} ({self.difference(spread.mean, other.mean)})"


def quantities(metrics: Sequence[str]) -> list[Quantity]:
    """Every metric's mean over the clients, pooled value and worst client, then bytes and seconds.

    Args:
        metrics: names of the clients' metrics, and with `SERVER` before them of those on the server's own data.
    """
    found = []
    for asked in metrics:
        on_server, metric = asked.startswith(SERVER), asked.removeprefix(SERVER)
        share = is_share(metric)
        unit = " (%)" if share else ""
        for scope, words in _ON_SERVER if on_server else _ON_CLIENTS:
            found.append(
                Quantity(
                    f"{metric}_{scope}",
                    f"{metric_phrase(metric)}, {words}{unit}",
                    partial(final, metric=metric, scope=scope),
                    _percent if share else number,
                    _points if share else _minus,
                )
            )
    found.append(Quantity("bytes", "traffic", lambda r: float(sum(r.bytes_total())), human_bytes, _times, counted=True))
    found.append(Quantity("seconds", "time", RunRecord.wall_seconds, human_seconds, _times))
    return found


def curve(record: RunRecord, metric: str) -> dict[int, float]:
    """A metric by round: the mean over the clients, or with `SERVER` before its name on the server's own data."""
    scope = "server" if metric.startswith(SERVER) else "mean"
    return record.metric_over_rounds(metric.removeprefix(SERVER), scope)


def known_metrics(evaluations: Iterable[Event]) -> list[str]:
    """Metrics that can be shown: those of the clients, then those on the server's data, beginning with `SERVER`."""
    events = list(evaluations)
    clients = metric_names(values for e in events for values in (e.get("mean", {}), *e.get("clients", {}).values()))
    return clients + [SERVER + name for name in metric_names(e.get("server", {}) for e in events)]


def final(record: RunRecord, metric: str, scope: str = "clients") -> float | None:
    """A metric at the last evaluation.

    Args:
        record: the run.
        metric: such as ``accuracy``.
        scope: ``clients``, their unweighted mean; ``pooled``; ``worst``, the client where it is worst; ``server``.
    """
    if not record.evaluations:
        return None
    event = record.evaluations[max(record.evaluations)]
    if scope == "worst":
        values = [float(v[metric]) for v in event["clients"].values() if is_number(v.get(metric))]
        worst = max if best_of(metric) is min else min
        return worst(values) if values else None
    value = event.get("mean" if scope == "clients" else scope, {}).get(metric)
    return float(value) if is_number(value) else None


def measured_on(records: Iterable[RunRecord], scope: str = "mean") -> str:
    """How many samples the last evaluations are based on: ``1,000 test samples of 5 clients``, or smallest to largest.

    Args:
        records: of runs.
        scope: one of an evaluation's, see `fedlab.tracking.basis.basis`; ``server`` is the server's data.
    """
    events = [record.evaluations[max(record.evaluations)] for record in records if record.evaluations]
    if scope == "server":
        return " or ".join(dict.fromkeys(filter(None, map(server_basis, events)))) or "–"
    return alike(basis(event, scope if scope != "mean" or event["mean"] else "unseen") for event in events)


def shown_on(records: Iterable[RunRecord], metrics: Sequence[str]) -> str:
    """How many samples of the clients and of the server the values of these metrics are based on."""
    found = list(records)
    of_server = [metric.startswith(SERVER) for metric in metrics]
    parts = [measured_on(found)] if not all(of_server) or not of_server else []
    return "; server: ".join([*parts, measured_on(found, "server")] if any(of_server) else parts)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _points(value: float, other: float) -> str:
    return f"{100 * (value - other):+.1f}"


def _minus(value: float, other: float) -> str:
    return f"{value - other:+.3g}"


def _times(value: float, other: float) -> str:
    return f"×{value / other:.2f}" if other else "×–"
