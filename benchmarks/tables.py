"""Results as Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from benchmarks.bars import (
    APP,
    BARE,
    BARE_2,
    INLINE,
    PFL,
    RAY_1,
    RAY_2,
    SCALE,
    STOCK,
    TRAIN,
    TURNS,
    Verdict,
    cpu_ratio,
    level,
    part_ratio,
)
from benchmarks.contest import Result
from benchmarks.store import Measured
from benchmarks.work import Work

ORDER = (BARE, BARE_2, INLINE, RAY_1, RAY_2, STOCK, APP, PFL)
_TWO_CORES = (BARE_2, RAY_2, STOCK, APP)
"""Contenders that work on two cores at once."""
BEGIN, END = "<!-- written by make bench -->", "<!-- end -->"


def markdown(measured: Mapping[str, Measured], verdicts: Sequence[Verdict]) -> str:
    """The whole account.

    Args:
        measured: by workload.
        verdicts: of the bars.
    """
    parts = [
        "Medians of rounds in which the contenders took turns, after one to warm up. † others used the machine "
        "meanwhile, so that wall times say little; CPU times, over all processes of a contender, still compare.",
        _verdicts(verdicts),
    ]
    if TRAIN in measured:
        found = measured[TRAIN]
        parts += [f"### Training: {_described(found.work)}", _training(found.results, found.work), _where([found])]
        if TURNS in found.results:
            parts += [
                "### The same in one process, client by client in turns",
                _turns(found.results[TURNS], found.work),
            ]
    if echoes := _echoes(measured):
        parts += ["### Empty rounds: clients send back what they got", _empty(echoes), _where(echoes)]
    if SCALE in measured:
        found = measured[SCALE]
        heading = f"### Many clients: FedLab, 2 workers, at most {found.work.cohort} clients a round that echo"
        parts += [f"{heading} {found.work.payload * 4 / 1e6:.1f} MB", _scale(found.results), _where([found])]
    return "\n\n".join(parts) + "\n"


def insert(text: str, page: str) -> str:
    """A page with `text` between its marks; at its end where it has none."""
    if BEGIN not in page:
        page = f"{page.rstrip()}\n\n{BEGIN}\n{END}\n" if page.strip() else f"{BEGIN}\n{END}\n"
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}"


def plot(measured: Mapping[str, Measured], path: Path) -> None:
    """CPU of a client and time of an empty round, by contender."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    if TRAIN in measured:
        results, work = measured[TRAIN].results, measured[TRAIN].work
        present = [name for name in ORDER if name in results]
        values = [1000 * median(results[name].cpu) / work.cohort for name in present]
        left.barh(present, values, color=[_color(name) for name in present])
        left.invert_yaxis()
        left.set_xlabel("CPU ms a client, training")
    if echoes := _echoes(measured):
        names = [name for name in ORDER if any(name in found.results for found in echoes)]
        for place, name in enumerate(names):
            held = [(i, median(found.results[name].wall)) for i, found in enumerate(echoes) if name in found.results]
            shift = (place - (len(names) - 1) / 2) * 0.8 / len(names)
            right.bar(
                [index + shift for index, _ in held], [seconds for _, seconds in held], 0.8 / len(names), label=name,
                color=_color(name),
            )  # fmt: skip
        right.set_yscale("log")
        right.set_xticks(
            range(len(echoes)),
            [f"{f.work.payload * 4 / 1e6:.3g} MB\n{f.work.cohort:,} clients" for f in echoes],
            fontsize=8,
        )
        right.set_ylabel("seconds an empty round")
        right.legend(fontsize=7)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)


def _echoes(measured: Mapping[str, Measured]) -> list[Measured]:
    """Smallest payload first, then fewest clients, in whatever order they were measured."""
    echoes = [found for name, found in measured.items() if name not in (TRAIN, SCALE)]
    return sorted(echoes, key=lambda found: (found.work.payload, found.work.cohort))


def _where(found: Sequence[Measured]) -> str:
    """Rounds and machines of some workloads."""
    rounds = sorted({len(result.wall) for part in found for result in part.results.values()})
    machines = " and ".join(dict.fromkeys(part.machine for part in found))
    heats = max(part.work.heats for part in found)
    anew = f" in {heats} processes, one after the other," if heats > 1 else ","
    return f"{' to '.join(map(str, dict.fromkeys((rounds[0], rounds[-1]))))} rounds{anew} on {machines}."


def _color(name: str) -> str:
    return {
        BARE: "#999999",
        BARE_2: "#666666",
        INLINE: "#8ecae6",
        RAY_1: "#219ebc",
        RAY_2: "#023047",
        STOCK: "#fb8500",
        APP: "#8d5a97",
    }.get(name, "#ffb703")


def _described(work: Work) -> str:
    return (
        f"simple_cnn, {work.cohort} of {work.clients:,} clients x {work.samples} images 3×32×32, batch {work.batch}, "
        "one epoch, SGD, one thread a worker"
    )


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    rows = [[v.bar.text, _limit(v), _seen(v), v.word] for v in verdicts]
    return table(("bar", "limit", "seen", ""), rows)


def _limit(verdict: Verdict) -> str:
    bar = verdict.bar
    return "–" if bar.limit is None else f"{bar.side} {bar.limit:g}{bar.unit}"


def _seen(verdict: Verdict) -> str:
    return "–" if verdict.seen is None else f"{verdict.seen:.4g}{verdict.bar.unit}"


def _training(results: Mapping[str, Result], work: Work) -> str:
    rows = []
    for name in ORDER:
        if name not in results:
            rows.append([name, *["not measured"] * 5])
            continue
        result = results[name]
        rows.append(
            [
                name,
                f"{1000 * median(result.cpu) / work.cohort:.1f}",
                f"{cpu_ratio(results, name, BARE):.3f}" if BARE in results else "–",
                f"{cpu_ratio(results, name, BARE_2):.3f}" if BARE_2 in results and name in _TWO_CORES else "–",
                _seconds(result),
                f"{result.start:.1f}",
            ]
        )
    heads = (
        "contender", "CPU ms a client", "over the bare loop", "over two bare loops at once", "wall s a round",
        "s to the end of round 1",
    )  # fmt: skip
    return table(heads, rows)


def _turns(result: Result, work: Work) -> str:
    rows = [
        [name, f"{1000 * median(result.parts[name]) / work.cohort:.1f}", f"{part_ratio(result, name, BARE):.3f}"]
        for name in (BARE, INLINE)
    ]
    return table(("half", "CPU ms a client", "over the bare loop"), rows)


def _empty(echoes: Sequence[Measured]) -> str:
    rows = [
        [
            f"{found.work.payload * 4 / 1e6:.3g} MB",
            f"{found.work.cohort:,} of {found.work.clients:,}",
            name,
            _seconds(result),
            f"{1000 * median(result.cpu) / found.work.cohort:.1f}",
            f"{result.tree / 1000:.2f}",
            f"{result.driver / 1000:.2f}",
            f"{result.start:.1f}",
        ]
        for found in echoes
        for name in ORDER
        if (result := found.results.get(name)) is not None
    ]
    heads = (
        "payload", "clients", "contender", "wall s a round", "CPU ms a client", "GB, all processes",
        "GB, first process", "s to the end of round 1",
    )  # fmt: skip
    return table(heads, rows)


def _scale(results: Mapping[str, Result]) -> str:
    rows = [
        [
            name,
            f"{result.start:.1f}",
            f"{median(result.wall):.3g}{' †' if result.loaded else ''}",
            f"{level(result):.0f}",
            f"{result.held[-1] - result.held[0]:+.0f} in {len(result.held)} rounds",
        ]
        for name, result in results.items()
    ]
    return table(("clients", "s to the end of round 1", "wall s a round", "MB, all processes", "MB more"), rows)


def _seconds(result: Result) -> str:
    return f"{median(result.wall):.3g}{' †' if result.loaded else ''}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
