"""Pictures of point clouds in three dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fedlab.method.pictures import Plot

_VIEW = (35.0, 25.0)  # degrees from which clouds are looked at: around the third axis, and from above
_FONT, _LONGEST = 9, 32  # size of a label, and its number of characters; a longer one is cut


def point_clouds(
    rows: Sequence[Sequence[Tensor]],
    *,
    title: str = "",
    caption: str = "",
    row_labels: tuple[str, ...] = (),
    column_labels: tuple[str, ...] = (),
) -> Plot:
    """Draw clouds of points in three dimensions, all from the same direction. Points nearer to the viewer are darker.

    Each cloud is drawn around its own middle. All clouds of a row have one scale, so that a part of a shape looks
    smaller than the whole.

    Args:
        rows: clouds (N, 3) in rows of equal length; N may differ. Points that are not finite are left out.
        title: title above the picture.
        caption: one sentence, which the report shows below the picture.
        row_labels: one label for each row, or none.
        column_labels: one label for each column, or none.
    """
    from matplotlib import rc_context, rcdefaults
    from matplotlib.figure import Figure

    count, columns = len(rows), max(map(len, rows))
    side, places, depths, sizes = 8.0 / columns, list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    for row, clouds in enumerate(rows):
        seen = [_seen_from_above(cloud) for cloud in clouds]
        reach = 2.1 * max((float(np.abs(points[:, :2]).max(initial=0)) for points in seen), default=0.0) or 1.0
        for column, points in enumerate(seen):
            ordered = points[np.argsort(points[:, 2])] / reach  # so that nearer points cover those behind them
            places.append(ordered[:, :2] * (1, -1) + (column + 0.5, row + 0.5))
            depths.append(2 * ordered[:, 2])
            sizes.append(np.full(len(points), 60 * side / math.sqrt(max(len(points), 60))))
    with rc_context():
        rcdefaults()
        tall = side * count + 0.4
        figure = Figure(figsize=(8.4, tall))
        # one drawing area for all clouds, because one for each takes several times as long
        area: Any = figure.add_axes((0.04, 0.1 / tall, 0.95, side * count / tall))
        x, y = np.concatenate(places).T
        area.scatter(x, y, c=np.concatenate(depths), s=np.concatenate(sizes), cmap="YlGnBu", vmin=-1.6, vmax=1, lw=0)
        area.set(xlim=(0, columns), ylim=(count, 0))
        area.vlines(range(1, columns), 0, count, colors="black", linewidth=0.8)
        area.hlines(range(1, count), 0, columns, colors="black", linewidth=0.8)
        area.tick_params(length=0, bottom=False, labelbottom=False, labeltop=True)
        above, beside = column_labels[:columns], [label[:_LONGEST] for label in row_labels[:count]]
        area.set_xticks(np.arange(len(above)) + 0.5, above, fontsize=_FONT, parse_math=False)
        area.set_yticks(
            np.arange(len(beside)) + 0.5, beside, fontsize=_FONT, parse_math=False, rotation=90, va="center"
        )
    return Plot(figure, title, caption)


def _seen_from_above(cloud: Tensor) -> np.ndarray:
    """Points of a cloud (N, 3), centered, as (right, up, towards the viewer), who looks down on them obliquely."""
    points = cloud.detach().cpu().double().numpy()
    points = points[np.isfinite(points).all(axis=1)]
    turn, tilt = np.deg2rad(_VIEW)
    right = np.array([np.cos(turn), np.sin(turn), 0])
    back = np.array([-np.sin(turn), np.cos(turn), 0])
    up = np.sin(tilt) * back + np.array([0, 0, np.cos(tilt)])
    towards = np.array([0, 0, np.sin(tilt)]) - np.cos(tilt) * back
    seen: np.ndarray = (points - points.mean(axis=0) if len(points) else points) @ np.stack(
        [right, up, towards], axis=1
    )
    return seen
