"""How a run goes on from its last checkpoint, in a simulation and in a deployment."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedlab.clients.state import StateStore
from fedlab.config import Config
from fedlab.config.recorded import check_unchanged, recorded_config
from fedlab.config.walk import within
from fedlab.errors import CheckpointError, ConfigError
from fedlab.method import Task
from fedlab.server.snapshot import Checkpoint
from fedlab.storage.checkpoint import by_round, is_damaged, keep_until, load_checkpoint
from fedlab.storage.runfolder import RunFolder

MAY_CHANGE = (
    "engine",
    "tracking",
    "federation.rounds",
    "federation.timeout",
    "federation.min_clients",
    "federation.reply_limit",
)
"""Keys of the configuration that a run may change when it goes on, because they do not change its results.

More rounds change what the method plans, as in a simulation.
"""


@dataclass(frozen=True)
class Resumption:
    """From where a run goes on.

    Args:
        folder: the run folder.
        start: the newest checkpoint that can be used; None begins with round 1.
        unusable: why newer checkpoints cannot be used.
    """

    folder: RunFolder
    start: Checkpoint | None
    unusable: Mapping[Path, CheckpointError] = field(default_factory=dict)

    @property
    def round(self) -> int:
        """The last round that is finished."""
        return 0 if self.start is None else self.start.round

    def take_back(self) -> list[str]:
        """Remove the checkpoints of the rounds that are repeated.

        Returns:
            Warnings about damaged checkpoints.
        """
        told = [_set_aside(error) for path, error in self.unusable.items() if is_damaged(path)]
        keep_until(self.folder.checkpoints, self.round)
        return [*self.folder.tidy(), *told]


def resumption(folder: RunFolder, rounds: int, states: StateStore | None = None, *, ended: bool = True) -> Resumption:
    """Find the newest checkpoint from which a run can go on.

    Args:
        folder: the run folder.
        rounds: the round up to which the run is to go on.
        states: the states of simulated clients, which must be there as they were at the checkpoint; None in a
            deployment, where they are on other machines.
        ended: whether the run has come to its end; one that was killed after its last round still has to draw its
            pictures and to write its artifacts.

    Raises:
        CheckpointError: all these rounds are done and the run has ended, or the configuration is not the one with which
            the run began.
    """
    unusable: dict[Path, CheckpointError] = {}
    start = None
    for path in by_round(folder.checkpoints):
        try:
            found = Checkpoint(*load_checkpoint(path))
            found.check()
            if states is not None:
                states.check(found.versions())
        except CheckpointError as error:
            unusable[path] = error
            continue
        start = found
        break
    if start is not None and (then := start.meta.get("configuration")) is not None:
        check_unchanged(folder, then)
    if start is not None and start.stopped is not None and ended:
        expected = f"a run that was not stopped early; a callback has ended this one after round {start.stopped}"
        fix = "to train on, start a new run without the callback, with these weights as init"
        raise CheckpointError("run", str(folder.path), expected, fix)
    if start is not None and (start.round > rounds or (ended and start.round == rounds)):
        expected = f"rounds left to do, but all {start.round} are done"
        again = shlex.join(["fedlab", "report", "--redraw", str(folder.path)])
        fix = f"ask for more rounds with --rounds; to make its pictures and artifacts again: {again}"
        raise CheckpointError("run", str(folder.path), expected, fix)
    return Resumption(folder, start, unusable)


def _set_aside(error: CheckpointError) -> str:
    return f"a damaged checkpoint is kept, with damaged_ before its name, and its rounds are repeated: {error}"


def begun_config(folder: RunFolder) -> Config:
    """The configuration that a run has recorded.

    Raises:
        ConfigErrors: it is not valid, because it was changed or another version wrote it.
        CheckpointError: it was changed.
    """
    check_unchanged(folder)
    return recorded_config(folder)


def check_config(begun: Config, now: Config) -> None:
    """Refuse to go on with another configuration.

    Args:
        begun: the configuration that the run has recorded.
        now: the one with which it is to go on.

    Raises:
        ConfigError: they differ in a key that would change the result.
    """
    before, after = _flat(begun.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    for key in sorted(before.keys() | after.keys()):
        if not within(key, MAY_CHANGE) and before.get(key) != after.get(key):
            expected = f"{before.get(key)!r}, with which the run began"
            raise ConfigError(key, after.get(key), expected, "resume it as it was, or submit it as a new run")


def check_task(start: Checkpoint, task: Task, assets: Mapping[str, str]) -> None:
    """Refuse to go on with clients whose data is of another kind than when the checkpoint was written.

    Args:
        start: the checkpoint.
        task: the task of the clients that are there now.
        assets: hash of each asset that a participant holds now, by name.

    Raises:
        CheckpointError: classes, columns, vocabulary, the number of clients or the weights of an asset differ.
    """
    for name, begun in start.meta.get("assets", {}).items():
        if assets.get(name, begun) != begun:
            fix = "bring its file back, or start a new run"
            raise CheckpointError(f"asset {name}", assets[name], f"{begun}, with which the run began", fix)
    now = {
        "clients": task.num_clients,
        "class_names": list(task.class_names),
        "vocabulary": list(task.vocabulary),
        "columns": json.loads(json.dumps(task.columns)),
    }
    for key, value in now.items():
        begun = start.meta.get(key, value)
        if json.loads(json.dumps(begun)) != value:
            raise CheckpointError(f"{key} of the data", value, f"{begun!r}, with which the run began", "bring it back")


def _flat(raw: Any, key: str = "") -> dict[str, Any]:
    """The values of nested mappings by dotted key."""
    if not isinstance(raw, dict) or not raw:
        return {key: raw}
    return {name: v for k, part in raw.items() for name, v in _flat(part, f"{key}.{k}" if key else str(k)).items()}
