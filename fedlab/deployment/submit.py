"""Submits a configuration to a running SuperLink and waits for the end of the run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from fedlab.config import Config
from fedlab.deployment.flower import Connection, Status, Tell, call
from fedlab.deployment.flower import DeploymentError as DeploymentError
from fedlab.deployment.prepared import prepared
from fedlab.protocol.runconfig import Submission, pack
from fedlab.storage.temporary import temporary_folder

THIN_APP = Path(__file__).with_name("app")
"""All of the app that is sent to a SuperLink: a folder with a pyproject.toml."""


def submit(
    config: Config,
    superlink: str,
    *,
    clients: int = 0,
    simulate_partition: bool = False,
    token: str = "",
    resume: str = "",
    home: Path | None = None,
) -> int:
    """Submit a run and return Flower's id of it.

    Args:
        config: the run's configuration; the engine section says how each machine computes, not where.
        superlink: a connection of ``config.toml`` in Flower's folder.
        clients: nodes to wait for; 0 is every client of the partition.
        simulate_partition: every node loads the configured source and takes its own part of it.
        token: what tells the run from all others; default: a new one.
        resume: name of the run folder on the server whose run goes on; its token must be given too.
        home: Flower's folder; default: the user's own.

    Raises:
        ConfigError, ConfigErrors: the configuration is wrong, or divides a source that no node has; nothing was sent.
        DeploymentError: there is no such connection, or the SuperLink cannot be reached.
    """
    sent = prepared(config, simulate_partition=simulate_partition)
    submission = Submission(sent, clients, simulate_partition, token or uuid4().hex, resume)
    # JSON's strings and numbers are TOML's too as long as they are plain ASCII
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in pack(submission).items()]
    with temporary_folder("submit") as folder:
        app, settings = folder / "fedlab", folder / "run.toml"
        shutil.copytree(THIN_APP, app)  # Flower may write into the folder
        settings.write_text("".join(lines), encoding="utf-8")
        answer = call("run", str(app), superlink, "--run-config", str(settings), home=home)
    return int(answer["run-id"])


def status(run: int, superlink: str) -> Status:
    """How a run stands.

    Raises:
        DeploymentError: the SuperLink cannot be reached or does not know the run.
    """
    return Connection(superlink).status(run)


def wait(
    run: int,
    superlink: str,
    on_change: Callable[[Status], None] = lambda status: None,
    tell: Tell = lambda sentence: None,
) -> None:
    """Wait for the end of a run.

    Args:
        run: Flower's id of the run.
        superlink: as in `submit`.
        on_change: called with every new status.
        tell: is told when the SuperLink has stopped answering, and when it answers again.

    Raises:
        DeploymentError: it failed or was stopped, or the SuperLink has not answered for ten minutes.
    """
    Connection(superlink).wait(run, on_change, tell)
