"""Carries a run's events through the log of a deployment to whoever submitted the run.

The server prints each event as one line, Flower passes the server's output on, and `EventStream` reads the events from
it. Flower may repeat lines, for example after the connection was interrupted, and may lose lines at the end of a
run. Events are numbered for this reason.
"""

from __future__ import annotations

import json
import sys
from typing import TextIO

from fedlab.tracking.tracker import Event

PREFIX = "FEDLAB-EVENT "
_NUMBER = "number"
_NOT_SENT = frozenset({"work", "ledger"})  # large, and nobody who watches a run is shown them


class StreamSink:
    """Prints each event as a line that starts with `PREFIX`.

    Args:
        out: where the lines are printed; default: standard output, as it is when the event is printed.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self._out, self._printed = out, 0

    def write(self, event: Event) -> None:
        if event["event"] in _NOT_SENT:
            return
        self._printed += 1
        line = PREFIX + json.dumps({**event, _NUMBER: self._printed}, allow_nan=False) + "\n"
        # one call: Flower collects what is written, call by call, and another thread's output must not come in between
        (self._out or sys.stdout).write(line)

    def close(self) -> None:
        pass


class EventStream:
    """Finds the events in the output of a server, each once and in their order.

    Attributes:
        missed: number of events that were lost so far.
    """

    def __init__(self) -> None:
        self.missed = self._last = 0

    def read(self, line: str) -> Event | None:
        """The event in a line; None if there is none, or if it was read before. A damaged line is a lost one."""
        start = line.find(PREFIX)  # other output may have ended without a line break
        if start < 0:
            return None
        try:
            event = json.loads(line[start + len(PREFIX) :])
            number = event.pop(_NUMBER)
        except (ValueError, KeyError, AttributeError, TypeError):
            return None
        if not isinstance(number, int) or not isinstance(event.get("event"), str) or number <= self._last:
            return None
        self.missed += number - self._last - 1
        self._last = number
        return dict(event)
