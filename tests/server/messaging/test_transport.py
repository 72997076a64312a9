"""Sending and waiting, with time that passes only where somebody waits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
from flwr.app import Error, Message, RecordDict

from fedlab.engine.execution import set_task_identity
from fedlab.server.messaging import transport
from fedlab.server.messaging.transport import send_and_receive
from tests.server.remote import Clock, RemoteGrid


class Slow(RemoteGrid):
    """Nodes whose replies are there after so many seconds; None for a message that the SuperLink does not accept."""

    def __init__(self, clock: Clock, seconds: Sequence[float | None]) -> None:
        self._clock, self._seconds = clock, seconds
        self._replies: dict[str, tuple[float, Message]] = {}
        self.looks: list[int] = []

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids: list[str] = []
        for number, (message, seconds) in enumerate(zip(messages, self._seconds, strict=True)):
            message.metadata.__dict__["_message_id"] = f"m{number}"
            if seconds is None:
                ids.append(None)  # type: ignore[arg-type]  # this is what Flower does
                continue
            ids.append(f"m{number}")
            reply = Message(Error(2, "broken") if number == 1 else RecordDict(), reply_to=message)
            self._replies[f"m{number}"] = self._clock.now + seconds, reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = set(message_ids)
        self.looks.append(len(wanted))
        ready = [name for name, (when, _) in self._replies.items() if name in wanted and when <= self._clock.now]
        return [self._replies.pop(name)[1] for name in ready]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    set_task_identity()
    clock = Clock()
    monkeypatch.setattr(transport, "time", clock)
    return clock


def messages(count: int) -> list[Message]:
    return [Message(RecordDict(), node, "train") for node in range(1000, 1000 + count)]


def answered(replies: list[Message]) -> list[str]:
    return [reply.metadata.reply_to_message_id for reply in replies]


def test_replies_are_found_soon_and_returned_in_the_order_of_the_messages(clock: Clock) -> None:
    grid = Slow(clock, [20.0, 0.0, 4.0])
    replies = send_and_receive(grid, messages(3), None)
    assert answered(replies) == ["m0", "m1", "m2"]
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert grid.looks[:2] == [3, 2]  # what has been answered is not asked for again
    assert clock.pauses[0] == 0.1
    assert clock.pauses == sorted(clock.pauses)
    assert clock.pauses[-1] == 0.5
    assert sum(pause < 0.5 for pause in clock.pauses) < 10
    assert 20.0 <= clock.now <= 20.5


def test_at_the_timeout_the_replies_that_came_are_returned(clock: Clock) -> None:
    assert answered(send_and_receive(Slow(clock, [1.0, 9.0, 2.9]), messages(3), 3.0)) == ["m0", "m2"]
    assert clock.now == pytest.approx(3.0)


def test_no_messages_and_messages_that_are_not_accepted_are_not_waited_for(clock: Clock) -> None:
    assert send_and_receive(Slow(clock, []), [], None) == []
    assert answered(send_and_receive(Slow(clock, [None, 0.0, None]), messages(3), None)) == ["m1"]
    assert clock.now == 0.0
