"""A SuperLink that goes away is told, and the wait has an end; a reply that Flower cannot read is its node's fault."""

from __future__ import annotations

from collections.abc import Iterable

import httpx
import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.retry import RetryInvoker, constant

from fedlab.engine.execution import set_task_identity
from fedlab.errors import MachineError
from fedlab.protocol.messages import UNUSABLE
from fedlab.server.messaging import transport
from fedlab.server.messaging.link import reaching, watch_link
from fedlab.server.messaging.transport import node_ids, send_and_receive
from tests.server.remote import Clock, RemoteGrid


class Away(RemoteGrid):
    """Flower's grid as far as it tries again: the SuperLink does not answer until a time.

    Args:
        clock: the time.
        back: when it answers.
    """

    def __init__(self, clock: Clock, back: float) -> None:
        self._clock, self._back = clock, back
        self._retry_invoker = RetryInvoker(
            lambda: constant(5.0), httpx.ConnectError, None, None, jitter=None, wait_function=clock.sleep
        )

    def get_node_ids(self) -> Iterable[int]:
        found: Iterable[int] = self._retry_invoker.invoke(self._ids)
        return found

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        raise NotImplementedError

    def _ids(self) -> list[int]:
        if self._clock.now < self._back:
            raise httpx.ConnectError("[Errno 111] Connection refused")
        return [1001, 1000]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    set_task_identity()
    clock = Clock()
    monkeypatch.setattr("flwr.supercore.retry.retry_invoker.time", clock)
    monkeypatch.setattr(transport, "time", clock)
    return clock


def test_a_superlink_that_comes_back_is_waited_for_and_both_are_told(clock: Clock) -> None:
    grid, told = Away(clock, back=100.0), list[tuple[float, str]]()
    watch_link(grid, 600.0, lambda sentence: told.append((clock.now, sentence)))
    assert node_ids(grid) == [1000, 1001]
    (when, gone), (_, back) = told
    assert when <= 60
    assert "the SuperLink has not answered for" in gone
    assert "up to federation.timeout = 600 s" in gone
    assert "answers again, after 100 s" in back


def test_the_wait_ends_after_the_timeout_with_what_to_do(clock: Clock) -> None:
    grid = Away(clock, back=1e9)
    watch_link(grid, 300.0, lambda sentence: None)
    with pytest.raises(MachineError, match=r"SuperLink[\s\S]*Connection refused[\s\S]*fedlab deploy resume RUN"):
        node_ids(grid)
    assert 300 <= clock.now <= 310


def test_a_mistake_in_the_encryption_is_called_one() -> None:
    with pytest.raises(MachineError, match=r"the encrypted connection failed[\s\S]*same ca\.crt"), reaching():
        raise httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate")


def test_other_grids_are_left_as_they_are() -> None:
    watch_link(Poisoned(), 1.0, lambda sentence: None)


class Poisoned(RemoteGrid):
    """Flower's grid fails for all replies if one of them is no message."""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        self._sent = list(messages)
        for number, message in enumerate(self._sent):
            message.metadata.__dict__["_message_id"] = f"m{number}"
        return [message.metadata.message_id for message in self._sent]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = set(message_ids)
        if "m1" in wanted:
            raise ValueError("an object is no message")
        return [Message(RecordDict(), reply_to=m) for m in self._sent if m.metadata.message_id in wanted]


def test_a_reply_that_is_no_message_is_an_error_of_its_node_and_the_others_come(clock: Clock) -> None:
    messages = [Message(RecordDict(), node, "train") for node in (1000, 1001, 1002)]
    replies = send_and_receive(Poisoned(), messages, 10.0)
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].error.code == UNUSABLE
    assert "cannot be read (ValueError)" in replies[1].error.reason


@pytest.mark.parametrize("problem", [httpx.ConnectError("gone"), httpx.ReadTimeout("slow")])
def test_what_is_the_fault_of_the_link_is_nobody_elses(problem: Exception, clock: Clock) -> None:
    class Gone(Poisoned):
        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            raise problem

    with pytest.raises(MachineError, match="SuperLink"):
        send_and_receive(Gone(), [Message(RecordDict(), 1000, "train")], 10.0)
