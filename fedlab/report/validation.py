"""Curves of the metrics on the clients' validation samples, beside those on their test samples."""

from __future__ import annotations

from collections.abc import Iterator

from fedlab.report.blocks import Chart
from fedlab.report.charts import lines_chart
from fedlab.report.record import RunRecord
from fedlab.report.values import is_share, metric_phrase
from fedlab.tracking.basis import basis


def validation_curve(record: RunRecord, metric: str, name: str) -> Iterator[Chart]:
    """The mean of a metric on test and on validation samples; nothing if there are no validation samples.

    Args:
        record: the run.
        metric: name of the metric.
        name: of the chart, unique on the page.
    """
    held = record.metric_over_rounds(metric, "validation")
    if not held:
        return
    label, stands = metric_phrase(metric), basis(record.evaluations[max(held)], "validation")
    yield Chart(
        f"Validation {label}",
        lines_chart(
            name,
            {"test": record.metric_over_rounds(metric, "mean"), "validation": held},
            ylabel=f"mean {label}" + (" (%)" if is_share(metric) else ""),
            percent=is_share(metric),
            span=record.span,
        ),
        f"Means over clients. Validation: {stands}, which are held back from the clients’ training samples.",
    )
