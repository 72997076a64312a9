"""What a run cost: bytes and seconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from fedlab.report.blocks import Chart, Table
from fedlab.report.charts import cost_chart, stacked_chart
from fedlab.report.record import RunRecord, claims, main_metric
from fedlab.report.values import byte_cells, byte_unit, is_share, metric_phrase, time_cells, words


def communication(record: RunRecord) -> tuple[Table, list[Chart]] | None:
    """Bytes by exchange group: in total, per round, and per client and round."""
    if not record.rounds:
        return None
    groups = dict.fromkeys(group for event in record.rounds.values() for group in event["bytes"])
    empty = {"down": 0, "up": 0}
    sent = {
        way: {group: {r: e["bytes"].get(group, empty)[way] for r, e in record.rounds.items()} for group in groups}
        for way in ("down", "up")
    }
    rounds, turns = len(record.rounds), sum(len(event["clients"]) for event in record.rounds.values())
    raw, once = _raw_up(record), record.query_bytes()

    def figures(down: float, up: float, before: float, query: tuple[float, float] = (0, 0)) -> list[float | None]:
        """In all, per round, per client in a round, and before compression."""
        shared = [count / turns if turns else None for count in (down, up)]
        told = [down + query[0], up + query[1], down / rounds, up / rounds, *shared]
        return [*told, before + query[1]] if raw else told

    totals = {group: (sum(sent["down"][group].values()), sum(sent["up"][group].values())) for group in groups}
    rows = {group: figures(*total, raw.get(group, 0)) for group, total in totals.items()}
    width = 7 if raw else 6
    if any(once):
        rows["query before round 1"] = [*once, *[None] * (width - 2)]
    whole = [sum(total[way] for total in totals.values()) for way in (0, 1)]
    rows["Total"] = figures(whole[0], whole[1], sum(raw.values()), once)
    columns, cells = _in_units(list(rows.values()))
    named = [[name, *row] for name, row in zip(rows, cells, strict=True)]
    table = Table(
        ("Group", *columns),
        named[:-1],
        named[-1:],
        "Bytes of the training messages, down to the clients and up to the server. Models that are sent for evaluation "
        "are not counted. “Per client” is the mean for one client in one round.",
    )
    return table, [*_traffic(record, sent), *_cost(record, sum(once))]


_WAYS = (
    ("Down", "Up"),
    ("Down per round", "Up per round"),
    ("Down per client", "Up per client"),
    ("Up before compression",),
)
"""Columns of the table of bytes; those of a pair have one unit."""


def _in_units(rows: Sequence[Sequence[float | None]]) -> tuple[list[str], list[list[str]]]:
    """Headings with their units, and the cells of all rows."""
    columns, cells, place = list[str](), [list[str]() for _ in rows], 0
    for names in _WAYS:
        span = slice(place, place + len(names))
        values = [value for row in rows for value in row[span]]
        if not values:
            break
        unit, told = byte_cells(values)
        columns += [f"{name} ({unit})" for name in names]
        for number, line in enumerate(cells):
            line += told[number * len(names) : (number + 1) * len(names)]
        place += len(names)
    return columns, cells


def _raw_up(record: RunRecord) -> dict[str, int]:
    """Bytes of all uploads before compression, by exchange group; empty if nothing was compressed."""
    if not any(event.get("raw_up") for event in record.rounds.values()):
        return {}
    total: dict[str, int] = defaultdict(int)
    for event in record.rounds.values():
        for group, size in (event.get("raw_up") or {g: sent["up"] for g, sent in event["bytes"].items()}).items():
            total[group] += size
    return total


def _traffic(record: RunRecord, sent: Mapping[str, Mapping[str, Mapping[int, float]]]) -> Iterator[Chart]:
    panels = {
        way: {group: points for group, points in stack.items() if any(points.values())} for way, stack in sent.items()
    }
    panels = {way: stack for way, stack in panels.items() if stack}
    if panels:
        unit, factor = byte_unit(max(max(e["bytes_down"], e["bytes_up"]) for e in record.rounds.values()))
        yield Chart("Bytes per round", stacked_chart("traffic", panels, unit=unit, factor=factor))


def _cost(record: RunRecord, before: float) -> Iterator[Chart]:
    """The metric against the traffic so far, the usual way to compare the cost of federated methods."""
    claimed = [name for name, scope in claims(record.history) if scope == "server"]
    metric, scope = (claimed[0], "server") if claimed else (main_metric(record.history), "mean")
    values = record.metric_over_rounds(metric, scope) if metric else {}
    spent, points = before, []
    for round, event in record.rounds.items():
        spent += event["bytes_down"] + event["bytes_up"]
        if round in values:
            points.append((spent, values[round]))
    if metric and len(points) > 1 and spent:
        unit, factor = byte_unit(spent)
        label = f"mean test {metric_phrase(metric)}" if scope == "mean" else f"{metric_phrase(metric)}, server’s data"
        svg = cost_chart(
            "cost",
            [(count / factor, value) for count, value in points],
            xlabel=f"payload so far, down and up ({unit})",
            ylabel=label + (" (%)" if is_share(metric) else ""),
            percent=is_share(metric),
        )
        yield Chart(f"{label[:1].upper()}{label[1:]} against traffic", svg)


def measured(record: RunRecord) -> Table | None:
    """Wall times that the method itself has measured."""
    found = record.history.timings()
    if not found:
        return None
    unit, each = time_cells([seconds / (count or 1) for seconds, count in found.values()])
    whole, in_all = time_cells([seconds for seconds, _ in found.values()])
    rows = [
        [name, where, f"{count:,}", one, every]
        for ((name, where), (_, count)), one, every in zip(found.items(), each, in_all, strict=True)
    ]
    note = "Wall times that the method measures. They differ from run to run and from machine to machine."
    return Table(("What", "Where", "Times", f"Each ({unit})", f"In all ({whole})"), rows, note=note, text_columns=1)


def times(record: RunRecord) -> tuple[Table, Chart | None] | None:
    """Seconds by phase."""
    phases = record.history.seconds_by_phase()
    if not phases:
        return None
    whole = record.wall_seconds() or sum(phases.values())
    rest = whole - sum(phases.values())
    spent = {**phases, **({"other (start, pictures, files)": rest} if rest > 0.001 * whole else {})}
    unit, cells = time_cells([*spent.values(), whole])
    shares = [f"{100 * seconds / (whole or 1):.1f}" for seconds in spent.values()]
    rows = [[words(name), cell, share] for name, cell, share in zip(spent, cells[:-1], shares, strict=True)]
    table = Table(("Phase", f"Time ({unit})", "Share (%)"), rows, [["Whole run", cells[-1], "100.0"]])
    by_phase: dict[str, dict[int, float]] = defaultdict(dict)
    for round, event in record.rounds.items():
        for phase, seconds in event["seconds"].items():
            by_phase[phase][round] = seconds
    if not by_phase:
        return table, None
    return table, Chart("Seconds per round", stacked_chart("time", {"": by_phase}, unit="seconds"))
