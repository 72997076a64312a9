"""The figures at the top of the report."""

from __future__ import annotations

from collections.abc import Iterator

from fedlab.metrics.direction import best_of
from fedlab.report.privacy import privacy_figure
from fedlab.report.record import RunRecord, claims, main_metric
from fedlab.report.values import human_bytes, metric_label, metric_phrase, metric_value, plural
from fedlab.tracking.basis import Basis, basis, server_basis
from fedlab.tracking.durations import human_seconds

Figure = tuple[str, str, str]
_MOST_CLAIMED = 2  # of the server's metrics that a method names; the table has the others


def headline(record: RunRecord) -> list[Figure]:
    """(name, value, remark) of the figures at the top of the report."""
    figures = [*_claimed(record), *_clients(record)]
    spent = privacy_figure(record)
    if spent is not None:
        figures.append(spent)
    if record.rounds:
        down, up = record.bytes_total()
        figures.append(("Sent to clients", human_bytes(down), "in all rounds"))
        figures.append(("Sent to server", human_bytes(up), "in all rounds"))
    seconds = record.wall_seconds()
    if seconds is not None:
        figures.append(("Wall time", human_seconds(seconds), _engine(record)))
    return figures


def _claimed(record: RunRecord) -> Iterator[Figure]:
    """What the method's claim is measured by, where that is on the server's data."""
    shown = 0
    for metric, scope in claims(record.history):
        found = record.metric_over_rounds(metric, scope) if scope == "server" else {}
        if not found or shown == _MOST_CLAIMED:
            continue
        shown += 1
        last = max(found)
        held = server_basis(record.evaluations[last])
        remark = f"on the server’s data{f', {held}' if held else ''}, after round {last}"
        yield metric_label(metric), metric_value(metric, found[last]), remark


def _clients(record: RunRecord) -> Iterator[Figure]:
    """The main metric of the clients: its mean, that of unseen clients, pooled, and its best."""
    metric = main_metric(record.history)
    if metric is None:
        return
    mean = record.metric_over_rounds(metric, "mean")
    pooled = record.metric_over_rounds(metric, "pooled")
    unseen = record.metric_over_rounds(metric, "unseen")
    rounds = {*mean, *pooled, *unseen}
    if not rounds:
        return
    last = max(rounds)  # the last evaluation may have measured other metrics, in another stage of the method
    event = record.evaluations[last]
    stands = {scope: basis(event, scope, metric) for scope in ("mean", "pooled", "unseen")}
    name = metric_phrase(metric)
    if last in mean:
        remark = f"over {stands['mean'].who if stands['mean'].amount else 'clients'}{_with(stands['mean'])}"
        yield f"Mean {name}", metric_value(metric, mean[last]), f"{remark}, after round {last}"
    if last in unseen:
        apart = stands["unseen"]
        who = "1 client that never trains" if apart.clients == 1 else f"{apart.clients:,} clients that never train"
        yield f"Unseen {name}", metric_value(metric, unseen[last]), f"mean over {who}{_with(apart)}"
    if last in pooled:
        remark = f"over all {stands['pooled'].amount or stands['pooled'].unit}"
        yield f"Pooled {name}", metric_value(metric, pooled[last]), remark
    better = best_of(metric)
    if better and len(mean) > 1:
        best = better(mean, key=lambda round: (mean[round], -round) if better is max else (mean[round], round))
        remark = f"round {best}, chosen on test data{_with(basis(record.evaluations[best], 'mean', metric))}"
        yield f"Best mean {name}", metric_value(metric, mean[best]), remark


def _with(stands: Basis) -> str:
    return f", {stands.amount}" if stands.amount else ""


def _engine(record: RunRecord) -> str:
    start = record.history.start
    workers = start.get("workers")
    return f"{start.get('engine', '')} engine" + (f", {plural(workers, 'worker')}" if workers else "")
