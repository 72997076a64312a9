"""One HTML page about several runs: results, curves in common charts, and pictures of the same name side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedlab.report.blocks import Chart, Pictures, Shot, Table
from fedlab.report.charts import compared_chart
from fedlab.report.pictures import last_pictures
from fedlab.report.record import SERVER, RunRecord, claims
from fedlab.report.spread import Spread, curve
from fedlab.report.svg import slug
from fedlab.report.templates import fill
from fedlab.report.values import is_share, metric_label, metric_phrase, plural

LONGEST = 24
"""Characters of what sets a run apart that a chart has room for."""
Rows = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Side:
    """Runs that differ only in the seed, as one side of a comparison.

    Args:
        letter: its name.
        words: what sets it apart from the others, in short; "" where a few words do not tell.
        records: the runs, by seed.
    """

    letter: str
    words: str
    records: Mapping[int, RunRecord]

    def over_rounds(self, metric: str) -> dict[int, Spread]:
        """Mean and deviation of the runs in every round that any of them evaluated."""
        curves = [curve(record, metric) for record in self.records.values()]
        return {
            round: Spread.of(points.get(round) for points in curves) for round in sorted({r for c in curves for r in c})
        }


@dataclass(frozen=True)
class Compared:
    """What the page shows.

    Args:
        sides: the sides, in the order of their letters.
        metrics: those of the tables, with `SERVER` before those on the server's data.
        results: header and one row for each side.
        settings: header and one row for each side: the keys that differ.
        runs: header and one row for each run.
        notes: sentences about the runs.
    """

    sides: Sequence[Side]
    metrics: Sequence[str]
    results: Rows
    settings: Rows
    runs: Rows
    notes: Sequence[str] = ()

    def page(self) -> str:
        """The page as HTML, which needs no other files."""
        content = {
            "title": f"{plural(sum(len(side.records) for side in self.sides), 'run')} compared",
            "settings": _table(self.settings, of_text=True) if len(self.settings[0]) > 1 else None,
            "results": _table(self.results),
            "runs": _table(self.runs, of_text=True),
            "notes": [note for note in self.notes if note],
            "alarms": list(self._alarms()),
            "curves": list(self._curves()),
            "pictures": list(self._pictures()),
        }
        return fill("compared.html.j2", content)

    @property
    def labels(self) -> dict[str, str]:
        """What charts call each side: letter and words."""
        return {side.letter: f"{side.letter} {side.words}".strip() for side in self.sides}

    def _alarms(self) -> Iterator[str]:
        for side in self.sides:
            for seed, record in side.records.items():
                for alarm in record.history.alarms:
                    yield f"{side.letter}, seed {seed}: {alarm}"

    def _curves(self) -> Iterator[Chart]:
        """The metrics of the tables, then the loss and those of the methods' claims, as far as they were measured."""
        histories = [record.history for side in self.sides for record in side.records.values()]
        claimed = [(SERVER if s == "server" else "") + m for history in histories for m, s in claims(history)]
        labels, span = self.labels, (1, max(1, *(record.span[1] for s in self.sides for record in s.records.values())))
        several = any(len(side.records) > 1 for side in self.sides)
        for metric in dict.fromkeys([*self.metrics, *claimed, "loss"]):
            lines = {labels[side.letter]: side.over_rounds(metric) for side in self.sides}
            if not any(lines.values()):
                continue
            name, share = metric.removeprefix(SERVER), is_share(metric.removeprefix(SERVER))
            where = "the server’s data" if metric.startswith(SERVER) else "test samples, mean over clients"
            svg = compared_chart(
                f"compared-{slug(metric)}",
                lines,
                ylabel=metric_phrase(name) + (" (%)" if share else ""),
                span=span,
                percent=share,
            )
            lacking = [side.letter for side in self.sides if not lines[labels[side.letter]]]
            notes = [
                "Band: ± sample standard deviation over the seeds." if several else "",
                f"Not measured: {', '.join(lacking)}." if lacking else "",
            ]
            yield Chart(f"{metric_label(name)}, {where}", svg, " ".join(filter(None, notes)))

    def _pictures(self) -> Iterator[Pictures]:
        """The last picture of every name, one for each side that has it: that of its first seed."""
        drawn = [
            (side, *next(iter(side.records.items())), last_pictures(next(iter(side.records.values()))))
            for side in self.sides
            if side.records
        ]
        for name in dict.fromkeys(name for *_, pictures in drawn for name in pictures):
            having = [(side, seed, pictures[name]) for side, seed, _, pictures in drawn if name in pictures]
            shots = []
            for side, seed, one in having:
                parts = [self.labels[side.letter], f"seed {seed}", one.shots[0].when.lower()]
                shots.append(Shot(" · ".join(parts), f"{side.letter}: {one.shots[0].title}", one.shots[0].source))
            lacking = [side.letter for side, *_, pictures in drawn if name not in pictures]
            captions = list(dict.fromkeys(one.caption for *_, one in having if one.caption))
            captions += [f"Not drawn by: {', '.join(lacking)}."] if lacking else []
            yield Pictures(having[0][2].title, " ".join(captions), shots)


def _table(rows: Rows, *, of_text: bool = False) -> Table:
    """A table whose first row is its header; all cells hold words if `of_text`, else only those of the first column."""
    head = [name or "letter" for name in rows[0]]
    return Table(head, [list(row) for row in rows[1:]], text_columns=len(head) if of_text else 0)
