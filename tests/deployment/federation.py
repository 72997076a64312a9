"""A federation made by `fedlab deploy`: a folder, three sites with data of their own, TLS and keys of nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedlab.deployment import processes, supervisor
from fedlab.deployment.operate import connection
from fedlab.deployment.project import Folder

FEDLAB = [sys.executable, "-c", "from fedlab.cli.main import main; main()"]


@dataclass
class Federation:
    """The folder of a federation that is up, and its configuration.

    Args:
        folder: the folder.
        config: file of the configuration.
        variables: of the environment of all commands, and of the processes that they start.
    """

    folder: Folder
    config: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def fedlab(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Call ``fedlab deploy`` and wait for its end."""
        return subprocess.run(
            self._command(*words),
            cwd=self.config.parent,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def begin(self, *words: object) -> subprocess.Popen[str]:
        """Call ``fedlab deploy`` and do not wait."""
        return subprocess.Popen(
            self._command(*words),
            cwd=self.config.parent,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def connected(self) -> bool:
        """Whether all three sites are connected."""
        nodes = connection(self.folder).nodes().values()
        return sum(node["status"] == "online" for node in nodes) == 3

    def signal(self, program: str, number: int) -> None:
        """Send a signal to one of the programs that run here."""
        pid = supervisor.standings(self.folder)[program].pid
        assert pid is not None
        os.kill(pid, number)

    def kill(self, program: str) -> None:
        """End one of the programs that run here as a crash does."""
        self.signal(program, signal.SIGKILL)

    def _command(self, *words: object) -> list[str]:
        return [*FEDLAB, "deploy", *map(str, words), "--folder", str(self.folder.path)]

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self.variables, "COLUMNS": "120"}


@contextmanager
def started(root: Path, config: Mapping[str, Any], variables: Mapping[str, str] | None = None) -> Iterator[Federation]:
    """A federation that is up until this is left.

    Args:
        root: an empty folder for everything.
        config: of which the federation is made.
        variables: see `Federation`.
    """
    made = Federation(Folder(root / "deployment"), root / "sites.yaml", variables or {})
    made.config.write_text(json.dumps(config))
    words = ["init", str(made.config), str(made.folder.path), "--processes", "--port", str(two_free_ports())]
    done = subprocess.run([*FEDLAB, "deploy", *words], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    try:
        done = made.fedlab("up")
        assert done.returncode == 0, done.stderr
        yield made
    finally:
        ended = made.fedlab("down")
        left = processes.marked(made.folder)
        processes.end_all(made.folder)
    assert (ended.returncode, left) == (0, []), ended.stderr


def two_free_ports() -> int:
    """A port that is free, and so is the next."""
    while True:
        port = processes.free_port()
        if port < 65000 and not processes.is_taken(port + 1):
            return port
