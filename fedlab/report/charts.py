"""The report's charts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from fedlab.report.partition import plot_partition, shorten, wrapped
from fedlab.report.spread import Spread
from fedlab.report.svg import INK, SERIES, inline_svg, page_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Mapping[int, float]
_MARKERS = "os^DvPX*"
_STROKES = ("-", "--", ":", "-.")
_SIZE = (5.6, 3.3)
_LEGEND = 72  # characters of a line of a legend
_LABEL_GAP = 0.072  # a line of text as a share of the axes' height
_MOST_MARKERS = 40


def lines_chart(
    name: str,
    series: Mapping[str, Points],
    *,
    ylabel: str,
    span: tuple[int, int],
    percent: bool = False,
    mean: Points | None = None,
) -> Markup:
    """Values over rounds: one labeled line for each series, or their spread if there are more series than colors.

    Args:
        name: unique on the page.
        series: by label.
        ylabel: quantity and unit.
        span: first and last round of the axis.
        percent: values are shares.
        mean: drawn boldly on top.
    """
    from matplotlib.figure import Figure

    scale = 100.0 if percent else 1.0
    scaled = {label: {round: scale * value for round, value in points.items()} for label, points in series.items()}
    bold = {round: scale * value for round, value in (mean or {}).items()}
    with page_style():
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        few = len(scaled) <= len(SERIES)
        labels = _lines(axes, scaled) if few else _spread(axes, scaled)
        if bold:
            axes.plot(list(bold), list(bold.values()), color=INK, linewidth=2.6, zorder=4, **_marker("o", len(bold)))
            labels.append(("mean", bold[max(bold)], INK))
        axes.set_ylabel(shorten(ylabel, 48))
        _rounds_axis(axes, span)
        axes.margins(y=0.08)
        if len(labels) > 1:
            _end_labels(axes, labels)
        ends = ", ".join(f"{label} {value:.4g}" for label, value, _ in labels)
        return inline_svg(figure, name, f"{ylabel} over rounds; at the end: {ends}.")


def compared_chart(
    name: str, lines: Mapping[str, Mapping[int, Spread]], *, ylabel: str, span: tuple[int, int], percent: bool = False
) -> Markup:
    """Curves of several runs, each with its name at its end and a band of ± one standard deviation over seeds.

    Args:
        name: unique on the page.
        lines: by label, mean and deviation by round. A label has its place's color, also in charts where others have no
            values. Beyond eight, the strokes change as well.
        ylabel: quantity and unit.
        span: first and last round of the axis.
        percent: values are shares.
    """
    from matplotlib.figure import Figure

    scale = 100.0 if percent else 1.0
    height = max(_SIZE[1], 1.0 + 0.22 * sum(map(bool, lines.values())))
    with page_style():
        figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
        axes = figure.add_subplot()
        labels = []
        for index, (label, points) in enumerate(lines.items()):
            known = {round: spread for round, spread in points.items() if spread.mean is not None}
            if not known:
                continue
            rounds, color = list(known), SERIES[index % len(SERIES)]
            means = np.array([scale * (spread.mean or 0.0) for spread in known.values()])
            width = np.array([scale * (spread.std or 0.0) for spread in known.values()])
            stroke = _STROKES[index // len(SERIES) % len(_STROKES)]
            look = _marker(_MARKERS[index % len(_MARKERS)], len(rounds))
            axes.plot(rounds, means, color=color, linestyle=stroke, **look)
            if width.any():
                axes.fill_between(rounds, means - width, means + width, color=color, alpha=0.15, linewidth=0)
            labels.append((label, float(means[-1]), color))
        axes.set_ylabel(shorten(ylabel, 48))
        _rounds_axis(axes, span)
        axes.margins(y=0.08)
        _end_labels(axes, labels, gap=0.22 / (height - 0.7))
        ends = ", ".join(f"{label} {value:.4g}" for label, value, _ in labels)
        return inline_svg(figure, name, f"{ylabel} over rounds; at the end: {ends}.")


def stacked_chart(name: str, panels: Mapping[str, Mapping[str, Points]], *, unit: str, factor: float = 1.0) -> Markup:
    """Amounts per round, stacked by part, with one chart for each of `panels` below each other.

    Args:
        name: unique on the page.
        panels: panel → part → amount by round.
        unit: of the axis.
        factor: divides the amounts.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    parts = list(dict.fromkeys(part for stack in panels.values() for part in stack))
    colors = {part: SERIES[index % len(SERIES)] for index, part in enumerate(parts)}
    rounds = [round for stack in panels.values() for points in stack.values() for round in points]
    first, last = min(rounds), max(rounds)
    edges = np.arange(first, last + 2) - 0.5
    with page_style():
        figure = Figure(figsize=_SIZE, layout="constrained")
        drawn = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, (panel, stack) in zip(drawn, panels.items(), strict=True):
            base = np.zeros(len(edges) - 1)
            for part, points in stack.items():
                top = base + np.array([points.get(round, 0.0) for round in range(first, last + 1)]) / factor
                axes.stairs(top, edges, baseline=base, fill=True, color=colors[part], linewidth=0)
                base = top
            axes.set_ylim(bottom=0)
            axes.set_ylabel(f"{panel}\n({unit})" if panel else unit)
            axes.yaxis.set_major_locator(MaxNLocator(5 if len(panels) == 1 else 3))
        _rounds_axis(drawn[-1], (first, last))
        names = [shorten(part, 40) for part in parts]
        ncols = max(1, min(4, len(names), _LEGEND // (max(map(len, names), default=0) + 5)))
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, height + 0.19 * (-(-len(names) // ncols) - 1))
        keys = [Patch(color=colors[part]) for part in parts]
        figure.legend(keys, names, loc="outside upper left", ncols=ncols, handlelength=1.0)
        what = " and ".join(panel for panel in panels if panel) or "Amounts"
        return inline_svg(figure, name, f"{what} per round in {unit}, stacked by {', '.join(parts)}.")


def cost_chart(name: str, points: Sequence[tuple[float, float]], *, xlabel: str, ylabel: str, percent: bool) -> Markup:
    """A quantity against what it cost.

    Args:
        name: unique on the page.
        points: (cost, value), by cost.
        xlabel: cost and unit.
        ylabel: quantity and unit.
        percent: values are shares.
    """
    from matplotlib.figure import Figure

    costs, values = np.array(points).T
    with page_style():
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        axes.plot(costs, values * (100 if percent else 1), color=INK, **_marker("o", len(points)))
        axes.set(xlabel=xlabel, ylabel=shorten(ylabel, 48))
        axes.set_xlim(left=0)
        return inline_svg(figure, name, f"{ylabel} against {xlabel}.")


def partition_chart(name: str, summary: Mapping[str, Any]) -> Markup:
    """The numbers of samples by client and class."""
    with page_style():
        figure = plot_partition(dict(summary))
        clients, classes = len(summary["clients"]), len(summary["classes"])
        _narrow(figure, clients)
        alt = f"Training samples of {clients} clients by class, {classes} classes; the skew figures are in the table."
        return inline_svg(figure, name, alt)


def _narrow(figure: Figure, clients: int) -> None:
    """The page says elsewhere what the title says, and a phone is narrow."""
    width, height = figure.get_size_inches()
    figure.set_size_inches(min(width, _SIZE[0]), min(height, max(_SIZE[1], 1.3 + 0.14 * clients)))
    figure.axes[0].set_title("", loc="left")
    for axes in figure.axes:
        axes.grid(False)


def _lines(axes: Axes, series: Mapping[str, Points]) -> list[tuple[str, float, str]]:
    labels = []
    for (label, points), color, marker in zip(series.items(), SERIES, _MARKERS, strict=False):
        axes.plot(list(points), list(points.values()), color=color, **_marker(marker, len(points)))
        labels.append((label, points[max(points)], color))
    return labels


def _spread(axes: Axes, series: Mapping[str, Points]) -> list[tuple[str, float, str]]:
    """Quartiles, extremes and median of many clients, round by round."""
    rounds = sorted({round for points in series.values() for round in points})
    levels = [
        np.percentile([p[round] for p in series.values() if round in p], [0, 25, 50, 75, 100]) for round in rounds
    ]
    low, lower, median, upper, high = np.array(levels).T
    across = np.array(rounds, dtype=float)
    if len(rounds) == 1:  # an area over a single round would have no width
        across = across + np.array([-0.1, 0.1])
        low, lower, median, upper, high = (level.repeat(2) for level in (low, lower, median, upper, high))
    axes.fill_between(across, low, high, color=SERIES[0], alpha=0.15, linewidth=0)
    axes.fill_between(across, lower, upper, color=SERIES[0], alpha=0.3, linewidth=0)
    axes.plot(across, median, color=SERIES[0])
    names = ("lowest", "25 %", "median", "75 %", "highest")
    return [
        (label, float(level[-1]), SERIES[0])
        for label, level in zip(names, (low, lower, median, upper, high), strict=True)
    ]


def _marker(marker: str, points: int) -> dict[str, Any]:
    return {"marker": marker if points <= _MOST_MARKERS else "", "markeredgewidth": 0}


def _rounds_axis(axes: Axes, span: tuple[int, int]) -> None:
    from matplotlib.ticker import MaxNLocator

    first, last = span
    margin = max(0.5, 0.03 * (last - first))
    axes.set_xlim(first - margin, last + margin)
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _end_labels(axes: Axes, labels: Sequence[tuple[str, float, str]], gap: float = _LABEL_GAP) -> None:
    """Names beside the lines' ends, in one or two lines, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    ordered = sorted(((wrapped(label), value, color) for label, value, color in labels), key=lambda label: label[1])
    lines = [label.count("\n") + 1 for label, _, _ in ordered]
    heights = _apart([(value - low) / ((high - low) or 1.0) for _, value, _ in ordered], [gap * n for n in lines])
    for (label, _, color), height in zip(ordered, heights, strict=True):
        axes.annotate(
            label,
            (1.02, height),
            xycoords="axes fraction",
            color=color,
            va="center",
            fontsize=9,
            fontweight="bold" if color == INK else "normal",
            annotation_clip=False,
        )


def _apart(heights: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Middles of labels in ascending order, moved as little as simple means allow so that none overlaps the next.

    Args:
        heights: where each label belongs.
        sizes: how high each is.
    """
    gaps = [(below + above) / 2 for below, above in itertools.pairwise(sizes)]
    placed: list[float] = []
    for index, height in enumerate(heights):
        placed.append(max(height, placed[-1] + gaps[index - 1]) if placed else max(height, 0.0))
    ceiling = max(1.0, sum(gaps))
    for index in range(len(placed) - 1, -1, -1):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - (gaps[index - 1] if index else 0.0)
    return placed
