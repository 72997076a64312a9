"""HTML that Jupyter notebooks show: tables of runs, data sets and comparisons, and a line of progress.

All text is escaped, because names of clients, classes and files come from the user's data.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_TEXT = "font-family: monospace; white-space: pre-wrap"


def to_html(parts: Iterable[RenderableType]) -> str:
    """Texts and tables, one below the other.

    Args:
        parts: what `rich` would print on a terminal: its tables and texts, or strings, which are not read as markup.
    """
    from rich.table import Table

    shown = (_table(part) if isinstance(part, Table) else f'<div style="{_TEXT}">{_cell(part)}</div>' for part in parts)
    return f"<div>{''.join(shown)}</div>"


def picture_html(png: bytes, description: str) -> str:
    """A picture that is contained in the page.

    Args:
        png: the picture in PNG format.
        description: what it shows, for those who do not see it.
    """
    data = base64.b64encode(png).decode("ascii")
    return f'<img style="max-width: 100%" alt="{escape(description)}" src="data:image/png;base64,{data}">'


def progress_html(done: int, total: int, text: str) -> str:
    """A bar with a text beside it.

    Args:
        done: rounds that are finished.
        total: rounds in all.
        text: what stands beside the bar.
    """
    bar = f'<progress value="{done}" max="{max(total, 1)}"></progress>'
    return f'<div style="{_TEXT}">{bar} {escape(text)}</div>'


def _table(table: Table) -> str:
    sides = [f' style="text-align: {column.justify}"' for column in table.columns]
    head = "".join(f"<th{side}>{_cell(column.header)}</th>" for side, column in zip(sides, table.columns, strict=True))
    lines = zip(*(column.cells for column in table.columns), strict=True)
    body = []
    for row, cells in zip(table.rows, lines, strict=True):
        tag = "th" if row.style == "bold" else "td"
        body.append("".join(f"<{tag}{side}>{_cell(cell)}</{tag}>" for side, cell in zip(sides, cells, strict=True)))
    rows = "".join(f"<tr>{line}</tr>" for line in body)
    title = "" if table.title is None else f'<caption style="text-align: left">{_cell(table.title)}</caption>'
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cell(content: RenderableType) -> str:
    """A cell's text: rich's own texts without their colors, strings as they are."""
    return escape(str(content))
