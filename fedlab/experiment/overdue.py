"""Says which hook of a method the preflight is in when it takes long, and ends it after a limit."""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fedlab.engine.limit import OverdueError, limited
from fedlab.errors import FedLabError
from fedlab.method import Method

log = logging.getLogger(__name__)

_FIRST = 60.0  # seconds until the first word; the next ones follow after twice the time each
_LEAST = 60.0  # seconds that the preflight may take whatever the limit of a round is


@contextmanager
def named_after(seconds: float, method: Method, first: float = _FIRST) -> Iterator[None]:
    """A context for the preflight, in which every hook of a method is called once.

    Args:
        seconds: limit of the whole preflight, which is at least a minute.
        method: whose hooks they are.
        first: seconds after which it is first said where the work is.

    Raises:
        FedLabError: the time is up; it names the hook that was at work, and the line.
    """
    done, caller = threading.Event(), threading.get_ident()
    began, limit = time.monotonic(), max(seconds, _LEAST)

    places: list[str] = []

    def overdue(frame: FrameType | None) -> BaseException:
        places.append(at_work(frame, method))
        return OverdueError()

    def watch() -> None:
        pause = first
        while not done.wait(pause):
            where = at_work(sys._current_frames().get(caller), method)
            log.warning("the preflight has taken %.0f s and is %s", time.monotonic() - began, where)
            pause *= 2

    threading.Thread(target=watch, name="preflight-watch", daemon=True).start()
    try:
        with limited(limit, overdue):
            yield
    except OverdueError:
        raise FedLabError(
            f"the preflight was ended after {limit:g} s (federation.timeout): it tries one batch of one client, and "
            f"is {places[-1]}. Mend what it waits for, or raise federation.timeout"
        ) from None
    finally:
        done.set()


def at_work(frame: FrameType | None, method: Method) -> str:
    """Where the code of a frame is: the outermost hook of the method that has called it, and the innermost line."""
    if frame is None:
        return "at an unknown place"
    stack = [found for found, _ in traceback.walk_stack(frame)]
    hooks = [found.f_code.co_name for found in stack if isinstance(found.f_locals.get("self"), type(method))]
    where = f"at {frame.f_code.co_filename}:{frame.f_lineno}"
    return f"in {type(method).__name__}.{hooks[-1]}(), {where}" if hooks else where
