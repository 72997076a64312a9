"""The numbers in an event for those who draw a curve of each: of many clients, quantiles instead of every value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fedlab.tracking.table import Row, rows
from fedlab.tracking.tracker import Event

QUANTILES = {"min": 0.0, "p10": 0.1, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9, "max": 1.0}
"""End of a scope's name → quantile, by linear interpolation between the clients."""


def readable_rows(event: Event, most: int) -> Iterator[Row]:
    """The numbers in an event.

    Args:
        event: any event.
        most: largest number of clients with values of their own. The values of more clients are replaced by quantiles
            over the clients that may train, in scopes such as ``clients_p50``, and over those that never do, such as
            ``unseen_clients_p50``. Clients that lack a metric, or whose value is not finite, are left out of it.
    """
    evaluated = event["event"] in ("evaluation", "probed")
    clients: Mapping[str, Mapping[str, Any]] = (event.get("clients") or {}) if evaluated else {}
    if len(clients) <= most:
        yield from rows(event)
        return
    yield from rows({**event, "clients": {}})
    unseen = set(event.get("unseen_clients") or ())
    groups = {
        "clients": [values for name, values in clients.items() if name not in unseen],
        "unseen_clients": [values for name, values in clients.items() if name in unseen],
    }
    for scope, group in groups.items():
        for metric in dict.fromkeys(metric for values in group for metric in values):
            found = [float(values[metric]) for values in group if values.get(metric) is not None]
            yield from _quantiles(event["round"], scope, metric, found)


def _quantiles(round: int, scope: str, metric: str, values: Sequence[float]) -> Iterator[Row]:
    if not values:
        return
    found = np.quantile(np.array(values), list(QUANTILES.values()))
    for name, value in zip(QUANTILES, found.tolist(), strict=True):
        yield Row(round, f"{scope}_{name}", metric, value, evaluated=True)
