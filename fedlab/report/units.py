"""Tables of metrics in rows, one table for each unit, so that no column mixes percent with other numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedlab.report.blocks import Table
from fedlab.report.values import is_share, metric_label, number


@dataclass(frozen=True)
class Measured:
    """A metric's value, which becomes a row.

    Args:
        metric: its name.
        value: the value.
        of: words between the metric's name and its value.
        behind: cells behind the value.
    """

    metric: str
    value: float
    of: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()


def unit_tables(
    found: Sequence[Measured], title: str, *, of: Sequence[str] = (), behind: Sequence[str] = (), note: str = ""
) -> list[Table]:
    """One table of shares in percent and one of all other values, as far as there are any, the first value's first.

    Args:
        found: the values, in the order of their rows.
        title: heading of the metrics' names.
        of: headings of the words before the value.
        behind: headings of the cells behind it.
        note: explanation below the last table.
    """
    tables: list[Table] = []
    kinds = list(dict.fromkeys(is_share(one.metric) for one in found))
    for share in kinds:
        rows = [one for one in found if is_share(one.metric) is share]
        cells = [
            (metric_label(r.metric), *r.of, f"{100 * r.value:.1f}" if share else number(r.value), *r.behind)
            for r in rows
        ]
        head = (title, *of, "Value (%)" if share else "Value", *behind)
        tables.append(Table(head, cells, note=note if share is kinds[-1] else "", text_columns=len(of)))
    return tables
