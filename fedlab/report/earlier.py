"""Metrics that the last evaluation did not measure, because an earlier stage measured others than the last stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fedlab.metrics.direction import ranked
from fedlab.report.blocks import Table
from fedlab.report.record import RunRecord
from fedlab.report.units import Measured, unit_tables
from fedlab.report.values import is_number
from fedlab.tracking import SCOPES, Event

MEAN = "unweighted mean"
_WORDS = {
    "mean": MEAN,
    "pooled": "pooled",
    "unseen": "mean of unseen",
    "server": "server’s data",
    "strategy": "strategy’s own",
    "validation": "mean on validation samples",
    "validation_pooled": "pooled validation samples",
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


def earlier_tables(record: RunRecord) -> list[Table]:
    """What earlier evaluations measured and the last one did not, by unit."""
    found = [
        Measured(e.metric, e.value, (e.scope,), (f"{e.round:,}",)) for e in earlier_values(record.evaluations.values())
    ]
    note = "The last value of each metric that earlier stages measured and the last evaluation did not."
    return unit_tables(found, "Earlier metric", of=("Of",), behind=("After round",), note=note)


def before_tables(record: RunRecord) -> list[Table]:
    """What probes measured before round 1, by unit."""
    probed = record.history.probed
    found = [
        Measured(metric, float(values[metric]), (_WORDS[scope],))
        for scope in SCOPES
        for values in [probed.get(scope, {})]
        for metric in ranked(name for name, value in values.items() if is_number(value))
    ]
    note = "Measured before training, for comparison with what was learned."
    return unit_tables(found, "Before round 1", of=("Of",), note=note)
