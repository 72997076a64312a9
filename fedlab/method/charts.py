"""Pictures of curves and points over an axis, such as a figure of every layer of a network, and tables in shades."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fedlab.method.pictures import Plot

_FONT, _SMALL = 9, 8
_NEAR = 0.03  # of the width of a chart; names that are nearer than this would lie on each other
_RED = "#c0392b"


@dataclass(frozen=True)
class Curve:
    """A curve through points, or points alone.

    Args:
        name: label in the legend; curves of equal names have equal colors, and one label.
        x: positions on the axis.
        y: the values there.
        line: whether a line joins the points; points alone are drawn small and pale.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    line: bool = True


def curves(
    panels: Mapping[str, Sequence[Curve]], *, axis: str, title: str = "", caption: str = "", whole: bool = False
) -> Plot:
    """Draw curves in panels side by side, with a legend below them.

    Args:
        panels: the curves of each panel, by the label of its vertical axis.
        axis: label of the horizontal axis.
        title: title above the picture.
        caption: one sentence, which the report shows below the picture.
        whole: whether only whole numbers are written at the horizontal axis, as for layers.
    """
    from matplotlib import rc_context, rcdefaults
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = list(dict.fromkeys(curve.name for shown in panels.values() for curve in shown))
    with rc_context():
        rcdefaults()
        figure = Figure(figsize=(4.2 * max(1, len(panels)), 3.2), layout="constrained")
        places = figure.subplots(1, max(1, len(panels)), squeeze=False)[0]
        handles = {}
        for place, (label, shown) in zip(places, panels.items(), strict=False):
            for curve in shown:
                color = f"C{names.index(curve.name)}"
                if curve.line:
                    (handles[curve.name],) = place.plot(curve.x, curve.y, color=color, marker="o", markersize=4)
                else:
                    points = place.scatter(curve.x, curve.y, color=color, s=9, alpha=0.4, linewidths=0)
                    handles.setdefault(curve.name, points)
            place.set_ylabel(label, fontsize=_FONT, parse_math=False)
            place.set_xlabel(axis, fontsize=_FONT, parse_math=False)
            place.tick_params(labelsize=7)
            if whole:
                place.xaxis.set_major_locator(MaxNLocator(integer=True))
            for side in ("top", "right"):
                place.spines[side].set_visible(False)
        legend = figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower center",
            ncols=max(1, len(handles)),
            fontsize=_FONT,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    return Plot(figure, title, caption)


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
    look: dict[str, Any] = {"textcoords": "offset points", "fontsize": _SMALL - 1, "ha": "center", "parse_math": False}
    chart.plot([point.across for point in curve], [point.up for point in curve], "o-", markersize=4, label=line)
    for point in curve:
        if all(abs(point.across - other) > near for other in named):
            named.append(point.across)
            chart.annotate(point.name, point[:2], (0, 5), **look)
    chart.plot(*curve[circled][:2], "o", markersize=10, fillstyle="none", color="black", label=circle)
    chart.plot([point.across for point in marks], [point.up for point in marks], "x", color=_RED, label=crosses)
    for point in marks:
        chart.annotate(point.name, point[:2], (0, -12), color=_RED, **look)
    chart.set_xlabel(axes[0], fontsize=_SMALL)
    chart.set_ylabel(axes[1], fontsize=_SMALL)
    chart.tick_params(labelsize=_SMALL)
    chart.grid(alpha=0.3)
    chart.legend(fontsize=_SMALL)
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
            chart.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=_SMALL, color=color)
    chart.set_xticks(range(len(column_names)), column_names, fontsize=_SMALL, parse_math=False)
    chart.set_yticks(range(len(rows)), row_names, fontsize=_SMALL, parse_math=False)
    chart.set_xlabel(axis, fontsize=_SMALL)
    return Plot(figure, title, caption)
