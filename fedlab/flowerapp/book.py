"""The record of a Flower app's run: what its messages and its strategy say, as the events of a FedLab run."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from fedlab.engine.scheduling import Span
from fedlab.errors import ClientError
from fedlab.flowerapp.loading import round_of
from fedlab.protocol.messages import NUM_EXAMPLES
from fedlab.server.ledger import Ledger
from fedlab.tracking import Tracker
from fedlab.tracking.left_out import LeftOut

Values = dict[str, float]

TRAIN, EVALUATE = "train", "evaluate"
_NAMED = 10  # clients in one event
_OLDER, _OLDER_EXAMPLES = ("fitres.metrics", "evaluateres.metrics"), "num_examples"


@dataclass
class _Round:
    """What is known of a round that has not ended.

    Args:
        number: of the round; 0 is before the first.
        complete: whether the strategy has aggregated its training.
    """

    number: int
    complete: bool = False
    asked: Counter[str] = field(default_factory=Counter)  # messages by phase
    seconds: dict[str, float] = field(default_factory=dict)  # by phase
    ledger: Ledger = field(default_factory=Ledger)
    trained: dict[int, Values] = field(default_factory=dict)  # by client
    tested: dict[int, Values] = field(default_factory=dict)
    examples: dict[int, float] = field(default_factory=dict)  # of training, by client
    samples: dict[int, int] = field(default_factory=dict)  # of evaluation, by client
    aggregated: Values = field(default_factory=dict)  # the strategy's metrics of training
    strategy: Values = field(default_factory=dict)  # its metrics of evaluation
    server: Values = field(default_factory=dict)  # of evaluate_fn
    failed: dict[str, dict[int, str]] = field(default_factory=dict)  # reason by phase and client
    lists: Counter[str] = field(default_factory=Counter)  # metrics that are no single numbers


class RoundBook:
    """Keeps the record of an app's rounds and passes it on to the tracker.

    A round begins with the first message of a training, and ends where the next one begins. It may be called from
    several threads, because strategies of Flower's older interface talk to every client in a thread of its own.

    Args:
        tracker: where events go.
        rounds: planned number of rounds; 0 if it is not known.
        skip: whether the app's strategy is given the errors of clients; if not, the first one ends the run.
        facts: fields of the event ``federation``.
    """

    def __init__(self, tracker: Tracker, rounds: int, skip: bool, facts: Mapping[str, Any]) -> None:
        self.failure: ClientError | None = None
        """The first error of a client, if errors end the run. The app may have caught it."""
        self.arrays: ArrayRecord | None = None
        """What the strategy has aggregated last."""
        self._tracker, self._rounds, self._skip, self._facts = tracker, rounds, skip, facts
        self._lock, self._began = threading.RLock(), time.perf_counter()
        self._open = _Round(0)
        self._first, self._listened = 0, False  # the round after which the strategy at work began, if there is one
        self._phase, self._outstanding, self._phase_began = "", 0, 0.0
        tracker.emit("federation", **facts)

    # what the grid tells

    def sent(self, messages: Sequence[Message], client_of: Mapping[int, int], total: int | None = None) -> None:
        """Messages are about to be sent.

        Args:
            messages: of one call of the grid.
            client_of: number of a client by Flower's id of its node.
            total: number of messages that the phase will have, for the display; 0 if it is not known.
        """
        if not messages:
            return
        with self._lock:
            phase = phase_of(messages[0])
            self._enter(phase, round_of(messages[0]))
            if self._outstanding and phase != self._phase:
                self._end_phase()
            if not self._outstanding:
                self._phase, self._phase_began = phase, time.perf_counter()
                count = len(messages) if total is None else total
                self._tracker.emit("phase_start", round=self._open.number, phase=phase, total=count)
            self._outstanding += len(messages)
            self._open.asked[phase] += len(messages)
            for message in messages if phase == TRAIN else ():
                if (client := client_of.get(message.metadata.dst_node_id)) is not None:
                    self._open.ledger.sent(client, sizes(message.content))

    def answered(self, asked: Mapping[str, Message], replies: Iterable[Message], client_of: Mapping[int, int]) -> None:
        """Replies have come.

        Args:
            asked: the messages, by their ids.
            replies: the replies to some of them.
            client_of: number of a client by Flower's id of its node.

        Raises:
            ClientError: a client has failed, and errors end the run.
        """
        with self._lock:
            for reply in replies:
                message = asked[reply.metadata.reply_to_message_id]
                self._outstanding -= 1
                self._take(phase_of(message), client_of[message.metadata.dst_node_id], reply)
            if self._outstanding <= 0 and self._phase:
                self._end_phase()
            self.check()

    def lost(self, count: int) -> None:
        """No reply will come to so many messages, because their time was up."""
        with self._lock:
            self._outstanding -= count
            if self._outstanding <= 0 and self._phase:
                self._end_phase()

    def progress(self, done: int, total: int) -> None:
        """The engine's word on how many replies of a call there are."""
        with self._lock:
            if self._phase:
                self._tracker.emit("progress", round=self._open.number, phase=self._phase, done=done, total=total)

    def work(self, spans: Sequence[tuple[int, Span]]) -> None:
        """The engine's word on which worker handled which message."""
        with self._lock:
            self._tracker.emit("work", spans=[[worker, *span] for worker, span in spans])

    def check(self) -> None:
        """Raise the first error of a client.

        Raises:
            ClientError: a client has failed, and errors end the run.
        """
        if self.failure is not None:
            raise self.failure

    # what a strategy tells

    def begun(self, rounds: int, arrays: ArrayRecord | None) -> None:
        """A strategy begins its rounds, whose numbers start at 1 again."""
        with self._lock:
            self._first, self._listened = self._open.number, True
            self._rounds = self._first + rounds
            if arrays is not None:
                self.arrays = arrays
                self._tracker.emit("federation", **self._facts, parameters=parameters_in(arrays))

    def trained(self, number: int, arrays: ArrayRecord | None, metrics: Mapping[str, Any] | None) -> None:
        """What a strategy has aggregated of the clients' training."""
        with self._lock:
            self._enter(TRAIN, number)
            self.arrays = arrays if arrays is not None else self.arrays
            self._open.aggregated, self._open.complete = self._numbers(metrics or {}), True

    def tested(self, number: int, metrics: Mapping[str, Any] | None) -> None:
        """What a strategy has aggregated of the clients' evaluation."""
        with self._lock:
            self._enter(EVALUATE, number)
            self._open.strategy = self._numbers(metrics or {})

    def measured(self, number: int, metrics: Mapping[str, Any] | None) -> None:
        """What the server has measured itself, by ``evaluate_fn``."""
        with self._lock:
            self._enter(EVALUATE, number)
            self._open.server = self._numbers(metrics or {})

    @contextmanager
    def on_server(self) -> Iterator[None]:
        """A context in which the server works."""
        with self._lock:
            number, began = self._open.number, time.perf_counter()
            self._tracker.emit("phase_start", round=number, phase="server", total=0)
        try:
            yield
        finally:
            with self._lock:
                self._spend("server", time.perf_counter() - began, number)

    def close(self) -> None:
        """The run ends, in good order or not: tell of the round that is open as far as it got."""
        with self._lock:
            broken = self._phase or (self.failure.phase if self.failure is not None else "")
            if self._phase:
                self._end_phase()
            if broken == TRAIN or (self._listened and not self._open.complete and self._open.number):
                return
            if broken:
                self._tell_training(self._open)
            else:
                self._close()

    # internals

    def _enter(self, phase: str, number: int | None) -> None:
        """Make a message's or a strategy's round the open one, after the one before has ended.

        Args:
            phase: of the message.
            number: of the round, as the app counts; None if the message does not say.
        """
        now = self._open.number
        if number is None:
            # without a number every training is a round, and all else belongs to the round of the last training
            number = now + 1 if phase == TRAIN and self._phase != TRAIN else now
        else:
            if self._first + number < now and phase == TRAIN and self._phase != TRAIN:
                self._first = now  # the app counts anew
            number += self._first
        if number > now:
            self._close()
            self._open = _Round(number)

    def _take(self, phase: str, client: int, reply: Message) -> None:
        here = self._open
        if reply.has_error():
            reason = reply.error.reason or f"error {reply.error.code} of Flower, without a reason"
            here.failed.setdefault(phase, {})[client] = reason
            if not self._skip and self.failure is None:
                self.failure = ClientError(client, here.number, phase, reason)
            return
        metrics = merged_metrics(reply.content)
        count = metrics.pop(NUM_EXAMPLES, None)
        values = self._numbers(metrics)
        if phase == TRAIN:
            here.ledger.received(client, sizes(reply.content))
            here.trained[client] = values
            here.examples[client] = float(count) if isinstance(count, int | float) else 1.0
        elif phase == EVALUATE:
            here.tested[client] = values
            if isinstance(count, int | float):
                here.samples[client] = int(count)

    def _numbers(self, metrics: Mapping[str, Any]) -> Values:
        """The metrics that are single numbers; the others are counted."""
        self._open.lists.update(name for name, value in metrics.items() if not isinstance(value, int | float))
        return {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}

    def _end_phase(self) -> None:
        phase, self._phase, self._outstanding = self._phase, "", 0
        self._spend(phase, time.perf_counter() - self._phase_began, self._open.number)

    def _spend(self, phase: str, seconds: float, number: int) -> None:
        self._open.seconds[phase] = self._open.seconds.get(phase, 0.0) + seconds
        self._tracker.emit("phase_end", round=number, phase=phase, seconds=seconds)

    def _close(self) -> None:
        """Tell of the open round. What comes later belongs to the next one."""
        here, self._open = self._open, _Round(self._open.number)
        self._tell_training(here)
        if here.tested or here.strategy or here.server:
            names = {client: f"client {client}" for client in sorted(here.tested)}
            self._tracker.emit(
                "evaluation" if here.number else "probed",
                round=here.number,
                clients={names[client]: here.tested[client] for client in names},
                mean=means(here.tested),
                pooled={},
                unseen={},
                unseen_clients=[],
                server=here.server,
                strategy=here.strategy,
                samples={names[client]: count for client, count in sorted(here.samples.items())},
                unit="test samples",
                server_samples={},
            )
        for phase, reasons in here.failed.items():
            clients = tuple(f"client {client}" for client in sorted(reasons))
            why = f"they failed: {_last_line(next(iter(reasons.values())))}"
            asked = here.asked[phase]
            self._leave_out(here, LeftOut(f"replies to {phase}", len(clients), why, asked, "", clients[:_NAMED]))
        why = "each is no single number, as the record of a run holds them"
        self._leave_out(here, LeftOut("metrics", here.lists.total(), why, examples=tuple(sorted(here.lists))[:_NAMED]))

    def _tell_training(self, here: _Round) -> None:
        if not here.asked[TRAIN] or not here.number:
            return
        if not here.trained:
            self._tracker.alarm(here.number, "no client was trained in a whole round: all of them failed")
        for client, metrics in sorted(here.trained.items()):
            self._tracker.emit("client", round=here.number, client=client, metrics=metrics)
        self._tracker.emit("ledger", round=here.number, rows=here.ledger.rows())
        spent = time.perf_counter() - self._began
        self._tracker.emit(
            "round",
            round=here.number,
            rounds=max(self._rounds, here.number),
            clients=sorted(here.trained),
            train=here.aggregated or means(here.trained, here.examples),
            server={},
            bytes_down=here.ledger.down,
            bytes_up=here.ledger.up,
            bytes=here.ledger.groups(),
            raw_up={},
            seconds=here.seconds,
            eta_seconds=spent / here.number * max(0, self._rounds - here.number),
        )

    def _leave_out(self, here: _Round, left: LeftOut) -> None:
        if left.count:
            self._tracker.emit("left_out", round=here.number, **left.fields())


def phase_of(message: Message) -> str:
    """The phase that a message belongs to: ``train``, ``evaluate``, ``query`` or another type of message."""
    return message.metadata.message_type.partition(".")[0]


def sizes(content: RecordDict) -> dict[str, int]:
    """Bytes of the arrays in a message, by the name of their record."""
    return {
        name: sum(_bytes_of(array) for array in record.values())
        for name, record in content.items()
        if isinstance(record, ArrayRecord)
    }


def merged_metrics(content: RecordDict) -> dict[str, Any]:
    """The metrics of a reply; of those with the same name in several records, the last one.

    Clients of Flower's older interface have their metrics in a ConfigRecord of a certain name, and another word for the
    number of examples.
    """
    found: dict[str, Any] = {}
    for name, record in content.items():
        if isinstance(record, MetricRecord) or name in _OLDER:
            found.update(record)
    if (count := found.pop(_OLDER_EXAMPLES, None)) is not None:
        found.setdefault(NUM_EXAMPLES, count)
    return found


def means(by_client: Mapping[int, Values], weights: Mapping[int, float] | None = None) -> Values:
    """Weighted means over the clients that have a metric.

    Args:
        by_client: metrics by client.
        weights: by client; None weighs all alike.
    """
    names = dict.fromkeys(name for values in by_client.values() for name in values)
    found = {}
    for name in names:
        shares = {c: 1.0 if weights is None else weights[c] for c, values in by_client.items() if name in values}
        total = sum(shares.values())
        if total > 0:
            found[name] = sum(share * by_client[client][name] for client, share in shares.items()) / total
    return found


def parameters_in(arrays: ArrayRecord) -> int:
    """Number of values in arrays."""
    return sum(int(np.prod(array.shape, dtype=np.int64)) for array in arrays.values())


def _bytes_of(array: Array) -> int:
    if array.stype == "numpy.ndarray" and array.dtype:
        return int(np.dtype(array.dtype).itemsize * np.prod(array.shape, dtype=np.int64))
    return len(array.data)


def _last_line(reason: str) -> str:
    return next((line.strip() for line in reversed(reason.splitlines()) if line.strip()), "")
