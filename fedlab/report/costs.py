"""What a run cost: bytes and seconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from fedlab.report.blocks import Chart, Table
from fedlab.report.charts import cost_chart, stacked_chart
from fedlab.report.record import RunRecord, main_metric
from fedlab.report.values import byte_unit, human_bytes, is_share, metric_phrase, words
from fedlab.tracking.durations import human_seconds


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

    raw = _raw_up(record)
    width = 7 if raw else 6

    def row(name: str, down: float, up: float, before: float, once: tuple[float, float] = (0, 0)) -> list[str]:
        cells = [human_bytes(down + once[0]), human_bytes(up + once[1])]
        cells += [human_bytes(down / rounds), human_bytes(up / rounds)]
        cells += [human_bytes(down / turns), human_bytes(up / turns)] if turns else ["–", "–"]
        return cells_of(name, [*cells, human_bytes(before + once[1])] if raw else cells)

    def cells_of(name: str, cells: list[str]) -> list[str]:
        return [name, *cells, *["–"] * (width - len(cells))]

    totals = [(sum(sent["down"][group].values()), sum(sent["up"][group].values())) for group in groups]
    rows = [row(group, *total, raw.get(group, 0)) for group, total in zip(groups, totals, strict=True)]
    once = record.query_bytes()
    if any(once):
        rows.append(cells_of("query before round 1", [human_bytes(count) for count in once]))
    table = Table(
        (
            *("Group", "Down", "Up", "Down per round", "Up per round", "Down per client", "Up per client"),
            *(("Up before compression",) if raw else ()),
        ),
        rows,
        [row("Total", sum(down for down, _ in totals), sum(up for _, up in totals), sum(raw.values()), once)],
        "Bytes of the training messages, down to the clients and up to the server. Models that are sent for evaluation "
        "are not counted. “Per client” is the mean for one client in one round.",
    )
    return table, [*_traffic(record, sent), *_cost(record, sum(once))]


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
    metric = main_metric(record.history)
    mean = record.metric_over_rounds(metric, "mean") if metric else {}
    spent, points = before, []
    for round, event in record.rounds.items():
        spent += event["bytes_down"] + event["bytes_up"]
        if round in mean:
            points.append((spent, mean[round]))
    if metric and len(points) > 1 and spent:
        unit, factor = byte_unit(spent)
        label = metric_phrase(metric)
        svg = cost_chart(
            "cost",
            [(count / factor, value) for count, value in points],
            xlabel=f"payload so far, down and up ({unit})",
            ylabel=f"mean test {label}" + (" (%)" if is_share(metric) else ""),
            percent=is_share(metric),
        )
        yield Chart(f"Mean test {label} against traffic", svg)


def measured(record: RunRecord) -> Table | None:
    """Wall times that the method itself has measured."""
    found = record.history.timings()
    if not found:
        return None
    rows = [
        [name, where, f"{count}", human_seconds(seconds / (count or 1)), human_seconds(seconds)]
        for (name, where), (seconds, count) in found.items()
    ]
    note = "Wall times that the method measures. They differ from run to run and from machine to machine."
    return Table(("What", "Where", "Times", "Each", "In all"), rows, note=note, text_columns=1)


def times(record: RunRecord) -> tuple[Table, Chart | None] | None:
    """Seconds by phase."""
    phases = record.history.seconds_by_phase()
    if not phases:
        return None
    whole = record.wall_seconds() or sum(phases.values())
    rest = whole - sum(phases.values())
    spent = {**phases, **({"other (start, pictures, files)": rest} if rest > 0.001 * whole else {})}
    rows = [[words(name), human_seconds(s), f"{100 * s / (whole or 1):.1f} %"] for name, s in spent.items()]
    table = Table(("Phase", "Time", "Share"), rows, [["Whole run", human_seconds(whole), "100.0 %"]])
    by_phase: dict[str, dict[int, float]] = defaultdict(dict)
    for round, event in record.rounds.items():
        for phase, seconds in event["seconds"].items():
            by_phase[phase][round] = seconds
    if not by_phase:
        return table, None
    return table, Chart("Seconds per round", stacked_chart("time", {"": by_phase}, unit="seconds"))
