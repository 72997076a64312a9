"""The interface between the round loop and a strategy, the same for FedLab's own strategies and for Flower's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal

import numpy as np
from flwr.app import ConfigRecord, Message
from flwr.serverapp.strategy import Strategy
from torch import Tensor

Weight = Literal["examples", "uniform"]
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Cohort:
    """The clients of one round.

    Args:
        nodes: their Flower node ids, by ascending client id.
        examples: number of training samples of each.
    """

    nodes: tuple[int, ...] = ()
    examples: tuple[int, ...] = ()


@dataclass(frozen=True)
class TrainingRound:
    """What a strategy is told of a round of training.

    Args:
        number: of the round, from 1.
        cohort: the clients that take part.
        population: number of clients that may train at all.
        weight_of: how the average of each tensor weighs the clients, by the tensor's name.
        trained: names of those tensors that are parameters trained by gradient steps; the others are buffers.
        release: what becomes of the clients' mean before the strategy sees it, from the arrays that were sent, the mean
            and the replies; None leaves it as it is. Client-level privacy adds its noise here.
    """

    number: int
    cohort: Cohort = field(default_factory=Cohort)
    population: int = 0
    weight_of: Mapping[str, Weight] = field(default_factory=dict)
    trained: frozenset[str] = frozenset()
    release: Callable[[Arrays, Arrays, Sequence[Message]], Arrays] | None = None


class RoundStrategy(ABC):
    """A strategy as the round loop uses it.

    Args:
        strategy: the strategy itself.
    """

    chooses_clients: ClassVar[bool]
    """Whether the strategy chooses the clients of a round itself. Otherwise FedLab's samplers do."""

    fewest = 0
    """Number of connected nodes without which the strategy waits, for ever if they do not come."""

    def __init__(self, strategy: Strategy) -> None:
        self.name = type(strategy).__name__

    @abstractmethod
    def train(self, round: TrainingRound, arrays: Mapping[str, Tensor], settings: ConfigRecord) -> list[Message]:
        """The training messages of a round.

        Args:
            round: what the strategy is told.
            arrays: state that is sent, by name.
            settings: further facts for the clients.
        """

    @abstractmethod
    def aggregate(
        self,
        round: TrainingRound,
        replies: Sequence[Message],
        answers: Sequence[Message],
        state: Mapping[str, Tensor],
    ) -> None:
        """Turn what the clients sent into the new state of the networks.

        Args:
            round: as given to `train`.
            replies: all that came back without an error; a sum formed by the engine may be in any of them.
            answers: those of clients that did their work.
            state: of the networks, which is changed in place.

        Raises:
            FedLabError: the strategy formed no model, or one that does not fit.
        """

    @abstractmethod
    def evaluate(self, round: int, arrays: Mapping[str, Tensor], nodes: Sequence[int]) -> list[Message]:
        """The evaluation messages after a round.

        Args:
            round: its number.
            arrays: state that is sent, by name.
            nodes: node ids of the clients to evaluate, where the strategy does not choose them itself.
        """

    def evaluation(self, round: int, replies: Sequence[Message]) -> Mapping[str, float]:
        """Metric values that the strategy itself makes of the replies to an evaluation."""
        return {}

    metrics: Mapping[str, float] = MappingProxyType({})
    """Metrics in the clients' replies that the strategy computes with, beside their numbers of examples: the largest
    value that each may have, by name."""

    def returned(self, trained: Collection[str]) -> frozenset[str]:
        """Names of arrays that are sent beside the network state and that every client must send back.

        Args:
            trained: names of the parameters that are trained and averaged in this round.
        """
        return frozenset()

    def extra_bytes(self) -> int:
        """Payload bytes that the algorithm sends beside the network state, each way and per client."""
        return 0

    @abstractmethod
    def memory(self) -> Iterator[tuple[str, np.ndarray]]:
        """Arrays that the strategy keeps from one round to the next, with their names, for a checkpoint."""

    @abstractmethod
    def restore(self, memory: Arrays) -> None:
        """Take over the `memory` of a checkpoint."""
