from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from tests.report.run_folders import make_run as build


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Builds run folders below tmp_path; see run_folders.py."""
    return lambda name="run", **what: build(tmp_path / name, **what)


@pytest.fixture
def empty_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts are made, but their lines and texts are not drawn, which takes nearly all of a report's time."""
    savefig = Figure.savefig

    def saved(figure: Figure, file: Any, **how: Any) -> None:
        if how.get("format") == "svg":
            file.write('<svg viewBox="0 0 1 1"></svg>')
        else:
            savefig(figure, file, **how)

    monkeypatch.setattr(Figure, "savefig", saved)
