"""Processes that make runs side by side, and how many of them a machine has room for."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple

from fedlab.config import Config
from fedlab.engine.cgroup import free_memory
from fedlab.engine.machine import cores
from fedlab.engine.placement import check_engine
from fedlab.engine.resident import peak_bytes
from fedlab.studies.plan import Key

COMMAND = (sys.executable, "-P", "-m", "fedlab.studies.worker")  # -P: the current folder must not hide a library
_START_SECONDS = 10.0  # in which a process imports PyTorch and Flower, generously


class Told(NamedTuple):
    """What a worker says of the run it makes.

    Args:
        key: the run.
        kind: ``announce`` for a line to be shown; ``done`` or ``failed`` when the run is over.
        text: the line, the run folder, or why the run failed.
    """

    key: Key
    kind: Literal["announce", "done", "failed"]
    text: str


class Workers:
    """A context in which runs are made by processes of their own. At its end, runs that are not over are interrupted.

    An interrupted run records its end and can be resumed. A second Ctrl-C does not wait for that.

    Args:
        count: the largest number of processes; each is started when it is first needed.
        logs: folder for what the runs print; the file of a process that printed nothing is removed.
        command: the program and its arguments; see `fedlab.studies.worker` for what it is told and answers.
    """

    def __init__(self, count: int, logs: Path, command: Sequence[str] = COMMAND) -> None:
        self._count, self._logs, self._command = count, logs, command
        self._workers: list[_Worker] = []
        self._started = 0
        self._heard: queue.SimpleQueue[tuple[_Worker, str | None]] = queue.SimpleQueue()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for worker in self._workers:
                worker.end()
            for worker in self._workers:
                worker.wait()
        except BaseException:
            for worker in self._workers:
                worker.kill()
            raise

    @property
    def free(self) -> int:
        """How many more runs can be started now."""
        return self._count - sum(worker.key is not None for worker in self._workers)

    def start(self, key: Key, config: Config, command: str | None) -> None:
        """Start a run, or go on with it, in a process that is free.

        Args:
            key: the run, as `next` names it.
            config: its complete configuration.
            command: how to repeat it.
        """
        worker = next((worker for worker in self._workers if worker.key is None), None)
        if worker is None:
            self._started += 1
            worker = _Worker(self._command, self._logs / f"worker-{self._started}.log", self._heard)
            self._workers.append(worker)
        worker.start(key, {"config": config.model_dump(mode="json"), "command": command})

    def next(self) -> Told:
        """Wait for what any of the runs has to say."""
        while True:
            worker, line = self._heard.get()
            key = worker.key
            if line is None:
                self._workers.remove(worker)
                status = worker.wait()
                if key is not None:
                    return Told(key, "failed", f"its process {_ended(status)}{worker.see_log()}")
                continue
            if key is None:
                continue
            found = json.loads(line)
            if found["kind"] == "announce":
                return Told(key, "announce", str(found["text"]))
            worker.key = None
            done = found["kind"] == "done"
            return Told(key, "done" if done else "failed", f"{found['text']}{'' if done else worker.see_log()}")


class _Worker:
    """One process.

    Args:
        command: the program and its arguments.
        log: file for what its runs print.
        heard: receives each line of its answers, and None when they end.
    """

    def __init__(self, command: Sequence[str], log: Path, heard: queue.SimpleQueue[tuple[_Worker, str | None]]) -> None:
        self.key: Key | None = None
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as printed:
            # a session of its own: Ctrl-C comes to this process alone, which ends the others in an orderly way
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
                text=True,
                encoding="utf-8",
                start_new_session=True,
            )
        self._listener = threading.Thread(target=self._listen, args=(heard,), daemon=True)
        self._listener.start()

    def _listen(self, heard: queue.SimpleQueue[tuple[_Worker, str | None]]) -> None:
        for line in self._process.stdout or ():
            heard.put((self, line))
        heard.put((self, None))

    def start(self, key: Key, request: dict[str, object]) -> None:
        self.key = key
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it has ended: `_listen` tells
            pass

    def end(self) -> None:
        """Ask it to end: at once if it is idle, else after it has recorded that its run was interrupted."""
        if self.key is not None:
            self._process.send_signal(signal.SIGTERM)
        elif self._process.stdin is not None:
            self._process.stdin.close()

    def wait(self) -> int:
        """Wait for its end, and return its exit status."""
        status = self._process.wait()
        self._listener.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        if self._log.is_file() and not self._log.stat().st_size:
            self._log.unlink()
        return status

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def see_log(self) -> str:
        """Where to read on, if anything was printed."""
        return f"\nwhat it printed: {self._log}" if self._log.is_file() and self._log.stat().st_size else ""


def jobs_that_fit(configs: Sequence[Config], seconds: float) -> int:
    """How many of these runs to make at the same time on this machine, at least 1.

    Runs of the inline engine on the CPU share the cores, ``engine.threads`` for each, and the memory, in which each is
    taken to need as much as this process has needed so far. All other runs use the whole machine by themselves. Where
    the processes would hardly have started before everything is done here, the answer is 1 as well.

    Args:
        configs: the runs that are ahead.
        seconds: how long one of them took in this process.
    """
    alone = any(c.engine.name != "inline" or check_engine(c.engine).device != "cpu" for c in configs)
    if alone or not configs:
        return 1
    free = free_memory()
    room = len(configs) if free is None else free // peak_bytes()
    jobs = max(1, min(cores() // max(config.engine.threads for config in configs), room, len(configs)))
    saved = seconds * len(configs) * (1 - 1 / jobs)
    return jobs if saved > _START_SECONDS else 1


def _ended(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    name = signal.Signals(-status).name
    return f"was ended by {name}" + (", perhaps because memory ran out" if name == "SIGKILL" else "")
