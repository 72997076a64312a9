"""Runs that draw no pictures, which take up to two thirds of a small run of a method."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fedlab.server.records import RunWriter


@contextmanager
def no_pictures() -> Iterator[None]:
    """A context in which runs leave their method's pictures out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunWriter, "figures", lambda self, look: None)
        patch.setattr(RunWriter, "figures_after", lambda self, round, look: None)
        yield
