"""The chart of the clients' results before and after local training on their own samples."""

from __future__ import annotations

from collections.abc import Iterator

from fedlab.metrics.direction import AFTER_TRAINING
from fedlab.report.blocks import Chart
from fedlab.report.charts import lines_chart
from fedlab.report.record import RunRecord, main_metric
from fedlab.report.values import is_share, metric_phrase


def personalized_curves(record: RunRecord) -> Iterator[Chart]:
    """The main metric of the model as received and after local training, if the run has measured both."""
    metric = main_metric(record.history)
    if metric is None:
        return
    series = {
        label: points
        for label, name in (("as received", metric), ("after training", f"{AFTER_TRAINING}{metric}"))
        if (points := record.metric_over_rounds(name, "mean"))
    }
    if len(series) < 2:
        return
    label, percent = metric_phrase(metric), is_share(metric)
    svg = lines_chart(
        "personalized", series, ylabel=f"mean {label}" + (" (%)" if percent else ""), percent=percent, span=record.span
    )
    note = "Mean over the clients of the model as they receive it, and after local training on their own samples."
    yield Chart(f"{label[:1].upper()}{label[1:]} before and after local training", svg, note)
