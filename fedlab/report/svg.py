"""Matplotlib figures as SVG in the style of the page: its font, and its colors for light, dark and print."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# matplotlib knows no CSS variables, so these unlikely colors stand for them until the SVG is written
INK, MUTED, LINE, GRID = "#010203", "#010204", "#010205", "#010206"
SERIES = tuple(f"#0102{index:02x}" for index in range(0x10, 0x18))
_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", GRID: "--grid"} | {
    color: f"--series-{index}" for index, color in enumerate(SERIES)
}

_STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@contextmanager
def page_style() -> Iterator[None]:
    """A context in which figures are drawn and written in the page's style, independent of the user's matplotlibrc."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # the browser sets the text and has the glyphs; matplotlib's font only measures it
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def inline_svg(figure: Figure, name: str, alt: str) -> Markup:
    """The figure as an ``<svg>`` element.

    Args:
        figure: drawn under `page_style`.
        name: unique on the page.
        alt: description of the picture, for screen readers.
    """
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = name
    buffer = io.StringIO()
    nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r"<!--.*?-->\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # would hold for the whole page; ours has it
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub("|".join(_VARIABLES), lambda found: f"var({_VARIABLES[found[0]]})", text)
    opening = re.search(r'viewBox="([^"]+)"', text)
    view = opening[1] if opening else "0 0 1 1"
    head = Markup('<svg class="chart" viewBox="{}" role="img" aria-label="{}">').format(view, alt)
    # matplotlib has escaped every text inside
    return head + Markup(text[text.index(">") + 1 :].strip())


def slug(name: str) -> str:
    """A name that is safe in an HTML id: letters and digits are kept, other characters become their codes."""
    return "".join(char if char.isascii() and char.isalnum() else f"_{ord(char):x}" for char in name)
