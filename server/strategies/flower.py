"""The adapter that runs Flower's own strategies in the round loop."""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Iterable, Iterator, KeysView, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedlab.errors import FedLabError
from fedlab.protocol.messages import ARRAYS, METRICS, array_record, metric_record, required, to_numpy, to_record
from fedlab.seeding import derive_seed
from fedlab.server.messaging.replies import scalars
from fedlab.server.messaging.returned import no_model, take_over
from fedlab.server.strategies.rounds import Arrays, RoundStrategy, TrainingRound


class FlowerRounds(RoundStrategy):
    """A strategy of Flower's, or of a user's, in the round loop. It samples the clients of a round itself.

    Args:
        strategy: it.
        training: grid on which it sees the nodes of those clients that may train.
        everyone: grid on which it sees all nodes.
        seed: the run's seed; the clients that are sampled depend on it and on the round.
    """

    chooses_clients = True

    def __init__(self, strategy: Strategy, training: Grid, everyone: Grid, seed: int) -> None:
        super().__init__(strategy)
        self.fewest = int(getattr(strategy, "min_available_nodes", 0))
        self._strategy, self._training, self._everyone, self._seed = strategy, training, everyone, seed

    def train(self, round: TrainingRound, arrays: Mapping[str, Tensor], settings: ConfigRecord) -> list[Message]:
        with flower_sampling(derive_seed(self._seed, "flower sampling", round.number)):
            return list(self._strategy.configure_train(round.number, to_record(arrays), settings, self._training))

    def aggregate(
        self,
        round: TrainingRound,
        replies: Sequence[Message],
        answers: Sequence[Message],
        state: Mapping[str, Tensor],
    ) -> None:
        if not round.weight_of:  # nothing is averaged, and Flower's strategies refuse replies without arrays
            return
        shown = as_flower_expects(answers)
        made: object = self._strategy.aggregate_train(round.number, shown)  # whatever a user's class returns
        record = made[0] if isinstance(made, tuple) and len(made) == 2 else made
        if record is None:
            raise no_model(self.name, round.number, answers)
        if not isinstance(record, ArrayRecord):
            what = (
                f"{type(made).__name__} in round {round.number}: expected an ArrayRecord or None, and metrics or None"
            )
            raise FedLabError(f"aggregate_train of the strategy {self.name} returned {what}")
        take_over(state, to_numpy(record), shown, self.name, round.number)

    def evaluate(self, round: int, arrays: Mapping[str, Tensor], nodes: Sequence[int]) -> list[Message]:
        with flower_sampling(derive_seed(self._seed, "flower evaluation", round)):
            return list(self._strategy.configure_evaluate(round, to_record(arrays), ConfigRecord(), self._everyone))

    def evaluation(self, round: int, replies: Sequence[Message]) -> Mapping[str, float]:
        made: object = self._strategy.aggregate_evaluate(round, as_flower_expects(replies)) if replies else None
        if made is not None and not isinstance(made, MetricRecord):
            what = f"{type(made).__name__} after round {round}: expected a MetricRecord or None"
            raise FedLabError(f"aggregate_evaluate of the strategy {self.name} returned {what}")
        return {} if made is None else scalars(made)

    def memory(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every attribute of the strategy that holds arrays."""
        for attribute, value in sorted(vars(self._strategy).items()):
            if isinstance(value, ArrayRecord):
                yield from _numbered(f"{attribute}/record", to_numpy(value).items())
            elif isinstance(value, dict) and all(isinstance(array, np.ndarray) for array in value.values()):
                yield from _numbered(f"{attribute}/dict", value.items())
            elif isinstance(value, list) and all(isinstance(array, np.ndarray) for array in value):
                yield from _numbered(f"{attribute}/list", (("", values) for values in value))

    def restore(self, memory: Arrays) -> None:
        held: dict[tuple[str, str], dict[str, np.ndarray]] = {}
        for path, values in sorted(memory.items()):
            attribute, kind, index, name = path.split("/", 3)
            held.setdefault((attribute, kind), {})[name or index] = values
        make: dict[str, Callable[[dict[str, np.ndarray]], object]] = {
            "record": to_record,
            "dict": dict,
            "list": lambda found: list(found.values()),
        }
        for (attribute, kind), found in held.items():
            setattr(self._strategy, attribute, make[kind](found))


def _numbered(prefix: str, arrays: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    # Flower's strategies pair arrays by their order
    return ((f"{prefix}/{index:06d}/{name}", values) for index, (name, values) in enumerate(arrays))


def as_flower_expects(replies: Sequence[Message]) -> list[Message]:
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


def seen_part(grid: Grid, nodes: Iterable[int]) -> Grid:
    """The grid as a strategy sees it that is to choose among these nodes only.

    Args:
        grid: the whole grid.
        nodes: ids of the nodes. Changes of the keys of a mapping are heeded.
    """
    return cast(Grid, _PartOfGrid(grid, nodes if isinstance(nodes, KeysView) else frozenset(nodes)))


class _PartOfGrid:
    """A grid of which only some nodes are seen; it answers everything else as the grid itself does."""

    def __init__(self, grid: Grid, nodes: Container[int]) -> None:
        self._grid, self._nodes = grid, nodes

    def get_node_ids(self) -> Iterable[int]:
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
