"""The events of a run as rows of tables; see `fedlab.tracking.history.History.frame`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedlab.tracking.tracker import Event

Row = dict[str, Any]
FIRST: Mapping[str, tuple[str, ...]] = {
    "evaluations": ("round", "scope", "client", "unseen", "samples"),
    "rounds": ("round", "clients", "bytes_down", "bytes_up"),
    "clients": ("round", "client"),
}
"""The kinds of tables, and the columns that each begins with."""


def rows(events: Sequence[Event], kind: str, scopes: Sequence[str]) -> Iterator[Row]:
    """The rows of a table.

    Args:
        events: events of a run.
        kind: a key of `FIRST`.
        scopes: parts of an evaluation beside the single clients.
    """
    if kind == "evaluations":
        return _evaluations(events, scopes)
    return _rounds(events) if kind == "rounds" else _clients(events)


def _evaluations(events: Sequence[Event], scopes: Sequence[str]) -> Iterator[Row]:
    """A row for each client and scope of each evaluation."""
    for event in (event for event in events if event["event"] == "evaluation"):
        unseen, samples = event.get("unseen_clients") or (), event.get("samples") or {}
        for client, values in (event.get("clients") or {}).items():
            about = {"client": client, "unseen": client in unseen, "samples": samples.get(client)}
            yield {"round": event["round"], "scope": "client", **about, **values}
        for scope in scopes:
            if values := event.get(scope):
                yield {"round": event["round"], "scope": scope, "client": None, "unseen": scope == "unseen", **values}


def _rounds(events: Sequence[Event]) -> Iterator[Row]:
    """A row for each round."""
    for event in (event for event in events if event["event"] == "round"):
        counted = {"round": event["round"], "clients": len(event.get("clients") or ())}
        bytes_ = {name: event.get(name) for name in ("bytes_down", "bytes_up")}
        yield {**counted, **bytes_, **_flat(event, ("seconds", "virtual", "train", "server"))}


def _clients(events: Sequence[Event]) -> Iterator[Row]:
    """A row for each training of a client."""
    for event in (event for event in events if event["event"] == "client"):
        yield {"round": event["round"], "client": event["client"], **(event.get("metrics") or {})}


def _flat(event: Event, names: Sequence[str]) -> Row:
    """The values of mappings in an event, by the names of both with a dot between them."""
    found: Row = {}
    for name in names:
        values = event.get(name)
        for inner, value in values.items() if isinstance(values, Mapping) else ():
            found[f"{name}.{inner}"] = value
    return found
