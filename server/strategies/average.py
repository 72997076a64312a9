"""Weighted averaging, and the algorithms that leave the server with nothing but that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from pydantic import Field

from fedlab.config import Config, Section
from fedlab.protocol.messages import ARRAYS, CONFIG, REDUCE, exact_sum, to_numpy, to_record
from fedlab.protocol.sums import Reduction, log2_scale, range_bits_for

Weight = Literal["examples", "uniform"]
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Cohort:
    """The participants of one round.

    Args:
        nodes: Flower node ids, by ascending client id.
        examples: training samples of each.
        weight_of: how each tensor's average weighs the clients.
        trained: those of the tensors that are parameters trained by gradient steps; the rest are buffers.
        population: clients of the whole federation.
        release: what becomes of the clients' mean before anything else sees it, from (sent, mean, replies).
    """

    nodes: tuple[int, ...]
    examples: tuple[int, ...] = ()
    weight_of: Mapping[str, Weight] = field(default_factory=dict)
    trained: frozenset[str] = frozenset()
    population: int = 0
    release: Callable[[Arrays, Arrays, Sequence[Message]], Arrays] | None = None


class AveragingStrategy(Strategy):
    """Base of FedLab's strategies: the loop says who takes part, clients are averaged exactly, `server_step` follows.

    The average does not depend on the order of the clients or on how the engine groups them. What lasts from round to
    round is in `memory`, arrays by name, so that a checkpoint can hold it.
    """

    class Settings(Section):
        """No settings."""

    cohort: Cohort

    def __init__(self, settings: Any = None) -> None:
        self.settings: Any = settings if settings is not None else self.Settings()
        self.memory: dict[str, np.ndarray] = {}

    def check(self, config: Config) -> list[str]:
        """Warnings about a configuration; raise ConfigError where the algorithm makes no sense in it."""
        return []

    def client_settings(self, server_round: int) -> dict[str, float | str]:
        """What the client half of the algorithm needs to know."""
        return {}

    def begin(self, current: Mapping[str, np.ndarray]) -> None:
        """Called at the start of a round with the arrays about to be sent."""

    def client_arrays(self) -> Mapping[str, np.ndarray]:
        """Arrays sent down beside the network state; clients send arrays of the same names back, which are averaged."""
        return {}

    def weights(self) -> dict[str, Weight]:
        """How each tensor's average weighs the clients."""
        return dict(self.cohort.weight_of)

    def server_step(
        self, current: Mapping[str, np.ndarray], mean: Mapping[str, np.ndarray], answers: Sequence[Message]
    ) -> Mapping[str, np.ndarray]:
        """New server arrays.

        Args:
            current: those sent out.
            mean: the clients' averages, in the clients' dtypes; tensors nobody sent are missing.
            answers: the replies, by client, for their metrics.
        """
        return mean

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._current = to_numpy(arrays)
        self.begin(self._current)
        extra = self.client_arrays()
        weights = self.weights()
        everything = {**self._current, **extra}
        ranges = range_bits_for({name: everything[name] for name in weights})
        totals = {"examples": sum(self.cohort.examples), "uniform": len(self.cohort.nodes)}
        self._reductions: dict[Weight, Reduction] = {
            weight: Reduction(weight, log2_scale(totals[weight]), ranges) for weight in sorted(set(weights.values()))
        }
        config = ConfigRecord({**config, **self.client_settings(server_round)})
        if len(self._reductions) == 1:
            (reduction,) = self._reductions.values()
            config[REDUCE] = reduction.to_json()
        content = RecordDict({ARRAYS: to_record(everything), CONFIG: config})
        return [Message(content, node, "train") for node in self.cohort.nodes]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        answers = [reply for reply in replies if not reply.has_error()]
        if not answers and self.cohort.nodes:
            return None, None
        mean: dict[str, np.ndarray] = {}
        weights = self.weights()
        for weight, reduction in self._reductions.items():
            averaged = exact_sum(answers, reduction).mean()
            mean.update({name: v for name, v in averaged.items() if weights.get(name) == weight})
        released = mean if self.cohort.release is None else self.cohort.release(self._current, mean, answers)
        return to_record(self.server_step(self._current, released, answers)), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        content = RecordDict({ARRAYS: arrays, CONFIG: config})
        return [Message(content, node, "evaluate") for node in self.cohort.nodes]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return None

    def summary(self) -> None:
        """Nothing to print: the configuration says it all."""


class FedAvg(AveragingStrategy):
    """Federated averaging (McMahan et al. 2017, algorithm 1)."""


class FedProx(AveragingStrategy):
    """FedAvg whose clients minimize L(w) + (μ/2)·‖w − x‖² (Li et al. 2020, eq. 2)."""

    class Settings(Section):
        """Settings of FedProx."""

        mu: float = Field(default=0.01, ge=0, description="μ; the paper tunes it in {0.001, 0.01, 0.1, 0.5, 1}")

    def client_settings(self, server_round: int) -> dict[str, float | str]:
        return {"proximal-mu": float(self.settings.mu)}
