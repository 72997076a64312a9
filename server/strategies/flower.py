"""Clients that train, and clients that are only evaluated."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedlab.protocol.messages import ARRAYS, METRICS, array_record, metric_record, required
from fedlab.server.messaging.directory import ClientDirectory


def as_flower_expects(replies: list[Message]) -> list[Message]:
    """Replies with one array and one metric record each, whose names agree; Flower's strategies refuse others."""
    common: set[str] | None = None
    for reply in replies:
        names = set(required(metric_record, reply.content, METRICS))
        common = names if common is None else common & names
    return [_reduced(reply, common or set()) for reply in replies]


def _reduced(reply: Message, names: set[str]) -> Message:
    metrics: dict[str, Any] = {k: v for k, v in required(metric_record, reply.content, METRICS).items() if k in names}
    content = RecordDict({METRICS: MetricRecord(metrics)})
    arrays = array_record(reply.content, ARRAYS)
    if arrays is not None:
        content[ARRAYS] = arrays
    reduced: Message = Message(content=content, metadata=reply.metadata)  # type: ignore[call-overload]  # an overload for engines
    return reduced


def training_clients(directory: ClientDirectory, hold_out: bool) -> Sequence[int]:
    """The clients that may train.

    Args:
        directory: who is who.
        hold_out: some are unseen; where not, nobody is asked.
    """
    if not hold_out:
        return directory.clients
    return [profile.client for profile in directory.profiles(directory.clients) if not profile.unseen]


class TrainingGrid:
    """A grid without the nodes of unseen clients: Flower's strategies choose among the nodes they see.

    Args:
        grid: the grid, which answers everything else.
        nodes: that may train.
    """

    def __init__(self, grid: Grid, nodes: Iterable[int]) -> None:
        self._grid, self._nodes = grid, frozenset(nodes)

    def get_node_ids(self) -> Iterable[int]:
        """Ids of the connected nodes that may train."""
        return [node for node in self._grid.get_node_ids() if node in self._nodes]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)


@contextmanager
def flower_sampling(seed: int) -> Iterator[None]:
    """Flower's strategies sample with the global generator; give them one that depends on the round only."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
