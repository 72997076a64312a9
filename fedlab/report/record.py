"""Reads a run folder for the report, even if the run has not finished."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fedlab.config.recorded import changes
from fedlab.config.sections import LARGEST
from fedlab.config.yamltree import dump_yaml, load_yaml
from fedlab.errors import ConfigErrors
from fedlab.report.values import is_number, metric_names
from fedlab.storage import renamed
from fedlab.storage.plain import read_plain, read_plain_text
from fedlab.storage.runfolder import RunFolder
from fedlab.storage.secrets import redacted, tree_redacted
from fedlab.tracking import Event, History

Status = Literal["completed", "failed", "interrupted", "open"]


def run_status(history: History) -> Status:
    """How the run ended; ``open`` if no end is recorded: it is still running, or it was killed."""
    ends = [event for event in history.events if event["event"] in ("run_start", "run_end")]
    status = ends[-1].get("status") if ends else None
    return status if status in ("completed", "failed", "interrupted") else "open"


SERVER = "server."
"""Before the name of a metric on the server's own data, where it stands among those of the clients."""


def claims(history: History) -> list[tuple[str, str]]:
    """Metrics that the method names as those of its claim and that the run has measured, with their scope."""
    named = history.start.get("headline") or ()
    pairs = [(str(one[0]), str(one[1])) for one in named if isinstance(one, list | tuple) and len(one) == 2]
    values = {scope: [event.get(scope) or {} for event in history.evaluations] for _, scope in pairs}
    return [(m, scope) for m, scope in pairs if any(is_number(found.get(m)) for found in values[scope])]


def main_metric(history: History) -> str | None:
    """The metric of the clients to show first: that of the method's claim, else the accuracy if there is one."""
    claimed = [metric for metric, scope in claims(history) if scope != "server"]
    names = metric_names(values for event in history.evaluations for values in _scopes(event))
    return next(iter([*claimed, *names]), None)


def main_metrics(histories: Iterable[History]) -> tuple[str, ...]:
    """The metrics to show first for several runs, each once, because methods measure different things.

    Where a method's claim is about the server's data, its first metric comes first, with `SERVER` before its name.
    """
    found: list[str] = []
    for history in histories:
        found += [SERVER + metric for metric, scope in claims(history) if scope == "server"][:1]
        metric = main_metric(history)
        found += [] if metric is None else [metric]
    return tuple(dict.fromkeys(found))


def _scopes(evaluation: Event) -> list[Mapping[str, Any]]:
    return [evaluation.get("mean") or {}, *(evaluation.get("clients") or {}).values()]


@dataclass(frozen=True)
class RunRecord:
    """One run as the report reads it. What is missing or incomplete is empty.

    Args:
        folder: the run folder.
        history: its events.
    """

    folder: RunFolder
    history: History

    @classmethod
    def open(cls, path: Path) -> RunRecord:
        """Read a run folder.

        Raises:
            CheckpointError: no run lies there.
        """
        folder = RunFolder.open(path)
        return cls(folder, History.from_jsonl(folder.events))

    @property
    def config_text(self) -> str:
        """The recorded configuration as text, without passwords."""
        text, tree = self._config
        if tree is None:
            return redacted(text)
        told = tree_redacted(tree)
        return text if told == tree else dump_yaml(told)

    @property
    def config(self) -> dict[str, Any]:
        """The recorded configuration; empty if it cannot be read."""
        _, tree = self._config
        return {} if tree is None else renamed.configuration(tree)

    @cached_property
    def _config(self) -> tuple[str, dict[str, Any] | None]:
        """The text of ``config.yaml`` or why there is none, and the mapping that it stands for."""
        try:
            text = read_plain(self.folder.config, LARGEST).decode("utf-8", errors="replace")
        except OSError as error:
            return f"# {error}", None
        try:
            raw = load_yaml(text)
        except ValueError:
            return text, None
        return text, raw if isinstance(raw, dict) else None

    @cached_property
    def changes(self) -> list[str]:
        """What was changed in the configuration since the run recorded it, as one sentence for each key."""
        try:
            return [f"config.yaml was changed after the run: {change}" for change in changes(self.folder)]
        except ConfigErrors:
            return [f"config.yaml is not as the run wrote it; bring it back: {self.folder.how_to_restore}"]

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions, machine and command."""
        return _json(self.folder.environment)

    @cached_property
    def partition(self) -> dict[str, Any]:
        """Samples by client and class; see `fedlab.data.partition.partition.summary`."""
        return _json(self.folder.partition)

    @property
    def data(self) -> dict[str, Any]:
        """Name, fingerprint and sizes of the samples; empty where the run is too old to have recorded them."""
        found = self.partition.get("data")
        return found if isinstance(found, dict) else {}

    @property
    def code(self) -> dict[str, str]:
        """Hashes of the code that made the run, by module; empty for runs that are too old to have recorded them."""
        found = self.environment.get("code")
        return found if isinstance(found, dict) else {}

    @cached_property
    def client_facts(self) -> dict[str, dict[str, Any]]:
        """The partition's entry of every client, by name; a damaged file costs the page no other part."""
        clients = self.partition.get("clients")
        if not isinstance(clients, list):
            return {}
        return {found["name"]: found for found in clients if isinstance(found, dict) and {"name", "test"} <= set(found)}

    @property
    def status(self) -> Status:
        return run_status(self.history)

    @cached_property
    def rounds(self) -> dict[int, Event]:
        """The last event of every finished round; a resumed run repeats the rounds after its checkpoint."""
        return _by_round(self.history.rounds)

    @cached_property
    def evaluations(self) -> dict[int, Event]:
        """The last evaluation of every evaluated round."""
        return _by_round(self.history.evaluations)

    @property
    def rounds_planned(self) -> int:
        """Number of rounds that was asked for; 0 if unknown."""
        # a Flower app may say it in its rounds only, and may do more than the key says from which it was taken
        told = max((int(event.get("rounds") or 0) for event in self.history.rounds), default=0)
        planned = int(self.history.start.get("rounds") or self.setting("federation", "rounds") or told)
        return planned and max(planned, self.history.last_round)

    @property
    def span(self) -> tuple[int, int]:
        """First and last round with any data, so that all curves have the same axis."""
        return 1, max(1, *self.rounds, *self.evaluations)

    def setting(self, *keys: str) -> Any:
        """A value of the configuration; None if it is not there."""
        here: Any = self.config
        for key in keys:
            here = here.get(key) if isinstance(here, dict) else None
        return here

    def metric_over_rounds(self, metric: str, scope: str, client: str | None = None) -> dict[int, float]:
        """Values by round of ``mean``, ``pooled``, ``unseen`` or ``server``, or of one of the ``clients``."""
        found = {}
        for round, event in self.evaluations.items():
            values = event.get(scope, {}) if client is None else event["clients"].get(client, {})
            if is_number(values.get(metric)):
                found[round] = float(values[metric])
        return found

    def wall_seconds(self) -> float | None:
        """Seconds from the start to the end, or to the last event if no end is recorded; None without events.

        What is done before the run's clock starts is counted where it is recorded as a phase.
        """
        phases = sum(self.history.seconds_by_phase().values())
        if self.status != "open" and is_number(self.history.end.get("seconds")):
            return max(float(self.history.end["seconds"]), phases)
        times = [event["time"] for event in self.history.events if is_number(event.get("time"))]
        starts = [event["time"] for event in self.history.of("run_start") if is_number(event.get("time"))]
        return max(float(times[-1] - starts[-1]), phases) if starts else None

    def query_bytes(self) -> tuple[int, int]:
        """Payload bytes (down, up) of the query before round 1."""
        found = self.history.of("prepared")[-1:]
        return sum(event["bytes_down"] for event in found), sum(event["bytes_up"] for event in found)

    def bytes_total(self) -> tuple[int, int]:
        """Payload bytes (down, up); rounds that a resumed run repeated count once, as in its result."""
        down, up = self.query_bytes()
        events = self.rounds.values()
        return down + sum(event["bytes_down"] for event in events), up + sum(event["bytes_up"] for event in events)

    def logged(self, side: Literal["train", "server"]) -> dict[str, dict[int, float]]:
        """By name and round, what clients (their weighted mean) or the server logged."""
        found: dict[str, dict[int, float]] = {}
        for round, event in self.rounds.items():
            for name, value in event[side].items():
                if is_number(value):
                    found.setdefault(name, {})[round] = float(value)
        return found


def _by_round(events: Iterable[Event]) -> dict[int, Event]:
    last = {event["round"]: event for event in events}
    return {round: last[round] for round in sorted(last)}


def _json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(read_plain_text(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return raw if isinstance(raw, dict) else {}
