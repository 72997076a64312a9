"""Charts that methods put into the report: a curve with marks beside it, and a table of percentages in shades."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from fedlab.method import Plot

_FONT = 8
_NEAR = 0.03  # of the width of a chart; names that are nearer than this would lie on each other
_RED = "#c0392b"


class Point(NamedTuple):
    """A point of a chart.

    Args:
        across: on the horizontal axis.
        up: on the vertical axis.
        name: written beside it.
    """

    across: float
    up: float
    name: str


def curve_with_marks(
    curve: Sequence[Point],
    marks: Sequence[Point],
    circled: int,
    *,
    axes: tuple[str, str],
    legend: tuple[str, str, str],
    title: str,
    caption: str,
) -> Plot:
    """Draw a line through points, a circle around one of them, and other points as crosses.

    Args:
        curve: the points of the line, in order. Names that would lie on an earlier one are left out.
        marks: the crosses.
        circled: number of the point of the line that has a circle around it.
        axes: what is on the horizontal axis, and on the vertical one.
        legend: what the line, the circle and the crosses are.
        title: title of the picture.
        caption: caption of the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    chart: Any = figure.subplots()
    line, circle, crosses = legend
    places = [point.across for point in (*curve, *marks)]
    near, named = _NEAR * (max(places) - min(places)), list[float]()
    look: dict[str, Any] = {"textcoords": "offset points", "fontsize": _FONT - 1, "ha": "center", "parse_math": False}
    chart.plot([point.across for point in curve], [point.up for point in curve], "o-", markersize=4, label=line)
    for point in curve:
        if all(abs(point.across - other) > near for other in named):
            named.append(point.across)
            chart.annotate(point.name, point[:2], (0, 5), **look)
    chart.plot(*curve[circled][:2], "o", markersize=10, fillstyle="none", color="black", label=circle)
    chart.plot([point.across for point in marks], [point.up for point in marks], "x", color=_RED, label=crosses)
    for point in marks:
        chart.annotate(point.name, point[:2], (0, -12), color=_RED, **look)
    chart.set_xlabel(axes[0], fontsize=_FONT)
    chart.set_ylabel(axes[1], fontsize=_FONT)
    chart.tick_params(labelsize=_FONT)
    chart.grid(alpha=0.3)
    chart.legend(fontsize=_FONT)
    return Plot(figure, title, caption)


def percentages(
    rows: Sequence[Sequence[float]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    *,
    axis: str,
    title: str,
    caption: str,
) -> Plot:
    """Draw a table of percentages, where higher ones are darker.

    Args:
        rows: the percentages, from 0 to 100, by row.
        row_names: names of the rows.
        column_names: names of the columns.
        axis: what the columns are.
        title: title of the picture.
        caption: caption of the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 0.75 * len(column_names), 1.0 + 0.3 * len(rows)), layout="constrained")
    chart: Any = figure.subplots()
    chart.imshow(rows, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for row, values in enumerate(rows):
        for column, value in enumerate(values):
            color = "white" if value > 60 else "black"
            chart.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=_FONT, color=color)
    chart.set_xticks(range(len(column_names)), column_names, fontsize=_FONT, parse_math=False)
    chart.set_yticks(range(len(rows)), row_names, fontsize=_FONT, parse_math=False)
    chart.set_xlabel(axis, fontsize=_FONT)
    return Plot(figure, title, caption)
