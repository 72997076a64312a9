"""The run folder of a deployed run: a new one, or that of a run which goes on."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlab.errors import CheckpointError, ConfigError
from fedlab.privacy import DPSGD, Central
from fedlab.protocol.runconfig import RESUME_KEY, TOKEN_KEY, Submission
from fedlab.server.privacy import check_rounds
from fedlab.server.resuming import Resumption, begun_config, check_config, resumption
from fedlab.server.snapshot import Checkpoint
from fedlab.storage.plain import read_plain_text
from fedlab.storage.runfolder import RunFolder, write_atomic

FOLDER_VARIABLE = "FEDLAB_RUNS"
"""Environment variable of the ServerApp that names the folder of all runs."""


@dataclass(frozen=True)
class Begun:
    """A deployed run whose folder exists.

    Args:
        folder: the run folder.
        resumption: from where the run goes on; None for a new run.
    """

    folder: RunFolder
    resumption: Resumption | None = None

    @property
    def start(self) -> Checkpoint | None:
        """The checkpoint from which the run goes on; None begins with round 1."""
        return None if self.resumption is None else self.resumption.start

    @property
    def resumed(self) -> int | None:
        """The round after which the run goes on; None for a new run."""
        return None if self.resumption is None else self.resumption.round

    @property
    def members(self) -> list[int]:
        """The clients with which the run began; empty for a new run, or if the checkpoint does not say."""
        return [] if self.start is None else self.start.members()

    def check_data(self, fingerprint: str) -> None:
        """Refuse to go on with other data, as far as the server knows the data.

        Args:
            fingerprint: hash of data, partition and seed; empty if only the nodes have the data.

        Raises:
            CheckpointError: the run began with other data.
        """
        begun = "" if self.start is None else self.start.meta["data"]
        if fingerprint and begun and begun != fingerprint:
            raise CheckpointError(
                "run",
                f"{self.folder.path} with data {begun}",
                f"the same data; it is {fingerprint} now",
                "the data files have changed since: bring them back, or start a new run",
            )

    def take_back(self) -> list[str]:
        """Remove the checkpoints of the rounds that are repeated, and return warnings about damaged ones."""
        return [] if self.resumption is None else self.resumption.take_back()


def begin(submitted: Submission, flower_run: int, privacy: Central | DPSGD | None) -> Begun:
    """Make the folder of a new run, or open that of a run which goes on.

    Args:
        submitted: the run.
        flower_run: Flower's id of the run, which is recorded.
        privacy: the guarantee that the run gives, which may not allow more rounds; None if it gives none.

    Raises:
        CheckpointError: there is no such run, it was not deployed, or no round is left to do.
        ConfigError: the run began with another configuration or token, or its guarantee of privacy was made for
            another number of rounds.
    """
    config = submitted.config
    root = Path(os.environ.get(FOLDER_VARIABLE, config.tracking.folder))
    if not submitted.resume:
        folder = RunFolder.create(root, config.tracking.name, config.method.name, config.seed)
        _record(folder, submitted, [flower_run])
        return Begun(folder)
    folder = RunFolder.open(root / submitted.resume)
    recorded = _recorded(folder)
    if submitted.token != recorded.get("token"):
        raise ConfigError(
            TOKEN_KEY,
            submitted.token,
            f"the token with which the run {submitted.resume!r} began, because nodes keep their states under it",
            f"take it from {folder.deployment.name} in the run folder",
        )
    before = begun_config(folder)
    check_config(before, config)
    check_rounds(privacy, before.federation.rounds, config.federation.rounds)
    found = resumption(folder, config.federation.rounds)
    _record(folder, submitted, [*recorded.get("flower_runs", ()), flower_run])
    return Begun(folder, found)


def _record(folder: RunFolder, submitted: Submission, flower_runs: list[int]) -> None:
    facts = {
        "token": submitted.token,
        "expected": submitted.expected,
        "simulate_partition": submitted.simulate_partition,
        "flower_runs": flower_runs,
    }
    write_atomic(folder.deployment, json.dumps(facts, indent=1))


def _recorded(folder: RunFolder) -> dict[str, Any]:
    try:
        facts = json.loads(read_plain_text(folder.deployment))
    except (OSError, ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        expected = f"the folder of a deployed run, which holds {folder.deployment.name}"
        raise CheckpointError(RESUME_KEY, str(folder.path), expected, "go on with a simulation by `fedlab resume`")
    return facts
