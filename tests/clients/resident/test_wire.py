"""What goes through the socket comes out the same."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from fedlab.clients.resident.wire import Channel
from fedlab.protocol.messages import NdArray


def content() -> RecordDict:
    return RecordDict(
        {
            "arrays": ArrayRecord({"w": Array(np.arange(6.0).reshape(2, 3)), "flag": Array(np.array(True))}),
            "none": ArrayRecord(),
            "config": ConfigRecord({"a": 1, "b": 2.5, "c": "ü", "d": b"\0x", "e": True, "f": ["x", "y"], "g": [1, 2]}),
            "metrics": MetricRecord({"loss": 0.1, "seconds": [1.0, 2.0], "n": 3}),
        }
    )


def through(send: Callable[[Channel], None], receive: Callable[[Channel], object]) -> object:
    one, other = socket.socketpair()
    with Channel(one) as sender, Channel(other) as receiver:
        thread = threading.Thread(target=send, args=[sender])
        thread.start()
        came = receive(receiver)
        thread.join()
        return came


def test_a_request_comes_with_its_metadata_and_all_of_its_context() -> None:
    message = Message(content(), 7, "train", ttl=60.0, group_id="3")
    message.metadata.__dict__["_message_id"] = "id"
    context = Context(5, 7, {"partition-id": 2}, content(), {"config-json": "{}", "n": 1}, 9)
    came, around = through(lambda c: c.send_request(message, context), Channel.receive_request)  # type: ignore[misc]  # what the two sides return is known to the test
    assert came.content == message.content
    assert vars(came.metadata) == vars(message.metadata)
    assert around == context
    assert Message(RecordDict(), reply_to=came).metadata.reply_to_message_id == "id"


@pytest.mark.parametrize("error", [None, Error(2, "a reason"), Error(0)])
def test_a_reply_comes_with_the_new_state(error: Error | None) -> None:
    message = Message(content(), 7, "train")
    reply = Message(content() if error is None else error, reply_to=message)
    answer, state = through(lambda c: c.send_reply(reply, content()), Channel.receive_reply)  # type: ignore[misc]  # what the two sides return is known to the test
    assert state == content()
    if error is None:
        assert answer == content()
    else:
        assert (answer.code, answer.reason) == (error.code, error.reason)


def test_arrays_of_fedlab_arrive_as_flower_s_own_and_large_ones_arrive_whole() -> None:
    values = np.random.default_rng(0).integers(0, 255, 40_000_000, dtype=np.uint8)
    reply = Message(
        RecordDict({"arrays": ArrayRecord({"w": NdArray(values)})}), reply_to=Message(content(), 7, "train")
    )
    answer, _ = through(lambda c: c.send_reply(reply, RecordDict()), Channel.receive_reply)  # type: ignore[misc]  # what the two sides return is known to the test
    (array,) = answer["arrays"].values()
    assert type(array) is Array
    assert array == Array(values)


@pytest.mark.parametrize("sent", [b"", b"\0\0\0", (20).to_bytes(8, "big") + b"short"])
def test_a_connection_that_is_closed_early_is_an_end_of_file(sent: bytes) -> None:
    one, other = socket.socketpair()
    with Channel(other) as receiver:
        one.sendall(sent)
        one.close()
        with pytest.raises(EOFError, match="closed the connection"):
            receiver.receive_reply()
