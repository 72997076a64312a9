"""Metrics that the last evaluation did not measure, because an earlier stage measured others than the last stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fedlab.metrics.direction import ranked
from fedlab.report.blocks import Table
from fedlab.report.record import RunRecord
from fedlab.report.values import is_number, metric_label, metric_value
from fedlab.tracking import SCOPES, Event

MEAN = "unweighted mean"
_WORDS = {
    "mean": MEAN,
    "pooled": "pooled",
    "unseen": "mean of unseen",
    "server": "server’s data",
    "strategy": "strategy’s own",
}


class Earlier(NamedTuple):
    """The last value of a metric that later evaluations did not measure.

    Args:
        metric: name of the metric.
        scope: the part of the evaluation, in words.
        value: its last value.
        round: round after which it was measured.
    """

    metric: str
    scope: str
    value: float
    round: int


def earlier_values(evaluations: Iterable[Event]) -> list[Earlier]:
    """Last values of all metrics that the last evaluation did not measure, by scope.

    Args:
        evaluations: evaluation events, in the order of their rounds.
    """
    last: dict[str, dict[str, tuple[float, int]]] = {scope: {} for scope in SCOPES}
    event: Event = {}
    for event in evaluations:
        for scope, values in last.items():
            found: Mapping[str, object] = event.get(scope) or {}
            values.update({m: (float(str(v)), int(event["round"])) for m, v in found.items() if is_number(v)})
    now = event.get("round")
    return [
        Earlier(metric, _WORDS[scope], *values[metric])
        for scope, values in last.items()
        for metric in ranked(values)
        if values[metric][1] != now
    ]


def earlier_table(record: RunRecord) -> Table | None:
    """What earlier evaluations measured and the last one did not."""
    found = earlier_values(record.evaluations.values())
    rows = [(metric_label(e.metric), e.scope, metric_value(e.metric, e.value), f"{e.round:,}") for e in found]
    note = "The last value of each metric that earlier stages measured and the last evaluation did not."
    return Table(("Earlier metric", "Of", "Value", "After round"), rows, note=note, text_columns=1) if rows else None


def before_table(record: RunRecord) -> Table | None:
    """What probes measured before round 1."""
    found = record.history.probed
    rows = [
        (metric_label(metric), _WORDS[scope], metric_value(metric, values[metric]))
        for scope in SCOPES
        for values in [found.get(scope, {})]
        for metric in ranked(name for name, value in values.items() if is_number(value))
    ]
    note = "Measured before training, for comparison with what was learned."
    return Table(("Before round 1", "Of", "Value"), rows, note=note, text_columns=1) if rows else None
