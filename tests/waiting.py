"""Waiting in tests, which never depends on how busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(holds: Callable[[], object]) -> None:
    """Wait for something, however long it takes on a busy machine; what hangs reaches the test's own timeout."""
    while not holds():
        time.sleep(0.05)
