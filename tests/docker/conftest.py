"""A container engine, the image, and programs that are called as a user calls them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
Called = Callable[..., str]


def called(*command: str | Path, cwd: Path) -> str:
    """The output of a program; if it fails, the test fails with all that it said."""
    try:
        done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.fail(f"there is no program {command[0]} on this machine, and these tests need it")
    if done.returncode:
        words = " ".join(map(str, command))
        pytest.fail(f"{words}: exit code {done.returncode}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}")
    return done.stdout


@pytest.fixture(scope="session")
def engine() -> None:
    """Docker with its plugin compose. These tests are run only if they are asked for, and fail without it."""
    called("docker", "info", cwd=REPOSITORY)
    called("docker", "compose", "version", cwd=REPOSITORY)


@pytest.fixture(scope="session")
def image(engine: None) -> str:
    """The image of this checkout. `BUILD`, as for `make image`, passes arguments to the Dockerfile."""
    called("make", "image", f"BUILD={os.environ.get('BUILD', '')}", cwd=REPOSITORY)
    return "fedlab:latest"


@pytest.fixture(scope="session")
def fedlab() -> Called:
    """Calls ``fedlab`` in a folder: ``fedlab(folder, "run", "config.yaml")``."""
    program = Path(sys.executable).with_name("fedlab")
    return lambda cwd, *words: called(program, *words, cwd=cwd)


@pytest.fixture
def docker(engine: None, tmp_path: Path) -> Called:
    """Calls ``docker`` in the test's folder."""
    return lambda *words: called("docker", *words, cwd=tmp_path)
