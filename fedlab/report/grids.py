"""Rows of text, the first one their header, as Markdown, CSV and a table for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

Rows = Sequence[Sequence[str]]


def to_markdown(rows: Rows) -> list[str]:
    """Lines of a Markdown table."""
    head, *body = (f"| {' | '.join(map(_escaped, row))} |" for row in rows)
    return [head, f"|{'---|' * len(rows[0])}", *body]


def to_csv(rows: Sequence[Sequence[object]]) -> str:
    """A CSV file; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def to_table(title: str, rows: Rows, left: int = 1) -> Table:
    """A table for the terminal.

    Args:
        title: above it.
        rows: cells are text, whatever brackets they have.
        left: how many columns are aligned to the left; the others hold figures.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", title_style="bold")
    for position, name in enumerate(rows[0]):
        table.add_column(Text(name), justify="left" if position < left else "right", overflow="fold")
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    return table


def _escaped(cell: str) -> str:
    return " ".join(cell.replace("|", r"\|").split())
