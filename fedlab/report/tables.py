"""A run's results for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from fedlab.report.earlier import earlier_values
from fedlab.report.record import claims, run_status
from fedlab.report.values import human_bytes, metric_names, metric_phrase, metric_value, plural
from fedlab.tracking import History
from fedlab.tracking.basis import basis, server_basis
from fedlab.tracking.durations import human_seconds

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

_MOST_CLIENTS = 40
_MOST_METRICS = 5  # columns that a terminal of 80 characters has room for
_STATUS = {
    "completed": ("completed", "bold green"),
    "failed": ("failed", "bold red"),
    "interrupted": ("interrupted", "bold yellow"),
    "open": ("no end recorded: still running, or killed", "bold yellow"),
}


def result_table(history: History) -> Group:
    """The last evaluation by client, bytes and seconds, and how the run ended, as far as these are recorded.

    Args:
        history: the run's events.
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[Table | Text] = []
    unread = []
    for name, part in _PARTS.items():
        try:
            parts += part(history)
        except (LookupError, TypeError, ValueError, AttributeError):  # events without their fields
            unread.append(name)
    if unread:
        parts.append(Text(f"unread   {', '.join(unread)}: events.jsonl is damaged", style="yellow"))
    return Group(*parts)


def _evaluation(history: History) -> list[Table]:
    from rich.table import Table
    from rich.text import Text

    if not history.evaluations:
        return []
    event = history.evaluations[-1]
    clients = event["clients"]
    every = metric_names([event["mean"], event["pooled"], *clients.values()])
    metrics = every[:_MOST_METRICS]
    more = f", {len(metrics)} of {len(every)} metrics; see the report for all" if len(metrics) < len(every) else ""
    table = Table(title=f"Results after round {event['round']}{more}", title_justify="left", title_style="bold")
    table.add_column("client", overflow="fold", min_width=len("unweighted mean"))
    told = [*clients.values(), event["mean"], event["pooled"]]
    for metric in metrics:  # long names take several lines, values never
        widest = max(len(metric_value(metric, values.get(metric))) for values in told)
        table.add_column(metric_phrase(metric), justify="right", min_width=widest)
    counts: Mapping[str, int] = event.get("samples") or {}
    if counts:
        table.add_column(
            basis(event).unit.replace(" ", "\n"), justify="right", min_width=len(f"{sum(counts.values()):,}")
        )

    def stand(scope: str) -> list[str]:
        samples = basis(event, scope).samples
        return ["–" if samples is None else f"{samples:,}"] if counts else []

    rows = list(clients.items())[:_MOST_CLIENTS]
    unseen = set(event.get("unseen_clients", ()))
    for name, values in rows:
        # names are the user's: text, never rich's markup
        shown = Text(f"{name} (unseen)" if name in unseen else name)
        held = [f"{counts[name]:,}" if name in counts else "–"] if counts else []
        table.add_row(shown, *(metric_value(metric, values.get(metric)) for metric in metrics), *held)
    if len(rows) < len(clients):
        table.add_row(Text(f"… {plural(len(clients) - len(rows), 'client')} more, see the report", style="dim"))
    table.add_section()
    summary = [("unweighted mean", "mean")] if event["mean"] or not event.get("unseen") else []
    summary += [("pooled", "pooled")] if summary and event["pooled"] else []
    summary += [("mean of unseen", "unseen")] if event.get("unseen") else []
    summary += [("strategy's own", "strategy")] if event.get("strategy") else []
    summary += [("validation mean", "validation")] if event.get("validation") else []
    summary += [("validation pooled", "validation_pooled")] if event.get("validation_pooled") else []
    for name, scope in summary:
        cells = (metric_value(metric, event[scope].get(metric)) for metric in metrics)
        table.add_row(name, *cells, *stand(scope), style="bold")
    return [table]


def _server(history: History) -> list[Text]:
    """What the method measured on the server's own data."""
    from rich.text import Text

    values = history.evaluations[-1].get("server", {}) if history.evaluations else {}
    claimed = [metric for metric, scope in claims(history) if scope == "server" and metric in values]
    metrics = dict.fromkeys([*claimed, *metric_names([values])])
    shown = [f"{metric_phrase(metric)} {metric_value(metric, values[metric])}" for metric in metrics]
    held = server_basis(history.evaluations[-1]) if shown else ""
    return [Text("server   " + ", ".join(shown) + (f" (on {held})" if held else ""))] if shown else []


def _probed(history: History) -> list[Text]:
    """What probes measured before round 1."""
    from rich.text import Text

    told = [
        f"{metric_phrase(metric)} {metric_value(metric, values[metric])}{where}"
        for scope, where in (("server", ""), ("mean", " (mean)"), ("pooled", " (pooled)"))
        for values in [history.probed.get(scope, {})]
        for metric in metric_names([values])
    ]
    return [Text("start    " + ", ".join(told) + " (before round 1)")] if told else []


def _earlier(history: History) -> list[Text]:
    """The last values of metrics that the last evaluation did not measure."""
    from rich.text import Text

    found = earlier_values(history.evaluations)
    return [
        Text(f"earlier  {metric_phrase(e.metric)} {metric_value(e.metric, e.value)} ({e.scope}, after round {e.round})")
        for e in found
    ]


def _privacy(history: History) -> list[Text]:
    from rich.text import Text

    from fedlab.tracking.console import guarantee

    words = guarantee(history.rounds[-1].get("privacy")) if history.rounds else ""
    return [Text(f"privacy  {words}")] if words else []


def _traffic(history: History) -> list[Text]:
    from rich.text import Text

    if not history.rounds:
        return []
    down, up = history.bytes_total()
    raw = history.raw_up()
    before = "" if raw is None else f" ({human_bytes(raw)} before compression)"
    return [Text(f"traffic  {human_bytes(down)} down, {human_bytes(up)} up{before}")]


def _times(history: History) -> list[Text]:
    from rich.text import Text

    phases = history.seconds_by_phase()
    if not phases:
        return []
    lines = [Text("time     " + ", ".join(f"{phase} {human_seconds(seconds)}" for phase, seconds in phases.items()))]
    for (name, where), (seconds, count) in history.timings().items():
        each = f"{human_seconds(seconds / count)} each, " if count > 1 else ""
        lines.append(Text(f"measured {name} {each}{human_seconds(seconds)} in all ({where})"))
    return lines


def _status(history: History) -> list[Text]:
    from rich.text import Text

    status = run_status(history)
    words, style = _STATUS[status]
    line = Text("status   ").append(words, style=style)
    if alarms := history.alarms:
        line.append(f", with {plural(len(alarms), 'alarm')}", style="bold red")
    if status != "open":
        line.append(f" after {human_seconds(history.end['seconds'])}")
    planned = history.start.get("rounds")
    planned = planned and max(planned, history.last_round)
    line.append(f", {history.last_round}")
    line.append(f" of {plural(planned, 'round')}" if planned else " rounds")
    if early := history.stopped:
        line.append(f", stopped early: {early['reason']} ({early['by']})")
    if status == "failed" and history.end.get("error"):
        line.append(f"\n{history.end['error']}")
    return [line]


_PARTS: Mapping[str, Callable[[History], Sequence[Table | Text]]] = {
    "the last evaluation": _evaluation,
    "what the server measured": _server,
    "what was measured before round 1": _probed,
    "what was measured earlier": _earlier,
    "privacy": _privacy,
    "traffic": _traffic,
    "times": _times,
    "how the run ended": _status,
}
