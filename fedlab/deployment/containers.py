"""What runs on this machine in containers, by Docker's plugin compose."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedlab.deployment.flower import DeploymentError
from fedlab.deployment.nodefile import mounted, write_node_file, write_server_file
from fedlab.deployment.processes import node_config
from fedlab.deployment.project import Federation, Folder, Site
from fedlab.errors import MachineError
from fedlab.storage.runfolder import write_atomic

DATA, STATE = Path("/data"), Path("/state")
"""Where a node's container has its data, read-only, and what it keeps."""
_FIRST = ("superlink", "gateway", "server")


def write_compose(folder: Folder) -> None:
    """Write the files of docker compose for a project, and the nodes' own files as their containers see them."""
    from fedlab.deployment import compose

    settings = folder.settings()
    if isinstance(settings, Site):
        made = compose.node(settings.site, settings.superlink, settings.data, name=settings.name)
        _write(folder, made, {"FEDLAB_IMAGE": settings.image}, [folder.path / "key"])
        return
    data: dict[str, str | None] = {}
    configs: dict[str, str] = {}
    for client, (site, source) in enumerate(settings.sites.items()):
        if settings.simulate_partition:
            data[site] = None
            configs[site] = node_config(client=client, state=STATE)
        elif settings.local and source is not None:
            seen = mounted({site: source}, settings.assets, DATA)
            write_node_file(folder.node_file(site), site, seen.sources[site], STATE, seen.assets)
            data[site] = None if seen.folder is None else str(seen.folder)
    made = compose.federation(data, name=settings.name, node_config=configs, server_data=_server_data(folder, settings))
    values = {
        "FEDLAB_IMAGE": settings.image,
        "FEDLAB_PORT": str(settings.port),
        "FEDLAB_CONTROL_PORT": str(settings.control_port),
    }
    _write(folder, made, values, [folder.server_key, *map(folder.key, settings.sites)])


def check_engine() -> None:
    """Refuse a machine without Docker and its plugin compose.

    Raises:
        MachineError: one of them is missing, or the engine does not answer.
    """
    fix = "install Docker Engine with the plugin compose, or make the project with --processes"
    if shutil.which("docker") is None:
        raise MachineError("--containers", "no command docker", "Docker Engine", fix)
    for command, expected in ((["compose", "version"], "the plugin docker compose"), (["info"], "a running engine")):
        done = subprocess.run(["docker", *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise MachineError("--containers", done.stderr.strip()[-200:] or "no answer", expected, fix)


def up(folder: Folder, *, server_only: bool = False) -> None:
    """Start the containers of a project, or of a federation's server alone, and wait until they are healthy."""
    _compose(folder, "up", "--detach", "--wait", "--remove-orphans", *(_FIRST if server_only else ()))


def down(folder: Folder) -> int:
    """Remove the containers of a project and return how many there were. The volumes stay."""
    found = len(standings(folder))
    _compose(folder, "down", "--remove-orphans")
    return found


def standings(folder: Folder) -> dict[str, str]:
    """The state of each of a project's containers, by the name of its service."""
    lines = _compose(folder, "ps", "--all", "--format", "json").splitlines()
    # one object a line, or in older versions one list
    found: list[Any] = []
    for line in filter(None, map(str.strip, lines)):
        read = json.loads(line)
        found += read if isinstance(read, list) else [read]
    return {one["Service"]: " ".join(filter(None, [one.get("State"), one.get("Health")])) for one in found}


def fetch(folder: Folder, name: str) -> Path:
    """Copy a run folder out of the server's volume; an earlier copy is replaced.

    Raises:
        DeploymentError: there is no such run folder.
    """
    target, fresh = folder.runs / name, folder.runs / f".{name}"
    folder.runs.mkdir(exist_ok=True)
    shutil.rmtree(fresh, ignore_errors=True)
    _compose(folder, "cp", f"server:/runs/{name}", str(fresh))
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    return target


def _server_data(folder: Folder, settings: Federation) -> str | None:
    """The folder that the server needs for its own samples and assets; None without any. Its file is written too."""
    if not (settings.server or settings.assets):
        return None
    seen = mounted(settings.server, settings.assets, DATA)
    write_server_file(folder.server_file, seen.sources, seen.assets)
    return None if seen.folder is None else str(seen.folder)


def _write(folder: Folder, made: dict[str, Any], values: Mapping[str, str], keys: list[Path]) -> None:
    from fedlab.deployment import compose

    user, group = os.getuid(), os.getgid()
    if user == 0:  # containers never run as root, but must be able to read the keys
        user = group = compose.USER_ID
        for key in keys:
            os.chown(key, user, group)
    given = {**values, "FEDLAB_UID": str(user), "FEDLAB_GID": str(group)}
    write_atomic(folder.path / ".env", "".join(f"{key}={value}\n" for key, value in given.items()))
    compose.write(made, folder.compose)


def _compose(folder: Folder, *arguments: str) -> str:
    """One call of docker compose for a project.

    Raises:
        DeploymentError: it failed.
    """
    command = ["docker", "compose", "--project-directory", str(folder.path), "--file", str(folder.compose)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise DeploymentError(f"docker compose {arguments[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
