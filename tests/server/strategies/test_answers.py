"""What a strategy answers is checked before anything of it reaches the model, whoever has written the strategy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowersFedAvg

from fedlab.engine.execution import set_task_identity
from fedlab.errors import FedLabError
from fedlab.protocol.instructions import Instructions
from fedlab.protocol.messages import to_record
from fedlab.server.strategies import round_strategy
from fedlab.server.strategies.average import FedAvg
from fedlab.server.strategies.rounds import Arrays, Cohort, TrainingRound
from tests.server.answers import Federation, honest

Change = Callable[[dict[str, np.ndarray]], Any]

BAD: dict[str, tuple[Change, str]] = {
    "one value for a matrix": (lambda a: {**a, "w": a["w"].reshape(-1)[:1]}, r"'w' of shape \(1,\) in round 1"),
    "transposed": (lambda a: {**a, "w": a["w"].T}, r"'w' of shape \(3, 2\) in round 1"),
    "an array less": (lambda a: {"b": a["b"]}, "returned 1 of 2 arrays in round 1; missing: 'w'"),
    "no array": (lambda a: {}, "returned 0 of 2 arrays in round 1"),
    "an array more": (lambda a: {**a, "x": a["b"]}, "'x' in round 1 that the model does not have"),
    "NaN": (lambda a: {**a, "b": a["b"] * np.nan}, "NaN or infinite values in 'b'"),
    "integers": (lambda a: {**a, "b": a["b"].astype(int)}, "'b' as int64"),
    "complex numbers": (lambda a: {**a, "b": a["b"].astype(complex)}, "'b' as complex128"),
    "too large": (
        lambda a: {**a, "b": a["b"].astype(float) + 1e300},
        r"'b' in round 1 that are too large",
    ),
}


def aggregated(strategy: Any) -> dict[str, torch.Tensor]:
    """The network after a round of three clients; zeros if the strategy's answer was refused."""
    set_task_identity()
    state = {"w": torch.zeros(2, 3), "b": torch.zeros(3)}

    class Nodes:
        def get_node_ids(self) -> Sequence[int]:
            return [1000, 1001, 1002]

    rounds = round_strategy(strategy, cast(Grid, Nodes()), None, 0)
    told = TrainingRound(
        1, Cohort((1000, 1001, 1002), (10,) * 3), 3, dict.fromkeys(state, "examples"), frozenset(state)
    )
    messages = rounds.train(told, state, ConfigRecord())
    answers = [
        Message(honest(message.metadata.dst_node_id - 1000, "train"), reply_to=message)
        for message in sorted(messages, key=lambda message: message.metadata.dst_node_id)
    ]
    try:
        rounds.aggregate(told, answers, answers, state)
    except FedLabError:
        assert all(not value.any() for value in state.values()), "nothing of it reached the model"
        raise
    return state


@pytest.mark.parametrize("case", BAD)
def test_a_strategy_of_ones_own(case: str) -> None:
    change, words = BAD[case]

    class Changed(FedAvg):
        def server_step(
            self, round: TrainingRound, current: Arrays, mean: Arrays, answers: Sequence[Message]
        ) -> Arrays:
            found: Arrays = change(dict(mean))
            return found

    with pytest.raises(FedLabError, match=rf"the strategy Changed .*{words}"):
        aggregated(Changed())


@pytest.mark.parametrize("case", BAD)
def test_a_strategy_of_flowers(case: str) -> None:
    change, words = BAD[case]

    class Changed(FlowersFedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            arrays, metrics = super().aggregate_train(server_round, replies)
            assert arrays is not None
            return to_record(change({name: array.numpy() for name, array in arrays.items()})), metrics

    with pytest.raises(FedLabError, match=rf"the strategy Changed .*{words}"):
        aggregated(Changed(fraction_train=1.0, min_train_nodes=3, min_available_nodes=3))


@pytest.mark.parametrize("made", [(None, None), None, ([np.ones(3)], None), {"w": 1}, "a model", (1, 2, 3)], ids=repr)
def test_a_strategy_of_flowers_that_returns_no_record(made: Any) -> None:
    class Strange(FlowersFedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            return made

        def aggregate_evaluate(self, server_round: int, replies: Any) -> Any:
            return made

    strategy = Strange(fraction_train=1.0, min_train_nodes=3, min_available_nodes=3)
    with pytest.raises(FedLabError, match="the strategy Strange returned"):
        aggregated(strategy)


def test_both_kinds_are_taken_over_if_they_are_right() -> None:
    flowers = FlowersFedAvg(fraction_train=1.0, min_train_nodes=3, min_available_nodes=3)
    for state in (aggregated(FedAvg()), aggregated(flowers)):
        assert all(torch.equal(value, torch.full_like(value, 2.0)) for value in state.values())


def test_two_messages_to_one_client_are_refused() -> None:
    federation = Federation("simulation", "skip")
    messages = federation.sent().messages
    twice = [*messages, Message(messages[0].content, messages[0].metadata.dst_node_id, "train")]
    with pytest.raises(FedLabError, match="a second message to node 1000 in round 2, phase train"):
        federation.delivery.carry(twice, Instructions(2, 3), "train", federation.training)
    stranger = [Message(messages[0].content, 5, "train")]
    with pytest.raises(FedLabError, match="a message to the unknown node 5"):
        federation.delivery.carry(stranger, Instructions(2, 3), "train", federation.training)


def test_a_sum_is_believed_from_an_engine_only() -> None:
    """Also in Flower's own loop, where any grid brings the replies."""
    set_task_identity()
    strategy = FedAvg()

    class Nodes:
        def get_node_ids(self) -> Sequence[int]:
            return [1000, 1001, 1002]

    start = to_record({"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)})
    messages = list(strategy.configure_train(1, start, ConfigRecord(), cast(Grid, Nodes())))
    replies = [Message(honest(client, "train"), reply_to=messages[client]) for client in range(3)]
    replies[1].content["fedlab.sum"] = to_record({"w": np.full((2, 3), 1e6), "b": np.full(3, 1e6)})
    replies[1].content["fedlab.weights"] = MetricRecord({"w": 1.0, "b": 1.0})
    replies[1].content["fedlab.dtypes"] = ConfigRecord({"w": "float32", "b": "float32"})
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    assert arrays["b"].numpy().tolist() == [2.0, 2.0, 2.0]
