"""When a worker ends, without waiting for it."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, RecordDict

from fedlab.clients.resident.meeting import Meeting, _connected
from fedlab.clients.resident.wire import Channel
from fedlab.clients.resident.worker import Worker, _decoded, superexec_lives
from fedlab.protocol.messages import NdArray
from tests.clients.resident.questions import asking


@pytest.fixture
def bound(short: Path, working: str) -> Iterator[tuple[socket.socket, Meeting]]:
    meeting = Meeting(short, "0123456789abcdef", working)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(meeting.socket))
        listener.listen()
        yield listener, meeting


def test_it_ends_when_no_message_has_come_for_so_long(bound: tuple[socket.socket, Meeting]) -> None:
    times = itertools.count(0.0, 100.0)
    looks = list[float]()

    def clock() -> float:
        looks.append(next(times))
        return looks[-1]

    reason = Worker(*bound, patience=300.0, wanted=lambda: True, clock=clock, tick=0.0).serve()
    assert reason == "no message has come for 300 s"
    assert looks == [0.0, 100.0, 200.0, 300.0]
    assert not bound[1].socket.exists()
    assert _connected(bound[1].socket) is None


def test_a_message_that_comes_while_it_ends_is_answered(
    bound: tuple[socket.socket, Meeting], context: Callable[..., Context]
) -> None:
    answers: list[object] = []

    def ask(connection: socket.socket) -> None:
        with Channel(connection) as channel:
            assert channel.begun()
            channel.send_request(asking(), context())
            answers.append(channel.receive_reply()[0])

    askers: list[threading.Thread] = []

    def wanted() -> bool:
        if not askers:
            connection = _connected(bound[1].socket)
            assert connection is not None
            askers.append(threading.Thread(target=ask, args=[connection]))
            askers[0].start()
        return False

    assert Worker(*bound, patience=300.0, wanted=wanted, tick=0.0).serve() == "the SuperExec is gone"
    askers[0].join()
    (answer,) = answers
    assert isinstance(answer, RecordDict)
    assert answer.config_records["facts"]["pid"] == os.getpid()


@pytest.mark.parametrize("replaced", [False, True])
def test_it_ends_when_its_socket_is_gone_and_leaves_that_of_its_successor(
    bound: tuple[socket.socket, Meeting], replaced: bool
) -> None:
    worker = Worker(*bound, patience=300.0, wanted=lambda: True, tick=0.0)
    path = bound[1].socket
    path.rename(path.with_suffix(".old"))
    if replaced:
        path.touch()
    assert worker.serve() == "another run has come, or the socket was removed"
    assert path.exists() == replaced


def test_a_process_is_known_until_it_is_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    lives = superexec_lives(process.pid)
    assert lives()
    assert superexec_lives(1)()
    process.communicate(b"\n")
    assert not lives()
    assert not superexec_lives(process.pid)()


def test_arrays_are_read_where_they_lie() -> None:
    values = {
        "one": np.arange(6.0).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "scalar": np.array(2.5, np.float16),
        "none": np.zeros((0, 4), np.uint8),
    }
    content = RecordDict({"arrays": ArrayRecord({name: Array(value) for name, value in values.items()})})
    own = Array("float32", (1,), "another", b"abcd")
    content["own"] = ArrayRecord({"own": own})
    arrays, kept = content["arrays"], {name: array.data for name, array in content["arrays"].items()}  # type: ignore[union-attr]
    _decoded(content)
    assert isinstance(arrays, ArrayRecord)
    for name, value in values.items():
        array = arrays[name]
        assert isinstance(array, NdArray)
        np.testing.assert_array_equal(array.view(), value, strict=True)
        assert np.shares_memory(array.view(), np.frombuffer(kept[name], np.uint8)) == (
            value.size > 0 and name != "columns"
        )
    assert content["own"] == ArrayRecord({"own": own})
