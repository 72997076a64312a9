"""What is in the image and what is not."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable

import pytest

from tests.docker.conftest import REPOSITORY

pytestmark = pytest.mark.docker
Called = Callable[..., str]


def inside(docker: Called, image: str, *command: str) -> str:
    return docker("run", "--rm", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", image, *command)


def test_nobody_is_root_and_the_version_is_on_the_label(docker: Called, image: str) -> None:
    (found,) = json.loads(docker("image", "inspect", image))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert found["Config"]["User"] == "10001:10001"
    assert found["Config"]["Labels"]["org.opencontainers.image.version"] == project["version"]
    assert inside(docker, image, "fedlab", "--version").strip() == f"fedlab {project['version']}"
    assert inside(docker, image, "id", "-u").strip() == "10001"


def test_there_are_no_build_tools_keys_or_sources(docker: Called, image: str) -> None:
    tools = "for tool in gcc cc make git; do command -v $tool; done; ls /src /opt/fedlab/bin/pip; true"
    assert inside(docker, image, "sh", "-c", f"({tools}) 2>/dev/null").strip() == ""
    # as root, so that no folder is left out
    look = ("run", "--rm", "--user", "0", image, "find", "/", "-xdev")
    found = docker(*look, "(", "-name", "*.key", "-o", "-name", "auth_token", ")")
    assert found.strip() == ""


def test_any_user_can_write_to_a_new_volume(docker: Called, image: str) -> None:
    docker("run", "--rm", "--user", "4321:4321", "-v", "/state", "-v", "/runs", image, "touch", "/state/a", "/runs/a")


@pytest.mark.parametrize(
    "command",
    [
        ["flower-superlink", "--version"],
        ["flower-supernode", "--version"],
        ["flower-superexec", "--version"],
        ["ray", "--version"],
        ["python", "-c", "import fedlab.clients.app, fedlab.server.app, fedlab.methods.fedlgd.method"],
    ],
)
def test_every_role_starts_without_writing_to_the_image(docker: Called, image: str, command: list[str]) -> None:
    inside(docker, image, *command)
