"""The folder of a run: where its files are, and how they are written so that a crash leaves none half written."""

from __future__ import annotations

import errno
import functools
import itertools
import os
import secrets
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fedlab.errors import CheckpointError, ConfigError, DiskFullError
from fedlab.storage.locks import lock_now
from fedlab.storage.names import file_name
from fedlab.storage.temporary import sweep_unfinished, unfinished_name

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def telling_full_disk(folder: Path) -> Iterator[None]:
    """Turn the OSError of a full disk, or of a used-up quota, into a `DiskFullError`.

    Args:
        folder: the folder that the code inside writes to.
    """
    try:
        yield
    except OSError as error:
        if is_full_disk(error):
            raise DiskFullError(folder) from error
        raise


def is_full_disk(error: BaseException) -> bool:
    """Whether an error says that a disk is full or a quota used up."""
    return isinstance(error, OSError) and error.errno in _FULL


def why_unwritable(folder: Path) -> str | None:
    """Why nothing can be written to a folder, which need not exist yet; None if it can be written to."""
    try:
        place = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
        if not place.is_dir():
            return f"{place} is no folder"
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(4096))
    except OSError as error:
        return f"{place}: {error.strerror or error}"
    return None


def write_atomic(path: Path, data: str | bytes, *, durable: bool = True, private: bool = False) -> None:
    """Write a file completely or not at all, and create the folders above it.

    Readers see either the old content or the new one, even if the process is killed meanwhile. Who may read the file is
    what the user's umask says.

    Args:
        path: the file.
        data: its content.
        durable: wait until the content is on the disk, so that it survives a loss of power. This takes milliseconds.
        private: let only the user read the file, whatever the umask is.

    Raises:
        DiskFullError: there is no room for the content.
    """
    with telling_full_disk(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_atomic(path, data.encode() if isinstance(data, str) else data, durable, 0o600 if private else 0o666)


def _write_atomic(path: Path, raw: bytes, durable: bool, mode: int) -> None:
    temporary = path.with_name(unfinished_name(path.name, secrets.token_hex(4)))
    try:
        # opened like this the system itself applies the umask, which a process cannot read without changing it
        with open(temporary, "xb", opener=functools.partial(os.open, mode=mode)) as file:
            file.write(raw)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def free_name(path: Path) -> Path:
    """The path, or where it is taken the first one with a number that is not."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(place for place in itertools.chain([path], numbered) if not os.path.lexists(place))


def set_aside(path: Path) -> Path:
    """Rename what is damaged and cannot be made again, so that it is kept; returns the new path."""
    return path.rename(free_name(path.with_name(f"damaged_{path.name}")))


@dataclass(frozen=True)
class RunFolder:
    """The paths of the files and folders of one run.

    Args:
        path: the folder.
    """

    path: Path

    @classmethod
    def create(cls, parent: Path, name: str | None, method: str, seed: int) -> RunFolder:
        """Create a run folder below `parent`. A run never overwrites another one.

        Args:
            parent: folder of all runs; it is created if it does not exist.
            name: name of the folder; None makes one of method, seed and time.
            method: name of the method.
            seed: the run's seed.

        Raises:
            ConfigError: `name` is taken, or the folder cannot be created.
        """
        base = name or f"{file_name(method.rpartition(':')[2])}-seed{seed}-{datetime.now():%Y%m%d-%H%M%S}"
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
                if is_full_disk(error):
                    raise DiskFullError(parent) from error
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
        """Try whether `create` works, and leave nothing behind.

        Raises:
            ConfigError: as `create` does.
        """
        missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        for folder in (cls.create(parent, name, method, seed).path, *missing):
            with suppress(OSError):  # another run may have begun in it meanwhile
                folder.rmdir()

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The folder of an existing run.

        Raises:
            CheckpointError: there is no run at `path`.
        """
        folder = cls(path)
        if not folder.config.is_file():
            held = folder.copy.is_file()
            fix = f"bring it back: {folder.how_to_restore}" if held else "see the folder runs/"
            raise CheckpointError("run", str(path), "a run folder, which holds a config.yaml", fix)
        return folder

    @property
    def how_to_restore(self) -> str:
        """The command that puts the run's own copy of its configuration in the place of ``config.yaml``."""
        return shlex.join(["cp", str(self.copy), str(self.config)])

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other processes from writing to this run. The lock goes with the process, however that ends.

        Raises:
            CheckpointError: another process is writing to the run.
        """
        with telling_full_disk(self.path):
            place = self.path / ".lock"
            if os.path.lexists(place) and not place.is_file():  # to open a pipe would take forever
                set_aside(place)
            lock = place.open("a")
        with lock as file:
            if not lock_now(file):
                expected = "a run that no other process is writing to"
                raise CheckpointError("run", str(self.path), expected, "wait for that process, or stop it")
            yield

    def tidy(self) -> list[str]:
        """Make room for a run that goes on: what lies in the place of its files and folders and is none is set aside.

        What the run was writing when it was killed is removed. The run must be locked, see `writing`.

        Returns:
            Warnings about what was set aside.
        """
        sweep_unfinished(self.path)
        files = (self.config, self.copy, self.environment, self.events, self.metrics, self.ledger, self.timeline)
        folders = (self.checkpoints, self.clients, self.figures, self.artifacts, self.tensorboard)
        wrong = [path for path in files if os.path.lexists(path) and not path.is_file()]
        wrong += [path for path in folders if os.path.lexists(path) and not path.is_dir()]
        return [f"{path.name} was of the wrong kind and is kept as {set_aside(path).name}" for path in wrong]

    @property
    def config(self) -> Path:
        """The configuration of the run, complete with all defaults."""
        return self.path / "config.yaml"

    @property
    def copy(self) -> Path:
        """A copy of the configuration with a hash of its own, by which changes of ``config.yaml`` are noticed."""
        return self.path / ".config.yaml"

    @property
    def environment(self) -> Path:
        """Versions of the software, the machine and the command, as JSON."""
        return self.path / "environment.json"

    @property
    def partition(self) -> Path:
        """Number of samples by client and class, and measures of skew, as JSON."""
        return self.path / "partition.json"

    @property
    def deployment(self) -> Path:
        """What a deployed run needs to go on: its token, and how it was submitted, as JSON."""
        return self.path / "deployment.json"

    @property
    def events(self) -> Path:
        """Everything that happened, one JSON object per line."""
        return self.path / "events.jsonl"

    @property
    def metrics(self) -> Path:
        """Metrics by round, as CSV with the columns round, scope, metric, value."""
        return self.path / "metrics.csv"

    @property
    def probes(self) -> Path:
        """Results of `fedlab probe`, one JSON object per line."""
        return self.path / "probes.jsonl"

    @property
    def ledger(self) -> Path:
        """Bytes sent, as CSV with the columns round, client, group, down, up, raw_up."""
        return self.path / "ledger.csv"

    @property
    def timeline(self) -> Path:
        """What every worker did and when, in Chrome's trace format."""
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
        """States of the simulated clients."""
        return self.path / "clients"

    @property
    def figures(self) -> Path:
        """Figures that the method has drawn."""
        return self.path / "figures"

    @property
    def artifacts(self) -> Path:
        """What the method has produced, as safetensors and PNG files."""
        return self.path / "artifacts"

    @property
    def report(self) -> Path:
        """The report, one self-contained HTML page."""
        return self.path / "report.html"
