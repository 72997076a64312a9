"""A Ray cluster on several machines, started and stopped over ssh.

FedLab does this itself and leaves Ray's own cluster launcher aside. The launcher copies a private ssh key to the first
machine, from which it starts the others in the background, and so cannot say which of them failed.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fedlab.engine.members import difference, versions
from fedlab.errors import FedLabError, MachineError

_TIMEOUT = 300.0  # seconds for one command on one machine; importing torch from a network disk takes long


class HostError(FedLabError):
    """A command on a machine of the cluster failed."""


@dataclass(frozen=True)
class Hosts:
    """Machines that ssh reaches without a password.

    Args:
        names: ``HOST`` or ``USER@HOST``; the first one becomes the head of the cluster.
        python: the Python on them in whose environment FedLab is installed.
    """

    names: Sequence[str]
    python: str = sys.executable

    def up(self, port: int = 6379, cpus: int | None = None) -> str:
        """Start a cluster.

        Nothing is started before all machines have been found to be suitable, and nothing stays if one of them fails.

        Args:
            port: port of the head that the others join.
            cpus: CPUs that each machine brings; None brings all that it has.

        Returns:
            The cluster's address, ``HOST:PORT``.

        Raises:
            MachineError: a machine cannot be reached, has other versions of the software, or runs Ray already.
            HostError: Ray does not start on a machine.
        """
        head, *others = self.names
        about = self._all([*self.names], "about")
        here = versions()
        for name, answer in zip(self.names, about, strict=True):
            found = _read(name, answer)
            if problem := difference(here, found["versions"]):
                raise MachineError(
                    name, problem, "the versions of this machine, because others give other results", "install them"
                )
            if found["nodes"]:
                fix = f"stop it with `fedlab cluster down {name}`"
                raise MachineError(name, "Ray runs on it", "a machine on which Ray does not run yet", fix)
        address = f"{_read(head, about[0])['address']}:{port}"
        brings = [] if cpus is None else ["--num-cpus", str(cpus)]
        try:
            _succeeded(head, self._on(head, "start", "--head", "--port", str(port), *brings))
            for name, done in zip(others, self._all(others, "start", "--address", address, *brings), strict=True):
                _succeeded(name, done)
        except BaseException:
            self._all(self.names, "stop")
            raise
        return address

    def down(self) -> None:
        """End all of Ray that the user has started on the machines.

        Raises:
            HostError: a machine cannot be reached or Ray does not stop there; the others are stopped all the same.
        """
        failed = []
        for name, done in zip(self.names, self._all(self.names, "stop"), strict=True):
            if done.returncode:
                failed.append(f"{name}: {_said(done)}")
        if failed:
            raise HostError("Ray was not stopped on\n" + "\n".join(failed))

    def _all(self, names: Sequence[str], *arguments: str) -> list[subprocess.CompletedProcess[str]]:
        with ThreadPoolExecutor(max_workers=max(1, len(names))) as pool:
            return list(pool.map(lambda name: self._on(name, *arguments), names))

    def _on(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `fedlab.engine.host` on a machine. A machine that is too slow counts as one that failed."""
        command = shlex.join([self.python, "-m", "fedlab.engine.host", *arguments])
        # without BatchMode, ssh would ask for a password in the middle of the output of several machines
        ssh = ["ssh", "-n", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20", name, command]
        try:
            return subprocess.run(ssh, capture_output=True, text=True, check=False, timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(ssh, 1, "", f"no answer within {_TIMEOUT:g} s")
        except FileNotFoundError as error:
            raise MachineError(
                "ssh", "not found", "the program ssh on this machine", "install an ssh client"
            ) from error


def _read(name: str, done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The answer to ``about``. A login shell may print something before it."""
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise MachineError(
            name,
            _said(done),
            "a machine that ssh reaches without a password, with FedLab in the environment of --python",
            f"try `{shlex.join(done.args)}`",
        ) from None
    return found


def _succeeded(name: str, done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        raise HostError(f"Ray does not start on {name}; nothing was left running\n{_said(done)}")


def _said(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}")[-1000:]
