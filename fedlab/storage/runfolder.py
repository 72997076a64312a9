"""The folder a run leaves behind: what lies where, and writing that a crash cannot tear."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

from fedlab.errors import CheckpointError, ConfigError, DiskFullError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def telling_full_disk(folder: Path) -> Iterator[None]:
    """Let a disk without room, or a used-up quota, be met as `DiskFullError` instead of an OSError.

    Args:
        folder: where the work inside writes to.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(folder) from error
        raise


def why_unwritable(folder: Path) -> str | None:
    """Why nothing can be written to a folder, which need not be there yet; None where something can."""
    try:
        place = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
        if not place.is_dir():
            return f"{place} is no folder"
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(4096))
    except OSError as error:
        return f"{place}: {error.strerror or error}"
    return None


def write_atomic(path: Path, data: str | bytes, *, durable: bool = True) -> None:
    """Write a file whole or not at all; folders above it are made.

    Readers see the old content or the new one, also after the process has been killed.

    Args:
        path: the file.
        data: its content.
        durable: wait until it is on the disk, so that a loss of power cannot take it back; costs milliseconds.

    Raises:
        DiskFullError: there is no room for it.
    """
    with telling_full_disk(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_atomic(path, data.encode() if isinstance(data, str) else data, durable)


def _write_atomic(path: Path, raw: bytes, durable: bool) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _locked(file: IO[str]) -> bool:
    """Lock the file for as long as it is open; True as well where the system has no such locks."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems have none
        return True
    return True


@dataclass(frozen=True)
class RunFolder:
    """Where the parts of one run are.

    Args:
        path: the folder.
    """

    path: Path

    @classmethod
    def create(cls, parent: Path, name: str | None, method: str, seed: int) -> RunFolder:
        """A new folder below `parent`: `name`, or method, seed and time; a run is never written over another.

        Raises:
            ConfigError: `name` is taken, or the folder cannot be made.
        """
        base = name or f"{method.rpartition(':')[2]}-seed{seed}-{datetime.now():%Y%m%d-%H%M%S}"
        for attempt in range(1, 1000):
            path = parent / (base if attempt == 1 else f"{base}-{attempt}")
            try:
                path.mkdir(parents=True)
            except FileExistsError as error:
                if name is not None:
                    raise ConfigError(
                        "tracking.name", name, f"a name not yet used in {parent}", "choose another, or remove that run"
                    ) from error
                continue
            except OSError as error:
                raise ConfigError(
                    "tracking.folder", str(parent), "a folder that can be written to", str(error)
                ) from error
            return cls(path)
        raise ConfigError(
            "tracking.folder",
            str(parent),
            "a folder without runs of the same method, seed and second",
            "set tracking.name",
        )

    @classmethod
    def check(cls, parent: Path, name: str | None, method: str, seed: int) -> None:
        """Try `create` and leave nothing behind.

        Raises:
            ConfigError: as `create` does.
        """
        missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        for folder in (cls.create(parent, name, method, seed).path, *missing):
            with suppress(OSError):  # another run may have begun in a folder that was missing
                folder.rmdir()

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run.

        Raises:
            CheckpointError: no run lies there.
        """
        folder = cls(path)
        if not folder.config.is_file():
            raise CheckpointError("run", str(path), "a run folder, which holds a config.yaml", "see the folder runs/")
        return folder

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other processes from writing to this run; a process that dies, however it does, leaves it free.

        Raises:
            CheckpointError: another process is at it.
        """
        with telling_full_disk(self.path):
            lock = (self.path / ".lock").open("a")
        with lock as file:
            if not _locked(file):
                expected = "a run that no other process is writing to"
                raise CheckpointError("run", str(self.path), expected, "wait for that process, or stop it")
            yield

    @property
    def config(self) -> Path:
        """The frozen configuration."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, machine and command, as JSON."""
        return self.path / "environment.json"

    @property
    def partition(self) -> Path:
        """Samples by client and class with the skew figures, as JSON."""
        return self.path / "partition.json"

    @property
    def events(self) -> Path:
        """All that happened, one JSON object a line."""
        return self.path / "events.jsonl"

    @property
    def metrics(self) -> Path:
        """Values by round as a table: CSV with the columns round, scope, metric, value."""
        return self.path / "metrics.csv"

    @property
    def ledger(self) -> Path:
        """Payload bytes as a table: CSV with the columns round, client, group, down, up, raw_up."""
        return self.path / "ledger.csv"

    @property
    def timeline(self) -> Path:
        """When which worker did what, in Chrome's trace format."""
        return self.path / "timeline.json"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """One folder per checkpoint."""
        return self.path / "checkpoints"

    @property
    def clients(self) -> Path:
        """Lasting states of the simulated clients."""
        return self.path / "clients"

    @property
    def figures(self) -> Path:
        """Pictures the method drew."""
        return self.path / "figures"

    @property
    def artifacts(self) -> Path:
        """What the method made: safetensors and PNG files."""
        return self.path / "artifacts"

    @property
    def report(self) -> Path:
        """The report, one self-contained HTML page."""
        return self.path / "report.html"
