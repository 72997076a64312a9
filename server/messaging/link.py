"""The connection of a deployed run to its SuperLink: what is said when it breaks off, and how long it is waited for.

Flower's own grid tries again for ever, and says so only in the log of its process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from flwr.serverapp import Grid

from fedlab.errors import MachineError

_SILENCE = 10.0  # seconds without an answer before the run says so; Flower tries again at least every 20 s
_TLS = ("certificate", "ssl", "tls")


def watch_link(grid: Grid, timeout: float, tell: Callable[[str], None]) -> None:
    """Have the run say when the SuperLink does not answer, and have the grid give up after a while.

    Args:
        grid: of the run. One that is not Flower's own for a deployment is left as it is.
        timeout: seconds after which the grid gives up (``federation.timeout``); `reaching` then says what happened.
        tell: called with a sentence when the SuperLink has not answered for a while, and when it answers again.
    """
    retries: Any = getattr(grid, "_retry_invoker", None)
    if retries is None or not hasattr(retries, "on_backoff"):
        return
    before, after, owner = retries.on_backoff, retries.on_success, threading.get_ident()
    silent = False

    def failed(state: Any) -> None:
        nonlocal silent
        if before is not None:
            before(state)
        # Flower's heartbeats use the grid from a thread of their own
        if not silent and state.elapsed_time >= _SILENCE and threading.get_ident() == owner:
            silent = True
            tell(
                f"the SuperLink has not answered for {state.elapsed_time:.0f} s ({type(state.exception).__name__}); "
                f"the run waits for it up to federation.timeout = {timeout:g} s"
            )

    def answered(state: Any) -> None:
        nonlocal silent
        if after is not None:
            after(state)
        if silent and threading.get_ident() == owner:
            silent = False
            tell(f"the SuperLink answers again, after {state.elapsed_time:.0f} s")

    retries.on_backoff, retries.on_success, retries.max_time = failed, answered, timeout


@contextmanager
def reaching() -> Iterator[None]:
    """Whatever is asked of the SuperLink within this context fails with an error that says what to do.

    Raises:
        MachineError: it cannot be reached.
    """
    try:
        yield
    except httpx.TransportError as error:
        said = str(error) or type(error).__name__
        if any(word in said.lower() for word in _TLS):
            expected = f"a SuperLink whose certificate this machine accepts; the encrypted connection failed: {said}"
            fix = (
                "give both sides the same ca.crt; the certificate must name the host, see docs/deployment.md, Problems"
            )
        else:
            expected = f"a SuperLink that answers: {said}"
            fix = "start it again, with its database; then go on with `fedlab deploy resume RUN`"
        raise MachineError("SuperLink", "not reachable", expected, fix) from error
