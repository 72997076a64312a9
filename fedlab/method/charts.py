"""Pictures of curves and points over an axis, such as a figure of every layer of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedlab.method.pictures import Plot

_FONT = 9


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
