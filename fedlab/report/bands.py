"""The picture of many runs: curves with a band for the standard deviation, and final values with error bars."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fedlab.report.partition import PALETTE, shorten
from fedlab.report.record import SERVER
from fedlab.report.spread import Spread
from fedlab.report.values import is_share, metric_phrase

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES = ("-", "--", ":", "-.")
_MARKERS = "os^DvPX*"
_TALLEST = 120.0  # inches: beyond, pictures can hardly be opened


@dataclass(frozen=True)
class Line:
    """Runs that differ only in the seed.

    Args:
        label: name of the line.
        runs: the values by round of each run.
    """

    label: str
    runs: Sequence[Mapping[int, float]]

    @property
    def over_rounds(self) -> dict[int, Spread]:
        """Mean and deviation of the runs in every round that any of them evaluated."""
        rounds = sorted({round for run in self.runs for round in run})
        return {round: Spread.of(run.get(round) for run in self.runs) for round in rounds}

    @property
    def last(self) -> Spread:
        """Mean and deviation of the runs' last values."""
        return Spread.of(run[max(run)] if run else None for run in self.runs)


def bands_picture(panels: Mapping[str, Sequence[Line]], metric: str) -> bytes:
    """A PNG, one row per panel: curves on the left, final values on the right, whose names are the legend of both.

    Args:
        panels: lines by title.
        metric: what the values are of.
    """
    from matplotlib import rc_context, rcdefaults
    from matplotlib.figure import Figure

    heights = [max(2.8, 0.9 + 0.24 * len(lines)) for lines in panels.values()]
    with rc_context():
        rcdefaults()  # whatever the user's matplotlibrc says
        figure = Figure(figsize=(11, min(sum(heights) + 0.3, _TALLEST)), layout="constrained")
        grid = figure.subplots(len(heights), 2, squeeze=False, height_ratios=heights, width_ratios=(3, 2))
        for (curves, ends), (title, lines) in zip(grid, panels.items(), strict=True):
            _curves(curves, lines)
            _ends(ends, lines)
            name = metric.removeprefix(SERVER)
            label = f"{metric_phrase(name)}, {'mean over clients' if name == metric else 'server data'}"
            curves.set_title(shorten(title, 70), loc="left", fontsize=10, fontweight="bold")
            curves.set_ylabel(label + (" (%)" if is_share(metric) else ""), fontsize=9)
            ends.set_title(_caption(lines), loc="left", fontsize=9)
            if is_share(metric):
                _percent(curves.yaxis)
                _percent(ends.xaxis)
        for axes in grid[1:]:  # panels are there to be compared
            axes[0].sharex(grid[0][0])
            axes[0].sharey(grid[0][0])
            axes[1].sharex(grid[0][1])
        grid[0][0].autoscale_view()
        grid[0][1].autoscale_view()
        grid[-1][0].set_xlabel("round")
        return _png(figure)


def _curves(axes: Axes, lines: Sequence[Line]) -> None:
    from matplotlib.ticker import MaxNLocator

    for index, line in enumerate(lines):
        points = {round: spread for round, spread in line.over_rounds.items() if spread.mean is not None}
        rounds, spreads = list(points), list(points.values())
        means = [spread.mean or 0.0 for spread in spreads]
        axes.plot(rounds, means, **_look(index, marker=len(rounds) == 1), linewidth=1.5)
        low, high = ([m + sign * (s.std or 0.0) for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
        axes.fill_between(rounds, low, high, color=_look(index)["color"], alpha=0.13, linewidth=0)
    _plain(axes, grid="y")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _ends(axes: Axes, lines: Sequence[Line]) -> None:
    for row, line in enumerate(lines):
        last = line.last
        if last.mean is not None:
            axes.errorbar(last.mean, row, xerr=last.std, **_look(row, marker=True), elinewidth=1.5, capsize=3)
    axes.set_yticks(range(len(lines)), [shorten(line.label, 44) for line in lines], fontsize=9)
    for row in range(len(lines)):  # what the line looks like, beside its name
        axes.plot((-0.05, -0.01), (row, row), **_look(row), transform=axes.get_yaxis_transform(), clip_on=False)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    _plain(axes, grid="x")
    axes.tick_params(axis="y", length=0, pad=20)


def _look(index: int, *, marker: bool = False) -> dict[str, Any]:
    """Color, stroke and marker of a line; strokes and markers change when the colors are used up."""
    turn = index // len(PALETTE)
    look = {"color": PALETTE[index % len(PALETTE)], "linestyle": _STYLES[turn % len(_STYLES)]}
    return look | ({"marker": _MARKERS[turn % len(_MARKERS)]} if marker else {})


def _caption(lines: Sequence[Line]) -> str:
    counts = sorted({line.last.n for line in lines})
    if counts == [1]:
        return "at the end, one run each"
    return f"at the end, mean ± std of n = {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))}"


def _plain(axes: Axes, grid: Literal["x", "y", "both"]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)


def _percent(axis: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, symbol=""))


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    return picture.getvalue()
