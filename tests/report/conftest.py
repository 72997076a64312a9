from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Builds run folders below tmp_path; see run_folders.py."""
    build = runpy.run_path(str(Path(__file__).with_name("run_folders.py")))["make_run"]
    return lambda name="run", **what: build(tmp_path / name, **what)
