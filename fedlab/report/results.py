"""The report's table of the last evaluation."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from fedlab.report.blocks import Table
from fedlab.report.record import RunRecord
from fedlab.report.values import is_number, metric_label, metric_names, metric_value
from fedlab.tracking import Event
from fedlab.tracking.basis import basis, singular

_SPREAD_CLIENTS = 12

_APART = {
    "unseen": "Mean of unseen",
    "strategy": "Strategy’s own",
    "validation": "Validation mean",
    "validation_pooled": "Validation pooled",
}

Values = Mapping[str, Any]


def results_table(record: RunRecord) -> Table | None:
    """The last evaluation by client, with the mean and the pooled values."""
    return _Results(record, record.evaluations[max(record.evaluations)]).table() if record.evaluations else None


class _Results:
    """One evaluation as a table: a column for each metric, and for domains and numbers of samples where known.

    Args:
        record: of the run.
        event: the evaluation.
    """

    def __init__(self, record: RunRecord, event: Event) -> None:
        self.record, self.event = record, event
        self.clients: Mapping[str, Values] = event["clients"]
        self.unseen: tuple[str, ...] = tuple(event.get("unseen_clients", ()))
        self.trained = {name: values for name, values in self.clients.items() if name not in self.unseen}
        self.metrics = metric_names([event["mean"], event["pooled"], *self.clients.values()])
        self.with_domain = any(map(self._domain, self.clients))
        self.counted: Mapping[str, int] = event.get("samples") or {}
        self.tests = self.counted or self._recorded_tests()

    def table(self) -> Table:
        """The table."""
        unit = basis(self.event).unit
        columns = ["Client", *(["Domain"] if self.with_domain else []), *map(metric_label, self.metrics)]
        note = "Mean: every client has equal weight."
        if self.event["pooled"]:
            note += f" Pooled: every {singular(unit)} has equal weight."
        apart = " Unseen clients never train and are included in neither." if self.unseen else ""
        held = " Validation: the samples that clients hold back from training." if self.event.get("validation") else ""
        return Table(
            [*columns, *([unit[:1].upper() + unit[1:]] if self.tests else [])],
            list(self._clients()),
            [*self._summary(), *self._spread()],
            note + apart + held,
            text_columns=int(self.with_domain),
        )

    def _clients(self) -> Iterator[list[str]]:
        """One row for each client, those that never train behind the others."""
        for name, values in self.trained.items():
            yield self._row(name, values, self.tests.get(name), self._domain(name))
        for name in self.unseen:
            yield self._row(f"{name} (unseen)", self.clients[name], self.tests.get(name), self._domain(name))

    def _summary(self) -> Iterator[list[str]]:
        """Means, and what the strategy measured itself."""
        pooled = sum(count for name, count in self.tests.items() if name in self.trained)
        if self.trained or not self.unseen:
            yield self._row("Unweighted mean", self.event["mean"], pooled if self.counted else None)
            if self.event["pooled"]:  # a Flower app sums nothing up over samples
                yield self._row("Pooled", self.event["pooled"], pooled)
        for scope, label in _APART.items():
            if self.event.get(scope):
                yield self._row(label, self.event[scope], basis(self.event, scope).samples)

    def _spread(self) -> Iterator[list[str]]:
        """How far apart the clients are, where they are too many to be seen at a glance."""
        if len(self.trained) <= _SPREAD_CLIENTS:
            return
        held = {m: [v[m] for v in self.trained.values() if is_number(v.get(m))] for m in self.metrics}
        for label, pick in (("Lowest", min), ("Median", statistics.median), ("Highest", max)):
            yield self._row(label, {metric: pick(values) for metric, values in held.items() if values}, None)

    def _row(self, name: str, values: Values, samples: int | None, domain: str = "") -> list[str]:
        shown = [metric_value(metric, values.get(metric)) for metric in self.metrics]
        held = ["–" if samples is None else f"{samples:,}"] if self.tests else []
        return [name, *([domain] if self.with_domain else []), *shown, *held]

    def _recorded_tests(self) -> Mapping[str, int]:
        """Test samples by client as the partition has them: older versions did not count those evaluated."""
        facts = self.record.client_facts
        return {name: sum(facts[name]["test"]) for name in self.clients if name in facts}

    def _domain(self, name: str) -> str:
        """Where it says more than the client's name."""
        domain = str(self.record.client_facts.get(name, {}).get("domain", ""))
        return "" if domain in ("all", "mixed", name) else domain
