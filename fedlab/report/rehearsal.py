"""The result of a rehearsal as text: what was measured and what was computed are kept apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fedlab.report.values import human_bytes, plural
from fedlab.tracking.durations import human_seconds


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Lines of text.

    Args:
        report: what `fedlab.experiment.rehearse.rehearse` returned.
    """
    clients, rounds = plural(report["clients"], "client"), plural(report["rounds"], "round")
    yield f"{report['title'] or report['method']}: {clients}, {report['cohort']} in each of {rounds}"
    for text in report["replaced"]:
        yield f"replaced: {text}"
    yield from _estimated(report)
    if report["status"] == "too large":
        yield f"not rehearsed: that is more than the {human_bytes(report['limit'])} it may take, so nothing was built"
    elif report["status"] == "stopped":
        taken, limit = human_bytes(report["taken"]), human_bytes(report["limit"])
        yield f"ended in the phase {report['phase']!r}, when it took {taken} of the {limit} it may take"
    else:
        yield from _measured(report)
        yield from _extrapolated(report)
        yield from (f"not counted: {text}" for text in report["not_counted"])


def _estimated(report: Mapping[str, Any]) -> Iterator[str]:
    found = report["estimated"]
    yield "estimated before anything was built"
    parameters = ", ".join(f"{count:,} {role}" for role, count in found["parameters"].items())
    yield _row("parameters", parameters)
    parts = ", ".join(f"{human_bytes(found[name])} {name}" for name in ("weights", "gradients", "optimizer"))
    yield _row("memory, at least", f"worker {human_bytes(found['worker'])} ({parts})")
    free = "" if found["free"] is None else f"; {human_bytes(found['free'])} are free"
    yield _row("", f"server {human_bytes(found['server'])}, run {human_bytes(found['run'])}{free}")
    if found["free"] is not None and found["run"] > found["free"]:
        yield f"the run does not fit: {plural(report['workers'], 'worker')} and the server need more than is free"


def _measured(report: Mapping[str, Any]) -> Iterator[str]:
    found, machine = report["measured"], report["machine"]
    yield f"measured on {plural(machine['cores'], 'core')} ({machine['processor']}), {machine['device']}"
    for who in ("worker", "server"):
        gpu = f", {human_bytes(found[who]['gpu'])} of the GPU" if found[who]["gpu"] else ""
        yield _row(
            f"memory of a {who}" if who == "worker" else "memory of the server", human_bytes(found[who]["bytes"]) + gpu
        )
    if not found["apart"]:
        yield _row("", "both together, because this system does not tell them apart")
    for stage in found["stages"]:
        start = f"round {stage['round']}: " if len(found["stages"]) > 1 else ""
        idle = stage["idle"] or 0.0
        yield _row(
            "a step",
            f"{start}{human_seconds(stage['step'] - idle)}, and {human_seconds(idle)} for the rest of a client's round",
        )
        server = [f"{human_seconds(stage['update'])} for the method"]
        if stage["aggregate"] is not None:
            server.insert(0, f"{human_seconds(stage['aggregate'])} for averaging a reply")
        yield _row("the server", f"{start}{', '.join(server)}")
        once = f", once {human_bytes(stage['once'])} more" if stage["once"] else ""
        up, down = human_bytes(stage["up"]), human_bytes(stage["down"])
        yield _row("a client's payload", f"{start}{down} down{once}, {up} up in a round")
    yield _row(
        "seconds of", "this process on the processor" if found["clock"] == "processor" else "the clock on the wall"
    )


def _extrapolated(report: Mapping[str, Any]) -> Iterator[str]:
    found, workers = report["extrapolated"], plural(report["workers"], "worker")
    yield f"extrapolated for {workers}"
    for steps, seconds in zip(found["steps"], found["round_seconds"], strict=True):
        if seconds is not None:
            yield _row("a round", f"{human_seconds(seconds)}, {plural(steps, 'step')} of each client")
    run = found["run_seconds"]
    yield _row("the whole run", "not known" if run is None else human_seconds(run))
    yield _row("its payload", f"{human_bytes(found['bytes_down'])} down, {human_bytes(found['bytes_up'])} up")
    yield _row("its memory", human_bytes(found["memory"]))
    free = report["estimated"]["free"]
    if free is not None and found["memory"] > free:
        yield f"the run does not fit: {human_bytes(free)} are free; use fewer workers (engine.workers)"


def _row(name: str, text: str) -> str:
    return f"  {name:<22}{text}"
