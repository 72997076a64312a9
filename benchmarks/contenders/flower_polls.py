"""The server of a deployment as it was: it waits for replies with Flower's own function, which looks every 3 s."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import Message
from flwr.serverapp import Grid

import fedlab.server.app
from fedlab.server.messaging import delivery, directory


def _by_flower(
    grid: Grid, messages: Sequence[Message], timeout: float | None, inspect: object = None
) -> list[Message]:  # replies of real nodes are not looked at on the way
    return list(grid.send_and_receive(messages, timeout=timeout))


delivery.send_and_receive = directory.send_and_receive = _by_flower  # type: ignore[attr-defined]  # names that both import
app = fedlab.server.app.app
