"""Programs in processes of their own that need not import PyTorch, Flower and Ray anew, which costs seconds each.

`Forks` starts one Python process that imports what FedLab's commands import, and every program is run by a fork of it:
its own memory, working directory, environment, streams and exit status, as if it had been started afresh. What a fork
cannot show is whether a program imports what it uses; tests/architecture and tests/cli look at that in fresh processes.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

IMPORTED = (
    *("torch", "torch._dynamo", "torch.utils.tensorboard", "ray", "flwr.simulation", "sklearn.datasets"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "jinja2", "pandas"),
    *("fedlab.cli.main", "fedlab.experiment.start", "fedlab.report.page", "mlxtend.data"),
)


class Forks:
    """The process that is forked; it starts with the first program."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def run(
        self, command: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a Python program to its end, as ``subprocess.run([sys.executable, *command])`` would.

        Args:
            command: the program's file and its arguments.
            cwd: where it runs.
            env: its environment; None for this process's.
        """
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        words = [str(word) for word in command]
        with tempfile.TemporaryDirectory() as folder:
            out, err = (Path(folder) / name for name in ("out", "err"))
            request = {"words": words, "cwd": str(cwd), "env": dict(os.environ if env is None else env)}
            print(json.dumps({**request, "streams": [str(out), str(err)]}), file=self._server.stdin, flush=True)
            status = self._server.stdout.readline()
            assert status, "the process that is forked has ended"
            return subprocess.CompletedProcess(words, int(status), out.read_text(), err.read_text())

    def close(self) -> None:
        """End the process that is forked."""
        if self._server is not None:
            self._server.communicate()


def _serve() -> dict[str, Any] | None:
    """Answer requests with exit statuses until there are no more; returns in every fork, with its request."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # a fork's end would collect, and so copy, what only the imports hold
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        child = os.fork()
        if not child:
            return request
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()
    return None


def _become(words: Sequence[str], cwd: str, env: Mapping[str, str], streams: Sequence[str]) -> None:
    """Do what a fresh process would with this command."""
    for number, path in enumerate([os.devnull, *streams]):
        opened = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv[:] = words
    sys.path[0] = str(Path(words[0]).parent)
    runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    asked = _serve()
    if asked is not None:
        _become(**asked)
