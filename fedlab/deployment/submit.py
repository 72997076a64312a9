"""Runs on real machines: submit a configuration to a running SuperLink and wait for its end.

Flower's command line is its supported way in: ``flwr run`` submits, ``flwr ls`` says how a run stands.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from fedlab.config import Config
from fedlab.deployment.prepared import prepared
from fedlab.errors import FedLabError
from fedlab.protocol.runconfig import Submission, pack

THIN_APP = Path(__file__).with_name("app")
"""All of the app that is sent to a SuperLink: a folder with a pyproject.toml."""

_POLL = 2.0  # seconds between two looks at a run; Flower's own processes look every 3 s
_PATIENCE = 5  # looks in a row that may fail
_CALL_TIMEOUT = 120.0  # seconds for one call of Flower's command line


class DeploymentError(FedLabError):
    """A submitted run failed, was stopped, or the SuperLink refused it."""


@dataclass(frozen=True)
class Status:
    """How a submitted run stands.

    Args:
        status: ``pending``, ``starting``, ``running`` or ``finished:`` and ``completed``, ``failed`` or ``stopped``.
        details: what Flower says of it, for a failed run the ServerApp's error.
    """

    status: str
    details: str

    @property
    def finished(self) -> bool:
        """Whether the run is over."""
        return self.status.startswith("finished")

    @property
    def completed(self) -> bool:
        """Whether it went well."""
        return self.status == "finished:completed"


def submit(
    config: Config,
    superlink: str,
    *,
    clients: int = 0,
    simulate_partition: bool = False,
    token: str = "",
    resume: str = "",
) -> int:
    """Submit a run and return Flower's id of it.

    Args:
        config: the run's configuration; the engine section says how each machine computes, not where.
        superlink: a connection of ``$FLWR_HOME/config.toml``.
        clients: nodes to wait for; 0 is every client of the partition.
        simulate_partition: whether every node loads the configured data and takes its part of it, for demonstrations.
        token: what tells the run from all others; default: a new one.
        resume: name of the run folder on the server whose run goes on; its token must be given too.

    Raises:
        ConfigError, ConfigErrors: the configuration is wrong, or divides a source that no node has; nothing was sent.
        DeploymentError: there is no such connection, or the SuperLink cannot be reached.
    """
    sent = prepared(config, simulate_partition=simulate_partition)
    submission = Submission(sent, clients, simulate_partition, token or uuid4().hex, resume)
    # JSON's strings and numbers are TOML's too as long as they are plain ASCII
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in pack(submission).items()]
    with tempfile.TemporaryDirectory(prefix="fedlab-submit-") as folder:
        app, settings = Path(folder) / "fedlab", Path(folder) / "run.toml"
        shutil.copytree(THIN_APP, app)  # Flower may write into the folder
        settings.write_text("".join(lines), encoding="utf-8")
        answer = _flwr("run", str(app), superlink, "--run-config", str(settings))
    return int(answer["run-id"])


def status(run: int, superlink: str) -> Status:
    """How a run stands.

    Raises:
        DeploymentError: the SuperLink cannot be reached or does not know the run.
    """
    found = _flwr("ls", superlink, "--run-id", str(run))["runs"][0]
    return Status(found["status"], found["status-details"])


def wait(run: int, superlink: str, on_change: Callable[[Status], None] = lambda status: None) -> None:
    """Wait for the end of a run. Flower's own exit codes do not tell a failed run from a good one.

    Args:
        run: Flower's id of the run.
        superlink: as in `submit`.
        on_change: called with every new status.

    Raises:
        DeploymentError: it failed or was stopped.
    """
    last, missed = Status("unknown", ""), 0
    while not last.finished:
        try:
            now, missed = status(run, superlink), 0
        except DeploymentError:  # a run of days must not be given up for a network that is away for seconds
            missed += 1
            if missed > _PATIENCE:
                raise
            now = last
        if now != last:
            on_change(now)
        last = now
        if not last.finished:
            time.sleep(_POLL)
    if not last.completed:
        raise DeploymentError(f"run {run} ended as {last.status}\n{last.details}".rstrip())


def _flwr(*arguments: str) -> dict[str, Any]:
    """One call of Flower's command line, its JSON read."""
    command = [sys.executable, "-m", "flwr.cli.app", *arguments, "--format", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_CALL_TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise DeploymentError(f"flwr {arguments[0]}: no answer within {_CALL_TIMEOUT:g} s") from error
    start = done.stdout.find("{")
    try:
        answer: dict[str, Any] = json.loads(done.stdout[start:])
    except ValueError:
        answer = {}
    if not answer.get("success"):
        said = answer.get("error-message") or done.stderr.strip() or done.stdout.strip()
        raise DeploymentError(f"flwr {arguments[0]}: {said}")
    return answer
