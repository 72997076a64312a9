"""Runs that leave out what takes most of a small run's time and is looked at in other runs of the same method."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fedlab.experiment.rehearsal import Rehearsal
from fedlab.server.records import RunWriter


@contextmanager
def shorter() -> Iterator[None]:
    """A context in which runs draw none of their method's pictures and are not tried on one client beforehand.

    Both are done by the runs of tests/methods/test_contract.py that nothing is changed in, one for each method, and by
    the first run of each file.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunWriter, "figures", lambda self, round, look: None)
        patch.setattr(RunWriter, "figures_after", lambda self, round, look: None)
        patch.setattr("fedlab.experiment.decisions.preflight", _not_tried)
        yield


def _not_tried(*_: Any) -> Rehearsal:
    return Rehearsal([], keeps_state=True)
