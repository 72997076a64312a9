"""Work that never looks at a clock is ended after a time, and timers of the program's own go on."""

from __future__ import annotations

import signal
import threading
import time

import pytest
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedlab.engine import Simulation
from fedlab.engine.grids.inline import InlineGrid
from fedlab.engine.limit import can_limit, limited
from fedlab.protocol.messages import exact_sum, requested_reduction
from tests.server.answers import Clients, Federation


def forever() -> None:
    while True:
        try:
            time.sleep(60)
        except Exception:  # as careless code does it
            continue


def test_it_is_ended_by_the_error_and_a_timer_of_the_program_goes_on() -> None:
    rang = threading.Event()
    before = signal.signal(signal.SIGALRM, lambda signum, frame: rang.set())
    old = signal.setitimer(signal.ITIMER_REAL, 1000)
    try:
        with pytest.raises(KeyboardInterrupt), limited(0.05, lambda frame: KeyboardInterrupt()):
            forever()
        left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
        assert 0 < left <= 1000
        signal.raise_signal(signal.SIGALRM)
        assert rang.is_set()
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *old)


def test_no_limit_and_other_threads_change_nothing() -> None:
    with limited(None, lambda frame: KeyboardInterrupt()):
        pass
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(can_limit()))
    thread.start()
    thread.join()
    assert (found, can_limit()) == ([False], True)


def test_the_inline_engine_ends_a_client_that_hangs_and_goes_on() -> None:
    """A client hangs in the first round. Its error says so, and the next round has all clients again."""
    hanging = Clients(lambda reply: forever())
    grid = InlineGrid(Simulation(hanging, 3))
    messages = Federation("simulation", "skip").sent().messages
    replies = grid.send_and_receive(messages[1:2], timeout=0.2)
    assert [reply.error.reason for reply in replies] == ["no reply within 0.2 s (federation.timeout)"]
    hanging.spoil = None
    answers = grid.send_and_receive(Federation("simulation", "skip").sent().messages, timeout=600)
    reduction = requested_reduction(messages[0].content)
    assert reduction is not None
    assert exact_sum(answers, reduction).mean()["b"].tolist() == [2.0, 2.0, 2.0]


def test_a_sum_is_never_broken_off() -> None:
    """Only the client's own work is limited: the timer is off when its arrays are added."""
    app, seen = ClientApp(), list[float]()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        content = Federation("simulation", "stop").sent().messages[0].content
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": content["arrays"], "metrics": metrics}), reply_to=message)

    def inspect(client: int, sent: RecordDict, reply: Message) -> None:
        seen.append(signal.getitimer(signal.ITIMER_REAL)[0])

    outer = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        grid = InlineGrid(Simulation(lambda: app, 3))
        (message, *_) = Federation("simulation", "stop").sent().messages
        grid.send_and_receive([message], timeout=100, inspect=inspect)
    finally:
        signal.setitimer(signal.ITIMER_REAL, *outer)
    assert seen == [0.0]
