"""Exact weighted averaging, the base of FedLab's strategies; FedAvg and FedProx, whose servers do nothing else."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from pydantic import Field
from torch import Tensor

from fedlab.config import Config, Section
from fedlab.protocol.messages import ARRAYS, CONFIG, REDUCE, exact_sum, to_numpy, to_record
from fedlab.protocol.sums import Reduction, log2_scale, range_bits_for
from fedlab.server.messaging.returned import missing_arrays, no_model, take_over
from fedlab.server.strategies.rounds import Arrays, Cohort, RoundStrategy, TrainingRound, Weight


@dataclass(frozen=True)
class Composition:
    """A round of training as it goes out.

    Args:
        round: what the strategy was told.
        current: arrays of the network state that are sent, by name.
        messages: one for each client of the cohort.
        reductions: how the replies are summed, by the weight of the clients.
    """

    round: TrainingRound
    current: Arrays
    messages: list[Message]
    reductions: Mapping[Weight, Reduction]


class AveragingStrategy(Strategy):
    """Base of FedLab's own strategies: the clients' arrays are averaged exactly, then `server_step` follows.

    The average does not depend on the order of the clients or on how the engine groups them. What lasts from round to
    round is in `memory`, arrays by name, so that a checkpoint can hold it. A strategy is told of a round by a
    `TrainingRound`, which every hook is given.
    """

    class Settings(Section):
        """No settings."""

    metrics: ClassVar[Mapping[str, float]] = MappingProxyType({})
    """Metrics in the clients' replies that `server_step` computes with, beside their numbers of examples: the largest
    value that each may have, by name. A reply in which one is missing, negative or larger cannot be used."""

    def __init__(self, settings: Any = None) -> None:
        self.settings: Any = settings if settings is not None else self.Settings()
        self.memory: dict[str, np.ndarray] = {}

    def check(self, config: Config) -> list[str]:
        """Warnings about a configuration; raise ConfigError where the algorithm makes no sense in it."""
        return []

    def client_settings(self, round: TrainingRound) -> dict[str, float | str]:
        """What the client half of the algorithm needs to know."""
        return {}

    def begin(self, round: TrainingRound, current: Arrays) -> None:
        """Called at the start of a round with the arrays about to be sent."""

    def client_arrays(self) -> Arrays:
        """Arrays sent down beside the network state; clients send arrays of the same names back, which are averaged."""
        return {}

    def returned(self, trained: Collection[str]) -> frozenset[str]:
        """Those of the `client_arrays` that every client must send back, given the parameters trained in this round."""
        return frozenset(self.client_arrays())

    def weights(self, round: TrainingRound) -> dict[str, Weight]:
        """How each tensor's average weighs the clients."""
        return dict(round.weight_of)

    def server_step(self, round: TrainingRound, current: Arrays, mean: Arrays, answers: Sequence[Message]) -> Arrays:
        """New arrays of the server.

        Args:
            round: what the strategy is told of the round.
            current: the arrays that were sent out.
            mean: the clients' averages, in the clients' dtypes; tensors that nobody sent are missing.
            answers: the replies, by client, for their metrics.
        """
        return mean

    def compose(self, round: TrainingRound, current: Arrays, settings: Mapping[str, Any] | None = None) -> Composition:
        """The messages of a round.

        Args:
            round: what the strategy is told of the round.
            current: arrays of the network state, by name.
            settings: further facts for the clients.
        """
        self.begin(round, current)
        everything = {**current, **self.client_arrays()}
        weights = self.weights(round)
        ranges = range_bits_for({name: everything[name] for name in weights})
        totals = {"examples": sum(round.cohort.examples), "uniform": len(round.cohort.nodes)}
        reductions: dict[Weight, Reduction] = {
            weight: Reduction(weight, log2_scale(totals[weight]), ranges) for weight in sorted(set(weights.values()))
        }
        config = ConfigRecord({**(settings or {}), **self.client_settings(round)})
        if len(reductions) == 1:
            (reduction,) = reductions.values()
            config[REDUCE] = reduction.to_json()
        content = RecordDict({ARRAYS: to_record(everything), CONFIG: config})
        messages = [Message(content, node, "train") for node in round.cohort.nodes]
        return Composition(round, current, messages, reductions)

    def combine(self, sent: Composition, replies: Iterable[Message]) -> Arrays | None:
        """New arrays of the server from the replies to a composition; None where nobody answered."""
        round, answers = sent.round, [reply for reply in replies if not reply.has_error()]
        if not answers and round.cohort.nodes:
            return None
        mean: dict[str, np.ndarray] = {}
        weights = self.weights(round)
        for weight, reduction in sent.reductions.items():
            averages = exact_sum(answers, reduction).mean()
            mean.update({name: v for name, v in averages.items() if weights.get(name) == weight})
        released = mean if round.release is None else round.release(sent.current, mean, answers)
        new = self.server_step(round, sent.current, released, answers)
        averaged = released.keys() & sent.current.keys()  # what no client contributed to is missing on purpose
        if problem := missing_arrays(type(self).__name__, round.number, averaged, new):
            raise problem
        return new

    # Flower's own interface, for a loop that knows no cohorts: every connected node takes part and counts equally

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        current, nodes = to_numpy(arrays), tuple(sorted(grid.get_node_ids()))
        everyone = TrainingRound(
            number=server_round,
            cohort=Cohort(nodes),
            population=len(nodes),
            weight_of=dict.fromkeys(current, "uniform"),
            trained=frozenset(name for name, values in current.items() if values.dtype.kind == "f"),
        )
        self._sent = self.compose(everyone, current, config)
        return self._sent.messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        new = self.combine(self._sent, replies)
        return (None if new is None else to_record(new)), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return evaluation_messages(arrays, sorted(grid.get_node_ids()), config)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return None

    def summary(self) -> None:
        """Nothing to print: the configuration says it all."""


def evaluation_messages(arrays: ArrayRecord, nodes: Iterable[int], config: ConfigRecord | None = None) -> list[Message]:
    """One message for each node, all with the same content."""
    content = RecordDict({ARRAYS: arrays, CONFIG: config if config is not None else ConfigRecord()})
    return [Message(content, node, "evaluate") for node in nodes]


class AveragingRounds(RoundStrategy):
    """One of FedLab's own strategies in the round loop.

    Args:
        strategy: it.
    """

    chooses_clients = False

    def __init__(self, strategy: AveragingStrategy) -> None:
        super().__init__(strategy)
        self._strategy, self.metrics = strategy, strategy.metrics
        self._sent: Composition | None = None

    def train(self, round: TrainingRound, arrays: Mapping[str, Tensor], settings: ConfigRecord) -> list[Message]:
        self._sent = self._strategy.compose(round, to_numpy(to_record(arrays)), settings)
        return self._sent.messages

    def aggregate(
        self,
        round: TrainingRound,
        replies: Sequence[Message],
        answers: Sequence[Message],
        state: Mapping[str, Tensor],
    ) -> None:
        sent, self._sent = self._sent, None
        new = None if sent is None else self._strategy.combine(sent, replies)
        if new is None:
            raise no_model(self.name, round.number, answers)
        take_over(state, new, (), self.name, round.number)

    def evaluate(self, round: int, arrays: Mapping[str, Tensor], nodes: Sequence[int]) -> list[Message]:
        return evaluation_messages(to_record(arrays), nodes)

    def returned(self, trained: Collection[str]) -> frozenset[str]:
        return self._strategy.returned(trained)

    def extra_bytes(self) -> int:
        return sum(values.nbytes for values in self._strategy.client_arrays().values())

    def memory(self) -> Iterator[tuple[str, np.ndarray]]:
        yield from self._strategy.memory.items()

    def restore(self, memory: Arrays) -> None:
        self._strategy.memory.update(memory)


class FedAvg(AveragingStrategy):
    """Federated averaging (McMahan et al. 2017, algorithm 1)."""


class FedProx(AveragingStrategy):
    """FedAvg whose clients minimize L(w) + (μ/2)·‖w − x‖² (Li et al. 2020, eq. 2)."""

    class Settings(Section):
        """Settings of FedProx."""

        mu: float = Field(
            default=0.01,
            ge=0,
            description="weight μ of the proximal term; the paper tunes it in {0.001, 0.01, 0.1, 0.5, 1}",
        )

    def client_settings(self, round: TrainingRound) -> dict[str, float | str]:
        return {"proximal-mu": float(self.settings.mu)}
