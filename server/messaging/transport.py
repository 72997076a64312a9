"""Sends messages and waits for the replies, with shorter pauses than Flower's own where Flower waits for real nodes."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

import httpx
from flwr.app import Error, Message
from flwr.serverapp import Grid

from fedlab.engine.execution import Inspect
from fedlab.engine.grids.base import SimulationGrid
from fedlab.protocol.messages import UNUSABLE
from fedlab.server.messaging.link import reaching

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE, _GROWTH = 0.1, 0.5, 1.25  # seconds between two looks for replies, and their growth


def send_and_receive(
    grid: Grid, messages: Sequence[Message], timeout: float | None, inspect: Inspect | None = None
) -> list[Message]:
    """Send messages and return the replies that come in time, errors among them.

    Flower's own function looks for replies every 3 seconds in a deployment. This one begins with 0.1 s, and after a
    second with looks every 0.5 s. FedLab's simulated grids need not look, so theirs is used.

    Args:
        grid: the grid that reaches the clients.
        messages: what to send. Those that the SuperLink does not accept get no reply, and nobody waits for one.
        timeout: seconds to wait for replies; None waits as long as it takes.
        inspect: checks the replies of simulated clients where they are made, before the engine forms a sum of them.
            Replies of real nodes are returned as they came.

    Returns:
        The replies in the order of the messages.

    Raises:
        MachineError: the SuperLink cannot be reached.
    """
    if isinstance(grid, SimulationGrid):
        return grid.send_and_receive(messages, timeout=timeout, inspect=inspect)
    with reaching():
        # the SuperLink answers None for a message that it does not accept
        order = {message_id: place for place, message_id in enumerate(grid.push_messages(messages)) if message_id}
    waiting = set(order)
    deadline = None if timeout is None else time.monotonic() + timeout
    replies: list[Message] = []
    pause = _FIRST_PAUSE
    while waiting and (deadline is None or time.monotonic() < deadline):
        with reaching():
            came = _pulled(grid, waiting, {message.metadata.message_id: message for message in messages})
        replies += came
        waiting.difference_update(reply.metadata.reply_to_message_id for reply in came)
        if waiting:
            time.sleep(pause if deadline is None else max(0.0, min(pause, deadline - time.monotonic())))
            pause = min(pause * _GROWTH, _LONGEST_PAUSE)
    return sorted(replies, key=lambda reply: order.get(reply.metadata.reply_to_message_id, len(order)))


def node_ids(grid: Grid) -> list[int]:
    """The nodes that are connected now, sorted.

    Raises:
        MachineError: the SuperLink cannot be reached.
    """
    with reaching():
        return sorted(grid.get_node_ids())


def _pulled(grid: Grid, waiting: set[str], messages: Mapping[str, Message]) -> list[Message]:
    """The replies that have come. One that Flower cannot put together becomes an error of the node that sent it."""
    try:
        return list(grid.pull_messages(waiting))
    except (httpx.HTTPError, OSError):
        raise
    except Exception:  # Flower fails for all of them if one is no message
        log.warning("a reply cannot be read, so each of them is asked for by itself", exc_info=True)
    came: list[Message] = []
    for message_id in waiting:
        try:
            came += grid.pull_messages([message_id])
        except (httpx.HTTPError, OSError):
            raise
        except Exception as problem:
            reason = f"the reply cannot be read ({type(problem).__name__})"
            came.append(Message(Error(UNUSABLE, reason), reply_to=messages[message_id]))
    return came
