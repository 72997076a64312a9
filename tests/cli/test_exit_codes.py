"""The exit code tells what was wrong before a run from what happened in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fedlab.cli.failures import Commands
from fedlab.config import Config, parse
from fedlab.errors import ClientError, ConfigError, FedLabError, MachineError
from fedlab.storage.runfolder import RunFolder
from fedlab.tracking.recording import open_session

CONFIG = {
    "method": "supervised",
    "data": {"source": "shifted_digits"},
    "tracking": {"console": "quiet", "tensorboard": False},
}


def code_of(problem: BaseException) -> int:
    app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)

    @app.command()
    def one() -> None:
        raise problem

    @app.command()
    def two() -> None:
        """A second command, so that the first one has a name."""

    result = CliRunner().invoke(app, ["one"])
    return result.exit_code


@pytest.mark.parametrize(
    ("problem", "before", "within"),
    [
        (ConfigError("a", 1, "b"), 2, 1),
        (MachineError("a", 1, "b"), 2, 1),
        (ClientError(0, 1, "train", "x"), 1, 1),
        (FedLabError("x"), 1, 1),
        (KeyboardInterrupt(), 130, 130),
    ],
    ids=lambda value: type(value).__name__,
)
def test_codes(problem: BaseException, before: int, within: int, tmp_path: Path) -> None:
    assert code_of(problem) == before
    config = parse(Config, CONFIG)
    folder = RunFolder.create(tmp_path, "run", "supervised", 0)
    with pytest.raises(type(problem)), open_session(config, folder, engine="inline", workers=1):
        raise problem
    assert code_of(problem) == within
