"""A run on disk, finished or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedlab.assembly import build_networks, make_method, make_task
from fedlab.config import Config, apply_overrides, parse, read_yaml
from fedlab.config.modules import search
from fedlab.errors import CheckpointError
from fedlab.experiment.evaluated import NoEvaluation
from fedlab.method import Method
from fedlab.report.record import RunRecord
from fedlab.storage import renamed
from fedlab.storage.checkpoint import latest_checkpoint, load_checkpoint
from fedlab.storage.runfolder import RunFolder
from fedlab.tracking import History


@dataclass(frozen=True)
class Run:
    """A run on disk.

    Args:
        folder: its run folder.
        config: its frozen configuration.
        method: its method object; None where only the configuration names it and it cannot be imported here.
    """

    folder: RunFolder
    config: Config
    method: Method | None = None

    @property
    def path(self) -> Path:
        return self.folder.path

    @cached_property
    def history(self) -> History:
        """Rounds, evaluations, bytes and seconds."""
        return History.from_jsonl(self.folder.events)

    @property
    def data(self) -> Mapping[str, Any]:
        """Name, fingerprint and sizes of its samples; empty where the run is too old to have recorded them."""
        return RunRecord(self.folder, self.history).data

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The last evaluation: ``clients``, ``mean`` and ``pooled``; empty before the first, and its keys say so."""
        return self.history.evaluations[-1] if self.history.evaluations else NoEvaluation(self.path, self.config)

    @property
    def paths(self) -> dict[str, Path]:
        """Where to find what."""
        names = ("config", "events", "metrics", "figures", "checkpoints", "report")
        return {name: getattr(self.folder, name) for name in names}

    @property
    def checkpoint(self) -> Path:
        """The last complete checkpoint.

        Raises:
            CheckpointError: there is none yet.
        """
        found = latest_checkpoint(self.folder.checkpoints)
        if found is None:
            raise CheckpointError("run", str(self.path), "a complete checkpoint", "the run ended before its first one")
        return found

    @cached_property
    def model(self) -> nn.ModuleDict:
        """Networks by role with the last checkpoint's weights, in evaluation mode, on the CPU."""
        tensors, meta = load_checkpoint(self.checkpoint)
        method = self.method or make_method(self.config.method)
        task = make_task(self.config, meta["columns"], meta["class_names"], meta["clients"], meta.get("vocabulary", ()))
        networks = build_networks(method, task, self.config.seed, torch.device("cpu"))  # init is in the checkpoint
        prefix = "network/"
        networks.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        return networks.eval()


def load(path: str | Path, method: Method | None = None) -> Run:
    """A run from its folder, finished or not.

    Args:
        path: the run folder.
        method: the method it was given, where that cannot be imported by its name; `Run.model` needs it.

    Raises:
        CheckpointError: not a run folder.
        ConfigErrors: its configuration was changed or is of another version.
    """
    folder = RunFolder.open(Path(path))
    config = parse(Config, renamed.configuration(apply_overrides(read_yaml(folder.config), ())))
    search([*config.modules, Path.cwd()])
    return Run(folder, config, method)
