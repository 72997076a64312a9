"""Keeps the programs of a project running, until it is told to end.

`start` leaves a process behind that starts every program, and starts it again when it ends, after a pause that grows
from one second to fifteen. A SuperNode needs this: after it was killed, it is refused until the SuperLink has noticed
that its predecessor is gone, which takes up to a minute.

SIGTERM ends all programs and the supervisor. SIGHUP makes it look for programs that were added to the project.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from fedlab.clients.resident.programs import install
from fedlab.deployment import processes
from fedlab.deployment.private import private_folder
from fedlab.deployment.processes import PROGRAM, Program
from fedlab.deployment.project import Folder
from fedlab.errors import MachineError
from fedlab.storage.logs import put_aside
from fedlab.storage.runfolder import write_atomic

_LOOK = 0.2  # seconds between two looks at the programs
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 15.0  # seconds before a program is started again
_SETTLED = 60.0  # a program that ran for so many seconds is started again at once
_LONGEST_LOG = 16 * 2**20  # bytes of a log before a new one is begun; the one before is kept


@dataclass
class Standing:
    """How a program stands.

    Args:
        pid: process id; None between two starts.
        since: when it was started or ended, in seconds since the epoch.
        starts: how often it was started.
        ended: how it ended the last time; empty if it never did.
        log: file with its output.
    """

    pid: int | None
    since: float
    starts: int
    ended: str
    log: str


def start(folder: Folder) -> None:
    """Start a supervisor for a project, or tell the one that is running to look for new programs.

    Raises:
        MachineError: the supervisor could not be started.
    """
    processes.check_machine()
    private_folder(folder.state)
    install(folder.programs)
    if (pid := running(folder)) is not None:
        os.kill(pid, signal.SIGHUP)
        return
    processes.end_all(folder)  # what a supervisor that was killed has left behind
    log = _log_of(folder, "supervisor")
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder.path)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=folder.path,
            env=processes.environment(folder),
            start_new_session=True,
        )
    while running(folder) is None:
        if process.poll() is not None:
            said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise MachineError("supervisor", f"exit code {process.returncode}", "a running supervisor", said.strip())
        time.sleep(0.05)


def stop(folder: Folder) -> int:
    """End all processes of a project and return how many there were."""
    found = len(processes.marked(folder))
    if (pid := running(folder)) is not None:
        os.kill(pid, signal.SIGTERM)
        while running(folder) is not None:
            time.sleep(0.05)
    processes.end_all(folder)
    _standings_file(folder).unlink(missing_ok=True)
    return found


def running(folder: Folder) -> int | None:
    """Process id of the supervisor; None if there is none."""
    try:
        with _lock_file(folder).open("r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                text = lock.read()
                return int(text) if text else None
            return None
    except FileNotFoundError:  # no supervisor has ever been started here
        return None


def standings(folder: Folder) -> dict[str, Standing]:
    """How all programs stand; empty if no supervisor is running."""
    if running(folder) is None:
        return {}
    try:
        raw = json.loads(_standings_file(folder).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return {name: Standing(**facts) for name, facts in raw.items()}


def supervise(folder: Folder) -> None:
    """Run the programs of a project until SIGTERM."""
    asked: set[int] = set()

    def note(signum: int, frame: FrameType | None) -> None:
        asked.add(signum)

    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, note)
    with _locked(folder):
        kept = [_Kept(folder, program) for program in processes.programs(folder)]
        shown = ""
        while signal.SIGTERM not in asked:
            if signal.SIGHUP in asked:
                asked.discard(signal.SIGHUP)
                known = {one.program.name for one in kept}
                kept += [_Kept(folder, new) for new in processes.programs(folder) if new.name not in known]
            for one in kept:
                one.look()
            now = json.dumps({one.program.name: asdict(one.standing) for one in kept}, indent=1)
            if now != shown:
                write_atomic(_standings_file(folder), now, durable=False)
                shown = now
            time.sleep(_LOOK)
        for one in reversed(kept):  # nodes first: they say goodbye to the SuperLink
            one.end()
        processes.end_all(folder)


class _Kept:
    """A program that is kept running."""

    def __init__(self, folder: Folder, program: Program) -> None:
        self.program = program
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._pause, self._due = _FIRST_PAUSE, 0.0
        self.standing = Standing(None, time.time(), 0, "", str(_log_of(folder, program.name)))

    def look(self) -> None:
        """Start the program if it is due, and note if it has ended."""
        if self._process is None:
            if time.monotonic() >= self._due:
                self._start()
            return
        code = self._process.poll()
        if code is None:
            return
        ran = time.time() - self.standing.since
        self._pause = _FIRST_PAUSE if ran >= _SETTLED else self._pause
        self._process, self._due = None, time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        ended = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        self.standing = Standing(None, time.time(), self.standing.starts, ended, self.standing.log)

    def end(self) -> None:
        """Ask the program to end, and wait for it no longer than `processes.end_all` does."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=5.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _start(self) -> None:
        if self.program.alone:
            processes.end_all(self._folder, self.program.name, grace=1.0)
        log = Path(self.standing.log)
        put_aside(log, _LONGEST_LOG)
        command = [word.replace("{port}", str(processes.free_port())) for word in self.program.command]
        variables = {**processes.environment(self._folder), **self.program.environment, PROGRAM: self.program.name}
        Path(variables.get("FLWR_HOME", self._folder.state)).mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self._folder.path,
                env=variables,
                start_new_session=True,
            )
        now = self.standing
        self.standing = Standing(self._process.pid, time.time(), now.starts + 1, now.ended, now.log)


def _log_of(folder: Folder, name: str) -> Path:
    logs = folder.state / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    return logs / f"{name}.log"


def _lock_file(folder: Folder) -> Path:
    return folder.state / "supervisor.lock"


def _standings_file(folder: Folder) -> Path:
    return folder.state / "processes.json"


@contextmanager
def _locked(folder: Folder) -> Iterator[IO[str]]:
    """Hold the lock by which others see that a supervisor is running. It goes with the process, however that ends."""
    with _lock_file(folder).open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        yield lock


if __name__ == "__main__":
    supervise(Folder(Path(sys.argv[1])))
