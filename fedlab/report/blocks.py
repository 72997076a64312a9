"""What the template lays out: tables, charts, pictures."""

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
        summary: rows set apart below the others.
        note: below the table.
        text_columns: columns after the first that hold words instead of figures.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    summary: Sequence[Sequence[str]] = ()
    note: str = ""
    text_columns: int = 0

    @property
    def folded(self) -> bool:
        """Too long to be met unasked."""
        return len(self.rows) > _FOLD

    @property
    def overall(self) -> Table:
        """The summary alone, of which the columns of words say nothing."""
        kept = [0, *range(1 + self.text_columns, len(self.columns))]
        summary = [[row[index] for index in kept] for row in self.summary]
        return Table([self.columns[index] for index in kept], (), summary, self.note)

    @property
    def single(self) -> Table:
        """The rows alone."""
        return Table(self.columns, self.rows, text_columns=self.text_columns)


@dataclass(frozen=True)
class Chart:
    """A chart with its heading and, where it needs one, an explanation."""

    title: str
    svg: Markup
    note: str = ""


@dataclass(frozen=True)
class Shot:
    """One of a method's figures at one moment."""

    when: str
    title: str
    source: str


@dataclass(frozen=True)
class Pictures:
    """A method's figures of one name, in order of their rounds."""

    title: str
    caption: str
    shots: Sequence[Shot] = field(default_factory=tuple)
