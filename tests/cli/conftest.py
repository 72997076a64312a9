from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click.testing
import pytest
import typer.testing

from fedlab.cli.main import app

TINY = """
method: supervised
model: {name: logistic}
data:
  source: {name: shifted_digits, train_per_class: 2, test_size: 20}
  partition: [{name: domain}]
federation: {rounds: 2}
engine: {name: inline}
tracking: {console: quiet, tensorboard: false, folder: RUNS, cache: CACHE}
"""
Cli = Callable[..., click.testing.Result]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("FEDLAB_DEBUG", raising=False)
    return lambda *words: typer.testing.CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A configuration that runs in a second; its runs go to tmp_path/runs."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace("RUNS", str(tmp_path / "runs")).replace("CACHE", str(tmp_path / "cache")))
    return path


@pytest.fixture
def user_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module with a method whose `loss` begins with the given statement; returns its reference."""

    def write(statement: str) -> str:
        name = f"user_method_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text(
            "from fedlab.methods.supervised.method import Supervised\n\n"
            "class Mine(Supervised):\n"
            "    def loss(self, networks, batch, step):\n"
            f"        {statement}\n"
            "        return super().loss(networks, batch, step)\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        return f"{name}:Mine"

    return write
