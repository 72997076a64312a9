"""Calls of Flower's command line, which is its supported way in.

Flower's own exit codes do not tell a failed run from a good one; ``flwr ls`` does.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlab.errors import FedLabError

_POLL = 2.0  # seconds between two looks at a run; Flower's own processes look every 3 s
_PATIENCE = 5  # looks in a row that may fail
LOOKS = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5"}
"""Variable of Flower's SuperExecs: seconds between two looks for a message. A look takes 12 ms of processor time."""

_CALL_TIMEOUT = 30.0  # seconds for one call of Flower's command line, which starts Python and asks once
_SEND_TIMEOUT = 120.0  # seconds for a call that sends an app, or waits for the SuperLink's work


class DeploymentError(FedLabError):
    """A submitted run failed or was stopped, the SuperLink refused a request, or it cannot be reached."""


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

    def refuse_failure(self, run: int) -> None:
        """Raise the error of a run that did not go well.

        Raises:
            DeploymentError: it failed or was stopped.
        """
        if not self.completed:
            raise DeploymentError(f"run {run} ended as {self.status}\n{self.details}".rstrip())


@dataclass(frozen=True)
class Connection:
    """A way to a SuperLink.

    Args:
        name: connection in ``config.toml`` of Flower's folder.
        home: Flower's folder; None is the user's own.
    """

    name: str
    home: Path | None = None

    def ask(self, *words: str, arguments: tuple[str, ...] = ()) -> dict[str, Any]:
        """Call a command of Flower's and return its JSON.

        Args:
            words: the command and its arguments before the connection's name.
            arguments: options and arguments after it.

        Raises:
            DeploymentError: Flower refused it, or the SuperLink did not answer.
        """
        return call(*words, self.name, *arguments, home=self.home)

    def status(self, run: int) -> Status:
        """How a run stands.

        Raises:
            DeploymentError: the SuperLink cannot be reached or does not know the run.
        """
        found = self.ask("ls", arguments=("--run-id", str(run)))["runs"][0]
        return Status(found["status"], found["status-details"])

    def wait(self, run: int, on_change: Callable[[Status], None] = lambda status: None) -> None:
        """Wait for the end of a run.

        Args:
            run: Flower's id of the run.
            on_change: called with every new status.

        Raises:
            DeploymentError: it failed or was stopped.
        """
        last = Status("unknown", "")
        while not last.finished:
            now = self.patient_status(run)
            if now != last:
                on_change(now)
            last = now
            if not last.finished:
                time.sleep(_POLL)
        last.refuse_failure(run)

    def patient_status(
        self, run: int, patience: int = _PATIENCE, tell: Callable[[str], None] = lambda told: None
    ) -> Status:
        """How a run stands. A run of days must not be given up for a network or a SuperLink that is away for seconds.

        Args:
            run: Flower's id of the run.
            patience: looks in a row that may fail before the last one, two seconds apart.
            tell: called with a sentence after the first look that fails.

        Raises:
            DeploymentError: the SuperLink cannot be reached, or does not know the run.
        """
        for look in range(patience):
            try:
                return self.status(run)
            except DeploymentError as error:
                if not look:
                    tell(f"the SuperLink does not answer, and is asked {patience} times more: {error}")
                time.sleep(_POLL)
        return self.status(run)

    def runs(self) -> list[dict[str, Any]]:
        """All runs that the SuperLink knows, as ``flwr ls`` tells of them."""
        return list(self.ask("ls")["runs"])

    def stop(self, run: int) -> None:
        """Stop a run.

        Raises:
            DeploymentError: it is over already, or the SuperLink does not know it.
        """
        self.ask("stop", str(run))

    def nodes(self) -> dict[str, dict[str, Any]]:
        """All registered nodes by Flower's id of them, as ``flwr supernode list`` tells of them."""
        return {node["node-id"]: node for node in self.ask("supernode", "list")["nodes"]}

    def register(self, public_key: Path, name: str) -> str:
        """Register a node by its key and return Flower's id of it.

        Raises:
            DeploymentError: the key is registered already.
        """
        return str(self.ask("supernode", "register", str(public_key), arguments=("--name", name))["node-id"])

    def unregister(self, node: str) -> None:
        """Forget a node; it cannot connect any more."""
        self.ask("supernode", "unregister", node)

    @contextmanager
    def log(self, run: int) -> Iterator[Iterator[str]]:
        """The lines that a run's server prints, from its start; the lines end when the run or the connection ends."""
        process = subprocess.Popen(
            _command("log", str(run), self.name, "--stream"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=_environment(self.home),
            start_new_session=True,  # Ctrl-C is for the command that reads it
        )
        assert process.stdout is not None
        try:
            yield iter(process.stdout)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def call(*arguments: str, home: Path | None = None) -> dict[str, Any]:
    """One call of Flower's command line, its JSON read.

    Raises:
        DeploymentError: Flower refused it, or the SuperLink did not answer.
    """
    told = " ".join(word for word in arguments[:2] if word.isalpha()) or arguments[0]
    command = _command(*arguments, "--format", "json")
    patience = _CALL_TIMEOUT if arguments[0] == "ls" else _SEND_TIMEOUT
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=patience, check=False, env=_environment(home)
        )
    except subprocess.TimeoutExpired as error:
        raise DeploymentError(f"flwr {told}: no answer within {patience:g} s") from error
    start = done.stdout.find("{")
    try:
        answer: dict[str, Any] = json.loads(done.stdout[start:])
    except ValueError:
        answer = {}
    if not answer.get("success"):
        said = answer.get("error-message") or done.stderr.strip() or done.stdout.strip()
        raise DeploymentError(f"flwr {told}: {said}{_advice(said)}")
    return answer


_TLS = re.compile(r"certificate|\bssl|\btls|handshake|plaintext|wrong.version", re.IGNORECASE)


def _advice(said: str) -> str:
    """What to do where an encrypted connection could not be made, which Flower's own words hide."""
    if not _TLS.search(said):
        return ""
    return (
        "\n  to do:    this is a mistake in the encryption (TLS): the connection in Flower's config.toml needs "
        "root-certificates = the ca.crt of this SuperLink; its certificate must name the host and not have expired; "
        "insecure = true is for a SuperLink that was started with --insecure only"
    )


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "flwr.cli.app", *arguments]


def _environment(home: Path | None) -> Mapping[str, str]:
    # lines of a log must come one by one, and not when a buffer is full
    return {**os.environ, "PYTHONUNBUFFERED": "1", **({} if home is None else {"FLWR_HOME": str(home)})}
