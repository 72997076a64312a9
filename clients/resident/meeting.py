"""Where the processes of single messages meet their node's worker, and who starts it.

A worker listens on a socket in a folder of its node that only this user can enter. The socket's name stands for all
that a worker depends on: the run, the configurations of run and node, the node's file, the installed code, and the
SuperExec that starts the processes of messages. If any of these changes, no worker listens on the new name, and one is
started. Whoever looks for a worker, starts one or lets one go holds the folder's lock.

This module imports no torch, because a process that lives for one message imports it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import socket as Connection  # `Meeting.socket` would hide the module in annotations
from typing import IO

from flwr.app import Context

from fedlab.errors import ConfigError, ConfigErrors
from fedlab.storage.logs import put_aside

log = logging.getLogger(__name__)

PATIENCE = "FEDLAB_RESIDENT"
KEPT = "FEDLAB_RESIDENT_RUNS"
NODE_FILE = "node-file"

_PATIENCE = 900.0  # seconds
_LONGEST_PATH = 103  # bytes that the path of a socket may have on every system
_LONGEST_LOG = 8 * 2**20  # bytes after which a log is put aside
_TOLD = 3000  # characters of the log that an error quotes
_QUEUE = 16  # messages that may wait for a worker
_PACKAGES = ("fedlab", "fedlab.clients", "fedlab.server", "fedlab.methods")


def patience() -> float:
    """Seconds that a worker waits for the next message before it ends (``FEDLAB_RESIDENT``); 0 asks for no worker.

    Raises:
        ConfigError: the variable holds no such number.
    """
    return _number(PATIENCE, _PATIENCE, "seconds that a worker waits for the next message, 0 for no worker")


@dataclass(frozen=True)
class Meeting:
    """Where one node's messages of one run meet their worker.

    Args:
        folder: the node's folder, of mode 700.
        name: of the worker's socket, without the ending.
        reference: ``module:name`` of the app that the worker loads.
    """

    folder: Path
    name: str
    reference: str

    @classmethod
    def of(cls, context: Context, reference: str) -> Meeting | None:
        """The meeting place of a context; None if this system has none, because it lacks such sockets or a folder."""
        folder = _private_folder(_hash(sorted(context.node_config.items()), context.node_id))
        if folder is None:
            return None
        file = context.node_config.get(NODE_FILE)
        return cls(
            folder,
            _hash(
                context.run_id,
                sorted(context.run_config.items()),
                sorted(context.node_config.items()),
                _age(Path(str(file))) if file else None,
                (sys.executable, importlib.metadata.version("flwr"), *_code_age()),
                os.getppid(),
                reference,
            ),
            reference,
        )

    @property
    def socket(self) -> Path:
        """The worker's socket. A worker whose socket is gone ends when it has no message to work on."""
        return self.folder / f"{self.name}.sock"

    @property
    def log(self) -> Path:
        """A link to the worker's log."""
        return self.folder / f"{self.name}.log"

    def connect(self, context: Context) -> Connection:
        """A connection to the worker, which is started if there is none.

        Workers of other runs are let go, except for as many as ``FEDLAB_RESIDENT_RUNS`` allows beside this one.
        """
        with self.locked():
            self._let_others_go()
            connection = _connected(self.socket) or self._start(context)
            os.utime(self.socket)  # the socket's time says which worker was used last
            return connection

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the node's folder."""
        import fcntl

        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def told(self) -> str:
        """The end of the worker's log."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            return f"its log cannot be read: {error}"
        return f"the end of its log, {self.log.resolve()}:\n{text[-_TOLD:].strip()}"

    def _start(self, context: Context) -> Connection:
        """Start a worker, and return a connection that waits for it.

        The socket listens before the worker exists. If the worker ends at once, the connection is closed.
        """
        self.socket.unlink(missing_ok=True)  # left by a worker that was killed
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, self._open_log(context) as log:
            listener.bind(str(self.socket))
            listener.listen(_QUEUE)
            arguments = {
                "listener": listener.fileno(),
                "folder": self.folder,
                "name": self.name,
                "reference": self.reference,
                "patience": patience(),
                "superexec": os.getppid(),
            }
            # -P, because the folder in which the node was started must not hide installed modules; -u, because what a
            # method prints must be in the log even if the worker is killed
            command = [sys.executable, "-P", "-u", "-m", "fedlab.clients.resident.worker"]
            subprocess.Popen(
                [*command, *(f"--{name}={value}" for name, value in arguments.items())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                start_new_session=True,  # it outlives the process of this message
            )
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.connect(str(self.socket))
            return connection

    def _open_log(self, context: Context) -> IO[bytes]:
        """The log in the node's folder for state, or beside the socket if nothing can be written there."""
        from fedlab.config.node import state_folder

        try:
            state = state_folder(context.node_config)
        except ConfigErrors:  # the node's file is wrong: the worker tells that
            state = self.folder
        refused = []
        for folder in (state, self.folder):
            path = folder / "worker.log"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                put_aside(path, _LONGEST_LOG)
                file = path.open("ab")
            except OSError as error:
                refused.append(f"the worker's log cannot be written to {folder}: {error.strerror or error}\n")
                continue
            file.write("".join(refused).encode())
            file.flush()  # before the worker writes to it
            self.log.unlink(missing_ok=True)
            self.log.symlink_to(path)
            return file
        raise OSError("".join(refused))

    def _let_others_go(self) -> None:
        kept = int(_number(KEPT, 1, "number of runs whose workers a node keeps, at least 1", least=1)) - 1
        others = [path for path in self.folder.glob("*.sock") if path != self.socket]
        for path in sorted(others, key=lambda path: path.lstat().st_mtime, reverse=True)[kept:]:
            path.unlink(missing_ok=True)
            path.with_suffix(".log").unlink(missing_ok=True)


def _connected(path: Path) -> Connection | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    return connection


def _private_folder(name: str) -> Path | None:
    """A folder of this name that belongs to this user and that nobody else can enter."""
    if not hasattr(socket, "AF_UNIX") or importlib.util.find_spec("fcntl") is None:
        return None
    bases = (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm")
    refused = []
    for base in dict.fromkeys(filter(None, bases)):
        mine = Path(base, f"fedlab-{os.getuid()}")
        folder = mine / name
        if len(os.fsencode(folder)) + len("/0123456789abcdef.sock") > _LONGEST_PATH:
            refused.append(f"the path {folder} is too long for a socket")
            continue
        try:
            for made in (mine, folder):
                made.mkdir(mode=0o700, exist_ok=True)
                found = made.lstat()
                if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
                    raise PermissionError(f"{made} can be entered by others")
            if os.access(folder, os.W_OK):
                return folder
            refused.append(f"{folder} cannot be written to")
        except OSError as error:
            refused.append(str(error))
    log.warning("no folder for the socket of a worker, so this process does the work itself: %s", "; ".join(refused))
    return None


def _code_age() -> Sequence[object]:
    """What changes if any of FedLab's files changes."""
    found: list[object] = []
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in spec.submodule_search_locations or () if spec is not None else ():
            paths = [os.path.join(path, name) for path, _, names in os.walk(folder) for name in names]
            files = [path for path in paths if path.endswith(".py")]
            found.append((folder, len(files), sum(os.stat(file).st_mtime_ns for file in files)))
    return found


def _age(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _hash(*values: object) -> str:
    return hashlib.blake2b(repr(values).encode(), digest_size=8).hexdigest()


def _number(variable: str, default: float, expected: str, least: float = 0.0) -> float:
    text = os.environ.get(variable)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not least <= number < float("inf"):
        raise ConfigError(variable, text, expected, "set this variable of the SuperNode's environment, or remove it")
    return number
