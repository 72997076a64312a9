from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.report.run_folders import make_run as build


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Builds run folders below tmp_path; see run_folders.py."""
    return lambda name="run", **what: build(tmp_path / name, **what)
