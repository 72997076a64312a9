"""Progress of a run on the standard error stream, so that the standard output only has results.

On a terminal, one display is redrawn in place, and in a notebook one line. Log files get a line now and then.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedlab.metrics.direction import best_of, headline
from fedlab.tracking.basis import Basis, basis
from fedlab.tracking.durations import human_seconds
from fedlab.tracking.left_out import LeftOut
from fedlab.tracking.notebook import progress_html
from fedlab.tracking.tracker import ALARM, Event, Sink

_LINE_EVERY = 20.0  # seconds of silence after which a log gets a line
_SETTLED = 0.2  # seconds that a line in a notebook stays at least, so that it can be read
_MOST_LOSSES = 3
_PHASES = {
    "preflight": "trying one client on one batch",
    "launch": "starting workers",
    "prepare": "querying",
    "query": "querying",
    "train": "training",
    "server": "aggregating, server update",
    "evaluate": "evaluating",
}


def make_console(mode: str, console: Console | None = None) -> Sink | None:
    """The display for ``tracking.console``; None for ``quiet``.

    Args:
        mode: ``auto`` redraws on a terminal and in a notebook, and writes lines elsewhere; ``live`` redraws even if no
            terminal is detected, as in some containers; ``plain`` always writes lines.
        console: where the progress is written; default: standard error.
    """
    if mode == "quiet":
        return None
    console = console or Console(stderr=True, force_terminal=True if mode == "live" else None)
    if console.is_jupyter and mode != "plain":
        return NotebookConsole()
    # FORCE_COLOR makes rich take any file for a terminal
    redraws = mode == "live" or (mode == "auto" and console.file.isatty())
    if redraws and console.is_interactive:
        return LiveConsole(console)
    return PlainConsole(console)


class Standing:
    """The present state of a run, as its events tell it."""

    def __init__(self) -> None:
        self.title, self.folder = "", ""
        self.began = self.phase_began = time.time()
        self.rounds = self.round = self.finished = 0
        self.phase, self.done, self.total = "", 0, 0
        self.losses = ""
        self.metric, self.value, self.measured = "", 0.0, Basis(0, None)
        self.best: tuple[float, int] | None = None
        self.held: float | None = None  # the same metric on validation samples
        self.alarms: set[str] = set()
        self._left: dict[tuple[str, str, bool], LeftOut] = {}
        self._told: dict[tuple[str, str, bool], float] = {}
        self.ends: float | None = None
        self.outcome = ""

    def update(self, event: Event) -> None:
        """Take one event into account."""
        match event["event"]:
            case "run_start":
                parts = (event["method"], event["strategy"], event["model"], f"seed {event['seed']}")
                self.title, self.folder = " · ".join(parts), event["folder"]
                self.began, self.rounds = event["time"], event["rounds"]
            case "phase_start":
                self.round, self.phase, self.phase_began = event["round"], event["phase"], event["time"]
                self.done, self.total = 0, event["total"]
            case "progress" if (event["phase"], event["total"]) == (self.phase, self.total):
                self.done = event["done"]  # others belong to queries that the server sends in between
            case "phase_end" if event["phase"] == "preflight":
                self.phase, self.done, self.total = "launch", 0, 0  # until the first phase begins
            case "phase_end":
                self.done = self.total
            case "round":
                self.finished, self.ends = event["round"], event["time"] + event["eta_seconds"]
                self.rounds = self.rounds or event["rounds"]  # a Flower app may say it only now
                sides = (_losses(side, event[side]) for side in ("train", "server"))
                self.losses = "  ".join(part for part in (*sides, guarantee(event.get("privacy"))) if part)
            case "evaluation":
                scope = "mean" if event["mean"] or not event.get("unseen") else "unseen"
                metric = headline(event[scope])
                self._evaluated(event["round"], event[scope], basis(event, scope, metric))
                self.held = event.get("validation", {}).get(metric)
            case "warning" if event.get("level") == ALARM:
                self.alarms.add(event["message"])
            case "run_end":
                took = human_seconds(event["seconds"], rough=True)
                self.outcome = f"{event['status']} after {took}{with_alarms(len(self.alarms))}"
                if early := event.get("stopped"):
                    self.outcome += f", stopped early after round {early['round']} of {self.rounds}: {early['reason']}"
                if event["error"]:
                    self.outcome += f": {event['error'].splitlines()[0]}"

    def _evaluated(self, round: int, mean: Mapping[str, float | None], measured: Basis) -> None:
        metric = headline(mean)
        value = mean.get(metric)
        if value is None:
            self.metric = ""
            return
        better = best_of(metric)
        if better is None:
            self.best = None
        elif metric != self.metric or self.best is None or better(value, self.best[0]) != self.best[0]:
            self.best = (value, round)  # the first, or after a stage in which another metric was the headline
        self.metric, self.value, self.measured = metric, value, measured

    def messages(self, event: Event) -> list[str]:
        """Lines for an event that are printed outside the display: warnings, and things that were left out.

        Things that are left out in many rounds are reported once when it first happens, and as a sum when the run ends.
        """
        match event["event"]:
            case "warning":
                return [f"{event.get('level', 'warning')}: {event['message']}"]
            case "connection":
                level, how = ("note", "connected again") if event["connected"] else ("warning", "not connected")
                return [f"{level}: round {event['round']}: {event['client']} is {how}"]
            case "left_out":
                left = LeftOut.of(event)
                if left.kind not in self._left:
                    self._left[left.kind], self._told[left.kind] = left, left.count
                    return [left.notice]
                before = self._left[left.kind]
                self._left[left.kind] = before + left if event.get("round") is not None else left
            case "run_end":
                summed = [left for kind, left in self._left.items() if left.count != self._told[kind]]
                return [left.notice.replace(": ", ": in all rounds, ", 1) for left in summed]
        return []

    @property
    def round_text(self) -> str:
        """``round 3/40``, ``round 3`` if nobody knows how many there will be; ``preparing`` before the first round."""
        if not self.round:
            return "preparing"
        return f"round {self.round}/{self.rounds}" if self.rounds else f"round {self.round}"

    @property
    def phase_text(self) -> str:
        """The present phase, and the number of clients in it."""
        words = _PHASES.get(self.phase, self.phase)
        if not self.total or self.phase == "preflight":
            return words
        return f"{words} {self.done}/{self.total} clients" if self.done else f"{words} {self.total} clients"

    @property
    def score(self) -> str:
        """The mean of the last evaluation, and the best mean so far if an earlier evaluation had it."""
        if not self.metric:
            return ""
        there_is = self.best is not None and self.best[0] != self.value
        best = f", best {self.best[0]:.3f} in round {self.best[1]}" if self.best and there_is else ""
        amount = f", {self.measured.amount}" if self.measured.amount else ""
        held = "" if self.held is None else f", validation {self.held:.3f}"
        return f"{self.metric} {self.value:.3f} (mean of {self.measured.who}{amount}{best}){held}"

    def time_text(self, now: float) -> str:
        """Elapsed and remaining time; before the first round has ended, the time that remains in the phase."""
        text = human_seconds(now - self.began, rough=True)
        if self.ends is not None and self.finished < self.rounds:
            return f"{text}, {human_seconds(max(0.0, self.ends - now), rough=True)} left"
        if self.ends is None and 0 < self.done < self.total:
            left = (now - self.phase_began) / self.done * (self.total - self.done)
            return f"{text}, {human_seconds(left, rough=True)} left in this phase"
        return text


class PlainConsole:
    """Prints a line for each evaluation, for each phase of the first round, and when there was none for 20 seconds.

    Args:
        console: where the lines are printed.
    """

    def __init__(self, console: Console) -> None:
        self._console, self._standing, self._last = console, Standing(), 0.0

    def write(self, event: Event) -> None:
        self._standing.update(event)
        for line in (*self._standing.messages(event), self._line(event)):
            if line:
                self._last = event["time"]
                self._console.print(Text(line), soft_wrap=True)

    def close(self) -> None:
        pass

    def _line(self, event: Event) -> str:
        standing, due = self._standing, event["time"] - self._last >= _LINE_EVERY
        match event["event"]:
            case "run_start":
                rounds = f" · {standing.rounds} rounds" if standing.rounds else ""
                return f"{standing.title}{rounds} → {standing.folder}"
            case "phase_start" if due or event["round"] <= 1:
                return f"{standing.round_text}  {standing.phase_text}"
            case "progress" if due:
                return f"{standing.round_text}  {standing.phase_text}  {standing.time_text(event['time'])}"
            case "round" if due and standing.phase != "evaluate":  # else the evaluation's line follows at once
                return self._result(event, "")
            case "evaluation":
                return self._result(event, standing.score)
            case "run_end":
                return standing.outcome
        return ""

    def _result(self, event: Event, score: str) -> str:
        standing = self._standing
        parts = (standing.round_text, standing.losses, score, standing.time_text(event["time"]))
        return "  ".join(part for part in parts if part)


class LiveConsole:
    """One display that is redrawn in place from the run's start to its end; warnings are printed above it.

    Args:
        console: a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console, self._standing = console, Standing()
        self._live = Live(
            console=console,
            get_renderable=self._render,
            refresh_per_second=2,
            # what a program prints into a pipe must arrive there
            redirect_stdout=sys.stdout.isatty(),
        )

    def write(self, event: Event) -> None:
        self._standing.update(event)
        if event["event"] == "run_start":
            self._live.start()
        for line in self._standing.messages(event):
            self._console.print(Text(line, style="dim" if line.startswith("note:") else "yellow"))

    def close(self) -> None:
        self._live.stop()

    def _render(self) -> RenderableType:
        standing = self._standing
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, style="bold")
        table.add_column(overflow="fold")
        table.add_row("run", Text(standing.title))
        table.add_row("", Text(standing.folder, style="dim"))
        table.add_row("rounds", _bar(standing.finished, standing.rounds, standing.round_text))
        if standing.outcome:
            table.add_row("ended", Text(standing.outcome))
        else:
            table.add_row("now", _bar(standing.done, standing.total, standing.phase_text))
            table.add_row("time", Text(standing.time_text(time.time())))
        table.add_row("losses", Text(standing.losses or "–"))
        table.add_row("result", Text(standing.score or "–", style="green"))
        return table


class NotebookConsole:
    """One line below a notebook's cell that is updated in place; warnings go to the cell's standard error stream.

    Args:
        show: IPython's function `display`; default: that of the running notebook.
    """

    def __init__(self, show: Callable[..., Any] | None = None) -> None:
        if show is None:
            import IPython.display

            show = IPython.display.display
        self._show, self._standing = show, Standing()
        self._handle: Any = None
        self._drawn = 0.0

    def write(self, event: Event) -> None:
        self._standing.update(event)
        for line in self._standing.messages(event):
            sys.stderr.write(f"{line}\n")
        if event["event"] == "run_start":
            self._handle = self._show(self._line(event["time"]), raw=True, display_id=True)
        elif self._handle is None:
            return
        elif event["event"] in ("phase_start", "run_end") or event["time"] >= self._drawn + _SETTLED:
            # a phase may last for minutes in which nothing else happens, so that its start must not be left out
            self._handle.update(self._line(event["time"]), raw=True)

    def close(self) -> None:
        pass

    def _line(self, now: float) -> dict[str, str]:
        """The line as HTML and, for frontends without it, as plain text."""
        standing, self._drawn = self._standing, now
        if standing.outcome:
            parts: tuple[str, ...] = (standing.title, standing.outcome, standing.score)
        else:
            parts = (standing.title, standing.round_text, standing.phase_text, standing.score, standing.time_text(now))
        text = "  ".join(part for part in parts if part)
        return {"text/plain": text, "text/html": progress_html(standing.finished, standing.rounds, text)}


def _bar(done: int, total: int, text: str) -> Table:
    """A progress bar with a text beside it; it pulses if the total is not known."""
    grid = Table.grid(padding=(0, 2))
    grid.add_row(ProgressBar(total=total or 1, completed=done, width=30, pulse=not total), Text(text))
    return grid


def with_alarms(count: int) -> str:
    """``, with 2 alarms``; "" if there are none."""
    return f", with {count} alarm{'s' if count > 1 else ''}" if count else ""


def _losses(side: str, values: Mapping[str, float | None]) -> str:
    """The first few values that `side` logged, without the ``_first`` and ``_last`` values of a loss."""

    def detail(name: str) -> bool:
        base, _, ending = name.rpartition("_")
        return name == "seconds" or (ending in ("first", "last") and base in values)

    shown = [f"{name} {_number(value)}" for name, value in values.items() if not detail(name)]
    return " ".join([side, *shown[:_MOST_LOSSES]]) if shown else ""


def _number(value: float | None) -> str:
    return "nan" if value is None else f"{value:.3g}"


def guarantee(spent: Mapping[str, Any] | None) -> str:
    """The privacy budget in a round's event, in words; "" if the event has none."""
    if spent is None:
        return ""
    if spent["epsilon"] is None:
        return "no privacy"
    cost = f"ε {_number(spent['epsilon'])} at δ {spent['delta']:g}"
    return f"{cost} ({spent['adjacency']}, {spent['sampling']})"
