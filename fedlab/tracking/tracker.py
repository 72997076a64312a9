"""The stream of events of one run, and the sinks that receive it.

====================  ====================================================================================
event                 fields
====================  ====================================================================================
``run_start``         ``folder, method, strategy, model, seed, rounds, engine, workers, command, resumed``
``warning``           ``message``; ``level`` is ``alarm``, with a ``round``, where the result itself is in doubt
``left_out``          ``what, count, total, why, fix, examples, wanted`` of `fedlab.tracking.left_out.LeftOut`, and
                      ``round`` where it happened in one
``connection``        ``round, client, connected``: the node of a client, by its name, has gone away or come back
``vectorize``         ``clients`` that train as one batch, 0 for none, and the milliseconds a client took in the probe:
                      ``alone``, ``together``
``phase_start``       ``round, phase, total``: ``total`` clients take part, 0 where the server works alone
``progress``          ``round, phase, done, total``: not kept in the file
``phase_end``         ``round, phase, seconds``
``federation``        ``title, paper, headline, clients, parameters, device, input_shape, classes``: the method's title,
                      paper, and metrics of its claim with the part of an evaluation that holds them
``work``              ``spans``: of worker, client, kind, begin and seconds; not kept here but in ``timeline.json``
``prepared``          ``bytes_down, bytes_up``: of the query before round 1
``client``            ``round, client, metrics``
``ledger``            ``round, rows``: of client, group and bytes; not kept in the file but in ``ledger.csv``
``round``             ``round, rounds, clients, train, server, bytes_down, bytes_up, bytes, raw_up, seconds,
                      eta_seconds``
``evaluation``        ``round, clients, mean, pooled, unseen, unseen_clients, server, strategy, samples, unit,
                      server_samples, per_class, confusion``, and with validation samples ``validation,
                      validation_pooled, validation_basis``
``probed``            the same fields, of the probes before round 1: ``round`` is 0
``timing``            ``round, phase, where, name, seconds, count, participants``: wall time that the method measured by
                      ``ctx.timed(name)``, in all and how often, ``where``: on the ``clients`` or on the ``server``
``figure``            ``name, round, path, title, caption``
``artifact``          ``name, path``
``checkpoint``        ``round, path``
``run_end``           ``status`` (completed | failed | interrupted), ``seconds, error``; ``stopped`` if a callback has
                      ended the run early: ``round, by, reason``; ``traceback`` of an error that is none of FedLab's own
====================  ====================================================================================

Phases are ``preflight``, ``prepare``, ``train``, ``server`` and ``evaluate``; round 0 is before the first. Bytes are
payload bytes of training traffic, by exchange group in ``bytes``; the models sent for evaluation are not counted.
``raw_up`` has, by group, what uploads were before compression; it is empty where nothing is compressed.
``mean`` and ``pooled`` are of the clients that may train, ``unseen`` is the mean over those held out, named in
``unseen_clients``; ``clients`` has the values of both. ``validation`` and ``validation_pooled`` are the mean and the
pooled values on validation samples, of the clients that may train; ``validation_basis`` has the numbers of these
``clients`` and ``samples``. ``samples`` says how many ``unit`` (test samples, queries) the
values of each client stand on, ``server_samples`` how large the server's sets are. With `federation.devices` a
``round`` has ``virtual`` too:
``round_seconds`` and ``total``, the simulated seconds.
``per_class`` counts the test samples of each class and those classified correctly, and ``confusion`` all of them by
label and prediction, if there are at most 100 classes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import numpy as np

from fedlab.storage.secrets import redacted

Event = dict[str, Any]
log = logging.getLogger(__name__)

_WORDS = frozenset({"warning", "run_start", "run_end"})  # events with text that may quote addresses and settings

ALARM = "alarm"
"""Level of a warning that puts the run's result in doubt."""


class Sink(Protocol):
    """Receives the events of a run."""

    def write(self, event: Event) -> None:
        """Receive an event: ``event`` is its kind, ``time`` the seconds since the epoch, and the others its fields."""

    def close(self) -> None:
        """Called when the run has ended."""


class Tracker:
    """Passes events on to sinks.

    Args:
        essential: sinks whose failure ends the run.
        others: sinks that are dropped with a warning when they fail, because a broken display must not end a run.

    Attributes:
        stopped: who has ended the run early, when and why, as the event ``run_end`` has it; None if nobody has.
    """

    def __init__(self, essential: Sequence[Sink] = (), others: Sequence[Sink] = ()) -> None:
        self._essential, self._others = list(essential), list(others)
        self.stopped: Mapping[str, Any] | None = None

    def emit(self, event: str, **fields: Any) -> None:
        """Publish one event; arrays and numpy scalars become plain values, NaN and infinity become None."""
        record = {"event": event, "time": time.time(), **{name: plain(value) for name, value in fields.items()}}
        if event in _WORDS:
            record |= {name: redacted(value) for name, value in record.items() if isinstance(value, str)}
        for sink in self._essential:
            sink.write(record)
        for sink in list(self._others):
            try:
                sink.write(record)
            except Exception as error:
                self._others.remove(sink)
                log.warning("%s failed and is left out from now on: %s", type(sink).__name__, error)
                _close(sink)

    def alarm(self, round: int, message: str) -> None:
        """Publish a warning that puts the run's result in doubt: collapse, divergence, a round that trained nothing.

        Args:
            round: round in which it was noticed.
            message: what is wrong, with the names of clients and metrics.
        """
        self.emit("warning", message=message, level=ALARM, round=round)

    def close(self) -> None:
        """Close all sinks, even if a second Ctrl-C arrives while the first is handled."""
        with ExitStack() as closing:
            for sink in reversed([*self._others, *self._essential]):
                closing.callback(_close, sink)


def _close(sink: Sink) -> None:
    try:
        sink.close()
    except Exception as error:
        log.warning("%s could not be closed: %s", type(sink).__name__, error)


def plain(value: Any) -> Any:
    """`value` in JSON's own types."""
    kind = type(value)
    if kind is str or kind is int:  # most of what there is: not worth the tests below
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple | set | range):
        return [plain(part) for part in value]
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)
