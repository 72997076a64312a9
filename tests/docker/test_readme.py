"""The sequences of docker/README.md, followed literally in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docker.conftest import REPOSITORY

pytestmark = [pytest.mark.docker, pytest.mark.timeout(3600)]
PAGE = (REPOSITORY / "docker" / "README.md").read_text(encoding="utf-8")


def commands(heading: str) -> str:
    """The first block of commands below a heading."""
    section = PAGE.split(f"\n## {heading}\n")[1]
    found = re.search(r"(?:^    .+\n)+", section, re.MULTILINE)
    assert found is not None
    return re.sub("^    ", "", found[0], flags=re.MULTILINE).replace("…/docker", str(REPOSITORY / "docker"))


@pytest.mark.parametrize(
    ("heading", "ends"),
    [
        ("One machine", "cd demonstration && docker compose --project-directory deployment down --volumes"),
        ("A Ray cluster", "docker compose --profile driver down --volumes"),
    ],
)
def test_the_sequence_works(heading: str, ends: str, image: str, tmp_path: Path) -> None:
    if heading == "A Ray cluster" and os.getuid() == 0:
        pytest.skip("the sequence is for a user who is not root")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    try:
        done = subprocess.run(
            ["bash", "-euxc", commands(heading)], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    finally:
        subprocess.run(["bash", "-c", ends], cwd=tmp_path, env=environment, capture_output=True, check=False)
