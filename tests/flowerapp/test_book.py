"""The record of rounds: what is a round, and what becomes of one that does not end well."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedlab.engine.execution import set_task_identity
from fedlab.errors import ClientError
from fedlab.flowerapp.book import RoundBook, means, merged_metrics, sizes
from fedlab.tracking import Event, Tracker

Write, Run = Callable[..., Path], Callable[..., Any]
CLIENTS = {1000 + number: number for number in range(3)}


class Kept:
    """A sink that keeps all events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def write(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        pass

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event["event"] == kind]


@pytest.fixture
def kept() -> Kept:
    set_task_identity()
    return Kept()


@pytest.fixture
def book(kept: Kept) -> RoundBook:
    return RoundBook(Tracker([kept]), 0, skip=False, facts={"title": "an app"})


def send(
    book: RoundBook, kind: str, number: int | None = None, failing: tuple[int, ...] = (), **metrics: float
) -> None:
    """One call of the grid, with an answer of every client."""
    records = {} if number is None else {"config": ConfigRecord({"server-round": number})}
    messages = [Message(RecordDict(records), node, kind) for node in CLIENTS]
    replies = []
    for count, message in enumerate(messages):
        message.metadata.__dict__["_message_id"] = f"{kind}{number}{count}"
        failed = CLIENTS[message.metadata.dst_node_id] in failing
        content = RecordDict({"m": MetricRecord(dict(metrics))})
        answer = Error(1, "Traceback\nValueError: no data") if failed else content
        replies.append(Message(answer, reply_to=message))
    book.sent(messages, CLIENTS)
    book.answered({message.metadata.message_id: message for message in messages}, replies, CLIENTS)


def rounds(kept: Kept, kind: str = "round") -> list[int]:
    return [event["round"] for event in kept.of(kind)]


def test_without_numbers_every_training_is_a_round_and_evaluations_belong_to_it(book: RoundBook, kept: Kept) -> None:
    send(book, "query")
    for _ in range(2):
        send(book, "train", loss=1.0)
        send(book, "evaluate", accuracy=0.5)
        send(book, "train.warmup", loss=2.0)
    book.close()
    assert rounds(kept) == [1, 2, 3, 4]
    assert rounds(kept, "evaluation") == [1, 3]
    assert [event["train"]["loss"] for event in kept.of("round")] == [1.0, 2.0, 1.0, 2.0]


def test_numbers_of_messages_count_and_may_begin_anew(book: RoundBook, kept: Kept) -> None:
    for number in (1, 2, 1, 2):
        send(book, "train", number)
        send(book, "train", number)  # a second training of the same round
        send(book, "evaluate", number)
    book.close()
    assert rounds(kept) == rounds(kept, "evaluation") == [1, 2, 3, 4]


def test_what_is_measured_before_the_first_round_is_apart(book: RoundBook, kept: Kept) -> None:
    book.begun(1, None)
    book.measured(0, {"accuracy": 0.1})
    send(book, "train", 1)
    book.trained(1, ArrayRecord({"a": Array(np.ones(3))}), {"loss": 0.5})
    book.measured(1, {"accuracy": 0.6})
    book.close()
    assert [event["server"] for event in kept.of("probed")] == [{"accuracy": 0.1}]
    assert [(e["round"], e["server"]) for e in kept.of("evaluation")] == [(1, {"accuracy": 0.6})]
    assert kept.of("round")[0]["train"] == {"loss": 0.5}
    assert book.arrays is not None


@pytest.mark.parametrize(
    ("phase", "told", "tests"), [("train", [1], [1]), ("evaluate", [1, 2], [1])], ids=["training", "evaluation"]
)
def test_a_round_that_breaks_off_is_told_as_far_as_it_got(
    phase: str, told: list[int], tests: list[int], book: RoundBook, kept: Kept
) -> None:
    for number in (1, 2):
        failing = (1,) if number == 2 else ()
        with suppress(ClientError):
            send(book, "train", number, failing if phase == "train" else ())
            send(book, "evaluate", number, failing, accuracy=0.5)
    book.close()
    assert rounds(kept) == told
    assert rounds(kept, "evaluation") == tests
    with pytest.raises(ClientError) as raised:
        book.check()
    assert (raised.value.client, raised.value.round, raised.value.phase) == (1, 2, phase)


def test_a_strategy_that_fails_to_aggregate_leaves_no_round(book: RoundBook, kept: Kept) -> None:
    book.begun(2, None)
    send(book, "train", 1)
    book.close()
    assert rounds(kept) == []


def test_a_round_in_which_all_clients_fail_is_an_alarm(kept: Kept) -> None:
    book = RoundBook(Tracker([kept]), 0, skip=True, facts={})
    send(book, "train", 1, failing=(0, 1, 2))
    book.close()
    (alarm,) = kept.of("warning")
    assert alarm["level"] == "alarm"
    (left,) = kept.of("left_out")
    assert (left["count"], left["total"], left["why"]) == (3, 3, "they failed: ValueError: no data")


def test_messages_whose_time_is_up_end_their_phase(book: RoundBook, kept: Kept) -> None:
    messages = [Message(RecordDict(), node, "train") for node in CLIENTS]
    book.sent(messages, CLIENTS)
    book.lost(len(messages))
    assert [event["phase"] for event in kept.of("phase_end")] == ["train"]


def test_bytes_are_those_of_the_arrays() -> None:
    content = RecordDict(
        {
            "a": ArrayRecord({"x": Array(np.zeros((3, 4), np.float32)), "y": Array(np.zeros((), np.int64))}),
            "b": ArrayRecord({"z": Array("", (), "some.format", b"12345")}),
            "m": MetricRecord({"loss": 1.0}),
        }
    )
    assert sizes(content) == {"a": 3 * 4 * 4 + 8, "b": 5}


def test_means_are_weighted_and_of_the_clients_that_have_the_metric() -> None:
    found = {0: {"loss": 1.0, "only": 5.0}, 1: {"loss": 4.0}}
    assert means(found) == {"loss": 2.5, "only": 5.0}
    assert means(found, {0: 3.0, 1: 1.0}) == {"loss": 1.75, "only": 5.0}
    assert means(found, {0: 0.0, 1: 1.0}) == {"loss": 4.0}
    assert means({}) == {}


def test_metrics_of_the_older_interface_are_found_in_their_records() -> None:
    content = RecordDict(
        {
            "fitres.num_examples": MetricRecord({"num_examples": 7}),
            "fitres.metrics": ConfigRecord({"loss": 0.5}),
            "other": ConfigRecord({"secret": 1}),
        }
    )
    assert merged_metrics(content) == {"loss": 0.5, "num-examples": 7}
