"""Calls of Flower's command line, which is its supported way in.

Flower's own exit codes do not tell a failed run from a good one; ``flwr ls`` does.
"""

from __future__ import annotations

import json
import os
import re
import select
import ssl
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlab.errors import FedLabError

_POLL = 2.0  # seconds between two looks at a run; Flower's own processes look every 3 s
_PATIENCE = 5  # looks in a row that a SuperLink which answers may refuse
_QUIET = 5.0  # seconds without a line of a log after which it is asked whether the SuperLink still answers
_ANSWER = 10.0  # seconds within which it must answer
_GIVEN_UP = 600.0  # seconds without an answer after which nobody waits for it any more
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


Tell = Callable[[str], None]
"""Receives a sentence for the user."""


def _untold(sentence: str) -> None:
    pass


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

    def wait(self, run: int, on_change: Callable[[Status], None] = lambda status: None, tell: Tell = _untold) -> None:
        """Wait for the end of a run.

        Args:
            run: Flower's id of the run.
            on_change: called with every new status.
            tell: see `patient_status`.

        Raises:
            DeploymentError: it failed or was stopped, or the SuperLink has not answered for ten minutes.
        """
        last = Status("unknown", "")
        while not last.finished:
            now = self.patient_status(run, tell)
            if now != last:
                on_change(now)
            last = now
            if not last.finished:
                time.sleep(_POLL)
        last.refuse_failure(run)

    def patient_status(self, run: int, tell: Tell = _untold) -> Status:
        """How a run stands. A run of days must not be given up for a network or a SuperLink that is away for minutes.

        Args:
            run: Flower's id of the run.
            tell: is told when the SuperLink has stopped answering, and when it answers again.

        Raises:
            DeploymentError: the SuperLink has not answered for ten minutes, or does not know the run.
        """
        for _ in range(_PATIENCE):
            self._await_answer(tell)
            try:
                return self.status(run)
            except DeploymentError:
                time.sleep(_POLL)
        return self.status(run)

    def answers(self) -> bool:
        """Whether the SuperLink answers now; True if Flower's ``config.toml`` does not say where it is."""
        home = self.home or Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")
        try:
            found = tomllib.loads((home / "config.toml").read_text(encoding="utf-8"))["superlink"][self.name]
            address, authority = str(found["address"]), found.get("root-certificates")
        except (OSError, ValueError, KeyError, TypeError):
            return True
        return is_up(address, authority, secure=not found.get("insecure", False))

    def _await_answer(self, tell: Tell) -> None:
        """Wait until the SuperLink answers.

        Raises:
            DeploymentError: it has not answered for ten minutes.
        """
        began = None
        while not self.answers():
            if began is None:
                began = time.monotonic()
                tell(f"the SuperLink does not answer; it is waited for, for {_GIVEN_UP / 60:g} minutes")
            elif time.monotonic() - began > _GIVEN_UP:
                raise DeploymentError(f"the SuperLink has not answered for {_GIVEN_UP / 60:g} minutes")
            time.sleep(_POLL)
        if began is not None:
            tell("the SuperLink answers again")

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
        """The lines that a run's server prints, from its start.

        The lines end when the run or the connection ends, and when the SuperLink has stopped answering.
        """
        process = subprocess.Popen(
            _command("log", str(run), self.name, "--stream"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            env=_environment(self.home),
            start_new_session=True,  # Ctrl-C is for the command that reads it
        )
        assert process.stdout is not None
        try:
            yield self._lines(process.stdout.fileno())
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    def _lines(self, pipe: int) -> Iterator[str]:
        """The lines that come through a pipe. Flower waits for the next one without a limit, so the wait is here."""
        rest = b""
        while True:
            if not select.select([pipe], [], [], _QUIET)[0]:
                if self.answers():
                    continue
                break
            chunk = os.read(pipe, 1 << 16)
            if not chunk:
                break
            *lines, rest = (rest + chunk).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)
        if rest:
            yield rest.decode(errors="replace")


def is_up(address: str, authority: Path | str | None, *, secure: bool = True) -> bool:
    """Whether a SuperLink, or the gateway in front of it, answers.

    Args:
        address: ``HOST:PORT``.
        authority: certificate of the authority by which the server's is signed; None trusts those of this system.
        secure: whether the connection is encrypted.
    """
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    try:
        if secure:
            trusted = ssl.create_default_context(cafile=None if authority is None else str(authority))
            handlers.append(urllib.request.HTTPSHandler(context=trusted))
        url = f"{'https' if secure else 'http'}://{address}/health"
        with urllib.request.build_opener(*handlers).open(url, timeout=_ANSWER):
            return True
    except (OSError, urllib.error.URLError):
        return False


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
