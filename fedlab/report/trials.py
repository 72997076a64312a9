"""The picture of a search: its objective by trial, and along each axis."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from fedlab.metrics.direction import best_of
from fedlab.report.partition import PALETTE, shorten
from fedlab.report.values import is_share, metric_phrase

_COLUMNS, _MOST_AXES = 3, 11


@dataclass(frozen=True)
class Axis:
    """What was tried along one axis.

    Args:
        name: of the axis.
        tried: a number or a label for each trial.
        log: whether numbers are drawn on a logarithmic scale.
    """

    name: str
    tried: Sequence[Any]
    log: bool = False


def trials_picture(values: Sequence[float | None], axes: Sequence[Axis], metric: str) -> bytes:
    """A PNG: the objective by trial with the best so far, then the objective along each axis.

    Args:
        values: the objective of each trial, None if it failed.
        axes: what was tried; after eleven axes, the others are left out, which the picture says.
        metric: the objective.
    """
    from matplotlib import rc_context, rcdefaults
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    scale = 100.0 if is_share(metric) else 1.0
    done = [(place, scale * value) for place, value in enumerate(values) if value is not None]
    shown = axes[:_MOST_AXES]
    rows = math.ceil((1 + len(shown)) / _COLUMNS)
    with rc_context():
        rcdefaults()
        figure = Figure(figsize=(12, 3.2 * rows), layout="constrained")
        panels = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
        for panel in panels:
            panel.spines[["top", "right"]].set_visible(False)
            panel.grid(color="#dddddd", linewidth=0.7)
            panel.set_axisbelow(True)
            panel.tick_params(labelsize=8)
        first, *others = panels
        first.plot(*_columns(done), "o", color=PALETTE[0], markersize=4, label="a trial")
        better = best_of(metric) or max
        first.step(
            [place for place, _ in done],
            [*accumulate((value for _, value in done), better)],
            where="post",
            color=PALETTE[2],
            label="best so far",
        )
        failed = [place for place, value in enumerate(values) if value is None]
        if failed:
            low = first.get_ylim()[0]
            first.plot(failed, [low] * len(failed), "x", color="#717581", label="failed", clip_on=False)
        first.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
        first.set_xlabel("trial", fontsize=9)
        first.xaxis.set_major_locator(MaxNLocator(integer=True))
        first.set_ylabel(f"validation {metric_phrase(metric)}{' (%)' if scale > 1 else ''}", fontsize=9)
        for panel, axis in zip(others, shown, strict=False):
            _along(panel, axis, done)
        for panel in others[len(shown) :]:
            panel.set_axis_off()
        if len(axes) > len(shown):
            figure.supxlabel(f"{len(axes) - len(shown)} more axes are not drawn", fontsize=9)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=130)
        return picture.getvalue()


def _along(panel: Any, axis: Axis, done: Sequence[tuple[int, float]]) -> None:
    from matplotlib.ticker import MaxNLocator

    numbers = all(isinstance(value, int | float) for value in axis.tried)
    labels = list(dict.fromkeys(map(str, axis.tried)))
    for place, value in done:
        tried = axis.tried[place]
        at = tried if numbers else labels.index(str(tried))
        panel.plot([at], [value], "o", color=PALETTE[0], markersize=4)
    if not numbers:
        panel.set_xlim(-0.5, len(labels) - 0.5)
        panel.set_xticks(range(len(labels)), [shorten(label, 18) for label in labels], fontsize=8)
        if max(map(len, labels)) * len(labels) > 30:
            for text in panel.get_xticklabels():
                text.set(rotation=30, ha="right")
    elif axis.log:
        panel.set_xscale("log")
    elif all(isinstance(value, int) for value in axis.tried):
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel(shorten(axis.name, 44), fontsize=9)


def _columns(pairs: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [place for place, _ in pairs], [value for _, value in pairs]
