"""The blocks that the template of the report lays out: tables, charts, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

_FOLD = 25


@dataclass(frozen=True)
class Table:
    """A table whose first column names the row.

    Args:
        columns: headings.
        rows: cells by row.
        summary: rows below a rule, such as the mean.
        note: explanation below the table.
        text_columns: number of columns after the first that hold words instead of figures.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    summary: Sequence[Sequence[str]] = ()
    note: str = ""
    text_columns: int = 0

    @property
    def folded(self) -> bool:
        """Whether the table is so long that the page shows it folded."""
        return len(self.rows) > _FOLD

    @property
    def overall(self) -> Table:
        """A table of the summary rows alone, without the columns of words, which are empty there."""
        kept = [0, *range(1 + self.text_columns, len(self.columns))]
        summary = [[row[index] for index in kept] for row in self.summary]
        return Table([self.columns[index] for index in kept], (), summary, self.note)

    @property
    def single(self) -> Table:
        """A table of the rows without the summary."""
        return Table(self.columns, self.rows, text_columns=self.text_columns)


@dataclass(frozen=True)
class Chart:
    """A chart with its heading and an optional explanation."""

    title: str
    svg: Markup
    note: str = ""


@dataclass(frozen=True)
class Shot:
    """One of a method's figures, as it was after one round."""

    when: str
    title: str
    source: str


@dataclass(frozen=True)
class Pictures:
    """All of a method's figures with the same name, in the order of their rounds."""

    title: str
    caption: str
    shots: Sequence[Shot] = field(default_factory=tuple)
