"""The one interface through which the round loop uses FedLab's strategies and Flower's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowersFedAvg
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedlab.config import Component
from fedlab.engine.execution import set_task_identity
from fedlab.errors import ConfigError, FedLabError
from fedlab.protocol.messages import ARRAYS, METRICS, array_record, required, to_numpy, to_record
from fedlab.server.strategies import make_strategy, round_strategy
from fedlab.server.strategies.average import FedAvg
from fedlab.server.strategies.fedopt import FedAvgM
from fedlab.server.strategies.rounds import Cohort, TrainingRound
from fedlab.server.strategies.scaffold import Scaffold

NODES = (11, 12, 13)


class Nodes:
    """A grid of which only the ids of its nodes are looked at."""

    def get_node_ids(self) -> Iterable[int]:
        return NODES


GRID = cast(Grid, Nodes())


def reply(message: Message, value: float, examples: int = 1) -> Message:
    """What a client answers whose weights have become `value`."""
    sent = to_numpy(required(array_record, message.content, ARRAYS))
    content = RecordDict(
        {
            ARRAYS: to_record({name: np.full_like(values, value) for name, values in sent.items()}),
            METRICS: MetricRecord({"num-examples": examples}),
        }
    )
    return Message(content, reply_to=message)


def network() -> dict[str, Tensor]:
    return {"w": torch.zeros(2)}


def told(nodes: tuple[int, ...], examples: tuple[int, ...], **changes: Any) -> TrainingRound:
    """A round in which ``w`` is trained and averaged by examples."""
    facts = {"population": 3, "weight_of": {"w": "examples"}, "trained": frozenset({"w"})}
    return TrainingRound(1, Cohort(nodes, examples), **{**facts, **changes})


@pytest.fixture(autouse=True)
def _as_in_a_task() -> None:
    set_task_identity()


def test_a_strategy_of_fedlab_sends_to_the_cohort_and_averages_by_examples() -> None:
    strategy, state = round_strategy(FedAvg(), GRID, None, 0), network()
    assert not strategy.chooses_clients
    round = told((11, 13), (1, 3))
    messages = strategy.train(round, state, ConfigRecord())
    assert [message.metadata.dst_node_id for message in messages] == [11, 13]
    answers = [reply(messages[0], 4.0, 1), reply(messages[1], 8.0, 3)]
    strategy.aggregate(round, answers, answers, state)
    assert state["w"].tolist() == [7.0, 7.0]


def test_what_is_released_is_what_the_strategy_sees() -> None:
    strategy, state = round_strategy(FedAvg(), GRID, None, 0), network()
    seen: list[float] = []

    def release(sent: Any, mean: Any, answers: Any) -> Any:
        seen.extend([float(sent["w"][0]), float(mean["w"][0]), len(answers)])
        return {"w": mean["w"] + 1}

    round = told((11,), (1,), release=release)
    answers = [reply(message, 4.0) for message in strategy.train(round, state, ConfigRecord())]
    strategy.aggregate(round, answers, answers, state)
    assert seen == [0.0, 4.0, 1]
    assert state["w"].tolist() == [5.0, 5.0]


def test_a_cohort_that_does_not_answer_makes_no_model() -> None:
    strategy = round_strategy(FedAvg(), GRID, None, 0)
    round = told((11,), (1,))
    strategy.train(round, network(), ConfigRecord())
    with pytest.raises(FedLabError, match="strategy FedAvg returned no model in round 1 from 0 replies"):
        strategy.aggregate(round, [], [], network())


def test_flowers_strategies_see_the_nodes_that_may_train_and_evaluate_on_all() -> None:
    flowers = FlowersFedAvg(min_train_nodes=1, min_available_nodes=1, min_evaluate_nodes=1)
    strategy, state = round_strategy(flowers, GRID, [11, 12], 0), network()
    assert strategy.chooses_clients
    round = told((), ())
    messages = strategy.train(round, state, ConfigRecord())
    assert {message.metadata.dst_node_id for message in messages} == {11, 12}
    assert {message.metadata.dst_node_id for message in strategy.evaluate(1, state, [])} == set(NODES)
    answers = [reply(message, 6.0) for message in messages]
    strategy.aggregate(round, answers, answers, state)
    assert state["w"].tolist() == [6.0, 6.0]


def test_flowers_strategies_are_not_asked_where_nothing_is_averaged() -> None:
    class Asked(FlowersFedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            raise AssertionError("nothing is averaged")

    state = network()
    round_strategy(Asked(), GRID, None, 0).aggregate(told((), (), weight_of={}), [], [], state)
    assert state["w"].tolist() == [0.0, 0.0]


def test_whom_flowers_strategies_sample_depends_on_seed_and_round_only() -> None:
    def chosen(seed: int, number: int) -> list[int]:
        flowers = FlowersFedAvg(fraction_train=0.34, min_train_nodes=1, min_available_nodes=1)
        round = TrainingRound(number)
        messages = round_strategy(flowers, GRID, None, seed).train(round, network(), ConfigRecord())
        return [message.metadata.dst_node_id for message in messages]

    draws = [chosen(seed, number) for seed in range(4) for number in (1, 2, 3)]
    assert draws == [chosen(seed, number) for seed in range(4) for number in (1, 2, 3)]
    assert len({tuple(draw) for draw in draws}) == 3


@pytest.mark.parametrize("made", [FedAvgM, Scaffold])
def test_memory_goes_over_into_a_fresh_strategy(made: type[FedAvg]) -> None:
    def one_more(strategy: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
        round = told((11,), (1,))
        answers = [reply(message, 2.0) for message in strategy.train(round, state, ConfigRecord())]
        strategy.aggregate(round, answers, answers, state)
        return state

    whole = round_strategy(made(), GRID, None, 0)
    state = one_more(whole, network())
    kept, copy = dict(whole.memory()), {name: value.clone() for name, value in state.items()}
    assert kept
    again = round_strategy(made(), GRID, None, 0)
    again.restore({name: values.copy() for name, values in kept.items()})
    assert again.extra_bytes() == whole.extra_bytes()
    assert torch.equal(one_more(again, copy)["w"], one_more(whole, state)["w"])
    assert {name: values.tolist() for name, values in again.memory()} == {n: v.tolist() for n, v in whole.memory()}
    fresh = round_strategy(made(), GRID, None, 0)
    one_more(fresh, {"w": torch.full((2,), 1.5)})
    assert {n: v.tolist() for n, v in fresh.memory()} != {n: v.tolist() for n, v in whole.memory()}


def test_the_arrays_that_flowers_strategies_keep_go_over_too() -> None:
    class Keeping(FlowersFedAvg):
        def __init__(self) -> None:
            super().__init__()
            self.record: Any = None
            self.by_name: dict[str, np.ndarray] = {}
            self.listed: list[np.ndarray] = []

    one = Keeping()
    one.record, one.by_name = to_record({"b": np.ones(1), "a": np.zeros(2)}), {"x": np.full(2, 3.0)}
    one.listed = [np.full(1, float(place)) for place in range(12)]
    other = Keeping()
    round_strategy(other, GRID, None, 0).restore(dict(round_strategy(one, GRID, None, 0).memory()))
    assert list(to_numpy(other.record)) == ["b", "a"], "their order counts"
    assert other.by_name["x"].tolist() == [3.0, 3.0]
    assert [float(values[0]) for values in other.listed] == list(range(12))


@pytest.mark.parametrize(("method", "instead"), [("configure_train", "compose"), ("aggregate_train", "combine")])
@pytest.mark.parametrize("given", ["object", "class"])
def test_changes_that_fedlabs_loop_would_not_heed_are_refused(method: str, instead: str, given: str) -> None:
    kind = type("Mine", (FedAvg,), {method: lambda self, *arguments: None})
    with pytest.raises(ConfigError, match=rf"Mine[\s\S]*{instead}\(\) instead of {method}\(\)"):
        make_strategy(Component(name="fedavg"), kind() if given == "object" else kind)
    other = type("Mine", (FlowersFedAvg,), {method: lambda self, *arguments: None})
    assert isinstance(make_strategy(Component(name="fedavg"), other()), other)


def test_fedlabs_strategies_work_in_flowers_own_loop() -> None:
    """There everybody who is connected takes part, and all count equally."""
    strategy: Strategy = FedAvgM(FedAvgM.Settings(momentum=0.5))
    arrays = to_record({"w": np.zeros(1, np.float32)})
    for expected in (4.0, 4.0 + 0.5 * 4.0):  # Δ = 4 in round 1 and 0 in round 2, where v = 0.5 · 4
        messages = list(strategy.configure_train(1, arrays, ConfigRecord(), GRID))
        assert [message.metadata.dst_node_id for message in messages] == list(NODES)
        values = (2.0, 4.0, 6.0)
        made, _ = strategy.aggregate_train(
            1, [reply(m, v, 100 * k + 1) for k, (m, v) in enumerate(zip(messages, values, strict=True))]
        )
        assert made is not None
        arrays = made
        assert to_numpy(arrays)["w"].tolist() == [expected]
    evaluated = list(strategy.configure_evaluate(1, arrays, ConfigRecord(), GRID))
    assert [message.metadata.dst_node_id for message in evaluated] == list(NODES)
