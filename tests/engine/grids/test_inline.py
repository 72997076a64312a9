"""The grid without workers: replies, errors, states, pushing and pulling, Flower's own strategies."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp.strategy import FedAvg, FedMedian, Krum, Strategy

from fedlab.engine import Listeners, Simulation
from fedlab.engine.grids.inline import InlineGrid
from fedlab.errors import FedLabError
from fedlab.protocol.messages import (
    array_record,
    config_record,
    exact_sum,
    metric_record,
    requested_reduction,
    summed,
    to_numpy,
    to_record,
)
from fedlab.protocol.sums import Reduction

Ask = Callable[..., list[Message]]


def metrics_of(reply: Message) -> MetricRecord:
    metrics = metric_record(reply.content, "metrics")
    assert metrics is not None
    return metrics


def test_replies_come_sorted_by_client_with_progress(factory: Callable[[], ClientApp], ask: Ask) -> None:
    seen: list[tuple[int, int]] = []
    grid = InlineGrid(
        Simulation(factory, 12, {"secret": 5}),
        listeners=Listeners(on_progress=lambda done, total: seen.append((done, total))),
    )
    replies = grid.send_and_receive(ask(grid, [7, 2, 11, 0]))
    assert [grid.client_of(reply.metadata.src_node_id) for reply in replies] == [0, 2, 7, 11]
    assert [metrics_of(reply)["secret"] for reply in replies] == [5] * 4
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert grid.send_and_receive([]) == []
    assert list(grid.get_node_ids()) == [grid.node_of(client) for client in range(12)]
    assert grid.run.run_id == replies[0].metadata.run_id


def test_an_exception_becomes_an_error_reply_with_its_traceback(inline: InlineGrid, ask: Ask) -> None:
    good, bad, left = inline.send_and_receive(ask(inline, [0, 1, 2], **{"raise": [1], "leave": [2]}))
    assert good.has_content()
    assert bad.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert inline.client_of(bad.metadata.src_node_id) == 1
    assert bad.error.reason is not None
    assert "Traceback" in bad.error.reason
    assert 'raise RuntimeError(f"client {client} is broken")' in bad.error.reason
    assert bad.error.reason.rstrip().endswith("RuntimeError: client 1 is broken")
    assert left.error.reason is not None
    assert "SystemExit: 3" in left.error.reason


def test_fail_fast_stops_at_the_first_error(factory: Callable[[], ClientApp], ask: Ask) -> None:
    grid = InlineGrid(Simulation(factory, 12, {"secret": 5}, fail_fast=True))
    replies = grid.send_and_receive(ask(grid, range(6), **{"raise": [2, 4]}))
    assert [reply.has_error() for reply in replies] == [False, False, True]
    assert len(grid.send_and_receive(ask(grid, range(6)))) == 6


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda message: None, "returned NoneType: expected a flwr.app.Message"),
        (lambda message: Message(RecordDict(), 1, "train"), "no reply: use Message"),
        (lambda message: Message(RecordDict({"arrays": ConfigRecord()}), reply_to=message), "expected a ArrayRecord"),
        (
            lambda message: Message(
                RecordDict({"arrays": to_record({"w": np.float32([np.inf])}), "metrics": MetricRecord()}),
                reply_to=message,
            ),
            "num-examples = None",
        ),
        (
            lambda message: Message(
                RecordDict(
                    {"arrays": to_record({"w": np.float32([np.inf])}), "metrics": MetricRecord({"num-examples": 1})}
                ),
                reply_to=message,
            ),
            "tensor 'w' holds the value inf",
        ),
    ],
)
def test_answers_that_cannot_be_used_are_errors_of_that_client(answer: Callable[[Message], Any], message: str) -> None:
    app = ClientApp()
    app.train()(lambda msg, context: answer(msg))
    grid = InlineGrid(Simulation(lambda: app, 1))
    content = RecordDict({"config": ConfigRecord({"fedlab.reduce": Reduction("examples", 4).to_json()})})
    (reply,) = grid.send_and_receive([Message(content, 1000, "train")])
    assert reply.error.reason is not None
    assert message in reply.error.reason


def test_state_persists_but_not_that_of_a_client_that_raised(inline: InlineGrid, ask: Ask) -> None:
    inline.send_and_receive(ask(inline, [0, 1]))
    inline.send_and_receive(ask(inline, [0, 1], **{"raise": [1]}))
    replies = inline.send_and_receive(ask(inline, [0, 1, 2]))
    assert [metrics_of(reply)["count"] for reply in replies] == [3, 2, 1]
    states = inline.client_states()
    assert list(states) == [0, 1, 2]
    picture = array_record(states[0], "picture")
    assert picture is not None
    np.testing.assert_array_equal(to_numpy(picture)["x"], [3, 3, 3])


def test_states_move_to_another_grid(inline: InlineGrid, factory: Callable[[], ClientApp], ask: Ask) -> None:
    inline.send_and_receive(ask(inline, [3, 4]))
    other = InlineGrid(Simulation(factory, 12, {"secret": 5}))
    other.restore_client_states(inline.client_states())
    assert [metrics_of(reply)["count"] for reply in other.send_and_receive(ask(other, [3, 5]))] == [2, 1]


def test_clients_cannot_change_what_others_share() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        config = config_record(message.content, "config")
        assert config is not None
        rates = config["rates"]
        assert isinstance(rates, list)
        answer = MetricRecord({"length": len(rates), "num-config": len(context.run_config)})
        rates.append(1)  # type: ignore[arg-type]  # a list of ints
        config["more"] = 1
        del message.content["arrays"]
        context.run_config["more"] = 1
        return Message(RecordDict({"metrics": answer}), reply_to=message)

    grid = InlineGrid(Simulation(lambda: app, 3, {"only": 1}))
    content = RecordDict({"arrays": to_record({"w": np.zeros(2)}), "config": ConfigRecord({"rates": [1, 2]})})
    replies = grid.send_and_receive([Message(content, node, "train") for node in grid.get_node_ids()])
    assert [dict(metrics_of(reply)) for reply in replies] == [{"length": 2, "num-config": 1}] * 3
    assert content["config"] == {"rates": [1, 2]}
    assert "arrays" in content


def test_a_reply_may_be_the_memory_of_the_next_clients_model() -> None:
    app = ClientApp()
    resident = np.zeros(4, np.float32)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        resident[:] = context.node_id
        context.state["mine"] = to_record({"w": resident})
        return Message(RecordDict({"arrays": to_record({"w": resident})}), reply_to=message)

    grid = InlineGrid(Simulation(lambda: app, 3))
    replies = grid.send_and_receive([Message(RecordDict(), node, "train") for node in grid.get_node_ids()])
    for reply, state in zip(replies, grid.client_states().values(), strict=True):
        for content in (reply.content, state):
            record = array_record(content, "arrays" if content is reply.content else "mine")
            assert record is not None
            assert to_numpy(record)["w"].tolist() == [reply.metadata.src_node_id] * 4


def test_a_hundred_thousand_clients_cost_nothing_until_they_have_state(
    factory: Callable[[], ClientApp], ask: Ask
) -> None:
    tracemalloc.start()
    grid = InlineGrid(Simulation(factory, 100_000, {"secret": 5}))
    replies = grid.send_and_receive(ask(grid, [0, 50_000, 99_999], remember=False))
    nodes = grid.get_node_ids()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(replies) == 3
    assert len(list(nodes)) == 100_000
    assert peak < 1_000_000  # bytes; a dictionary of so many contexts takes 50 MB
    assert grid.client_states() == {}


def test_push_and_pull(inline: InlineGrid, ask: Ask) -> None:
    arrays = np.ones(3, np.float32)
    content = RecordDict({"arrays": to_record({"w": arrays}), "config": ConfigRecord({"remember": False})})
    ids = inline.push_messages([Message(content, 1000 + client, "train") for client in (4, 1)])
    arrays[:] = np.nan  # the caller goes on with its own memory
    assert len(set(ids)) == 2
    between = inline.send_and_receive(ask(inline, [1, 2]))
    assert [reply.metadata.src_node_id for reply in between] == [1001, 1002]
    replies = inline.pull_messages(ids)
    assert [reply.metadata.src_node_id for reply in replies] == [1001, 1004]
    assert {reply.metadata.reply_to_message_id for reply in replies} == set(ids)
    for reply in replies:
        record = array_record(reply.content, "arrays")
        assert record is not None
        assert np.isfinite(to_numpy(record)["w"]).all()
    assert inline.pull_messages(ids) == []


def test_pushed_messages_keep_their_arrays(inline: InlineGrid, ask: Ask) -> None:
    replies = inline.pull_messages(inline.push_messages(ask(inline, range(3), reduce=True)))
    assert all("arrays" in reply.content for reply in replies)


def test_payloads_may_differ_within_one_sum(inline: InlineGrid, ask: Ask) -> None:
    together = ask(inline, range(4), reduce=True)
    reduction = Reduction.from_json(str(together[0].content["config"]["fedlab.reduce"]))
    apart = [
        Message(RecordDict({key: record.copy() for key, record in m.content.items()}), m.metadata.dst_node_id, "train")
        for m in together
    ]
    sums = [exact_sum(inline.send_and_receive(messages), reduction).mean() for messages in (together, apart)]
    assert all(sums[0][name].tobytes() == sums[1][name].tobytes() for name in sums[0])
    apart[0].content["config"] = ConfigRecord()
    with pytest.raises(FedLabError, match="different reductions"):
        inline.send_and_receive(apart)


def test_a_strategy_reads_the_same_sum_from_full_and_from_summed_replies(inline: InlineGrid, ask: Ask) -> None:
    messages = ask(inline, range(5), reduce=True)
    reduction = requested_reduction(messages[0].content)
    assert reduction is not None
    reduced = inline.send_and_receive(messages)
    full = inline.send_and_receive(ask(inline, range(5)))
    assert summed(full, reduction) is None
    assert all("arrays" not in reply.content for reply in reduced)
    assert [reply.metadata.src_node_id for reply in reduced if "fedlab.sum" in reply.content] == [1000]
    one, other = exact_sum(reduced, reduction), exact_sum(full, reduction)
    assert one.state()[1:] == other.state()[1:]
    for name, values in one.mean().items():
        assert values.dtype == np.float32
        assert values.tobytes() == other.mean()[name].tobytes()


def test_a_bad_full_reply_is_named(inline: InlineGrid, ask: Ask) -> None:
    replies = inline.send_and_receive(ask(inline, range(3)))
    replies[1].content["arrays"] = to_record({"bias": np.array(np.nan, np.float32)})
    with pytest.raises(FedLabError, match="reply of node 1001: tensor 'bias' holds the value nan"):
        exact_sum(replies, Reduction("uniform", 2))


def test_unknown_nodes_are_refused(inline: InlineGrid, ask: Ask) -> None:
    with pytest.raises(FedLabError, match="node 1012: expected one of the nodes 1000 to 1011"):
        inline.send_and_receive(ask(inline, [12]))


def test_clients_that_are_late_get_an_error_reply(inline: InlineGrid, ask: Ask) -> None:
    replies = inline.send_and_receive(ask(inline, range(3)), timeout=0.0)
    assert [reply.error.code for reply in replies] == [ErrorCode.REPLY_MESSAGE_UNAVAILABLE] * 3
    assert replies[0].error.reason == "no reply within 0 s (federation.timeout)"
    assert [reply.has_error() for reply in inline.send_and_receive(ask(inline, range(3)))] == [False] * 3


@pytest.mark.parametrize(
    "strategy",
    [
        FedAvg(fraction_train=0.5, min_train_nodes=4, min_available_nodes=4),
        FedMedian(fraction_train=0.5, min_train_nodes=4, min_available_nodes=4),
        Krum(num_malicious_nodes=1, fraction_train=0.5, min_train_nodes=6, min_available_nodes=6),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_flowers_strategies_run_unchanged(inline: InlineGrid, strategy: Strategy) -> None:
    random.seed(3)  # Flower samples nodes from the global generator
    start = ArrayRecord([np.zeros(50, np.float32)])
    result = strategy.start(inline, start, num_rounds=2)
    final = result.arrays.to_numpy_ndarrays()[0]
    assert final.shape == (50,)
    assert 0 < np.abs(final).max() < 6
    assert sorted(result.train_metrics_clientapp) == [1, 2]
    assert sorted(result.evaluate_metrics_clientapp) == [1, 2]
