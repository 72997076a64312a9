"""Access to a run on disk, whether it has finished or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedlab.assembly import build_networks, make_method, make_task
from fedlab.config import Config
from fedlab.config.modules import search
from fedlab.config.recorded import recorded_config
from fedlab.errors import CheckpointError
from fedlab.experiment.evaluated import NoEvaluation
from fedlab.method import Method, Task
from fedlab.report.record import RunRecord
from fedlab.report.tables import result_table
from fedlab.storage.checkpoint import latest_checkpoint, load_checkpoint
from fedlab.storage.runfolder import RunFolder
from fedlab.tracking import History
from fedlab.tracking.notebook import to_html


@dataclass(frozen=True)
class Run:
    """A run on disk, whether it has finished or not.

    Args:
        folder: the run folder.
        config: the configuration that the run has recorded.
        method: the method object; None if only the configuration names the method, which `model` then imports.
    """

    folder: RunFolder
    config: Config
    method: Method | None = None

    @property
    def path(self) -> Path:
        return self.folder.path

    @cached_property
    def history(self) -> History:
        """The events of the run, such as its rounds and evaluations. They are read once, when first asked for."""
        return History.from_jsonl(self.folder.events)

    @property
    def data(self) -> Mapping[str, Any]:
        """Name, fingerprint and numbers of the samples; empty if an older version of FedLab did not record them."""
        return RunRecord(self.folder, self.history).data

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The last evaluation, with the keys ``clients``, ``mean`` and ``pooled`` among others.

        Before the first evaluation it is empty, and looking up a key raises a `NotEvaluatedError`.
        """
        return self.history.evaluations[-1] if self.history.evaluations else NoEvaluation(self.path, self.config)

    @property
    def paths(self) -> dict[str, Path]:
        """Paths of the run's configuration, events, metrics, figures, checkpoints and report, by these names."""
        names = ("config", "events", "metrics", "figures", "checkpoints", "report")
        return {name: getattr(self.folder, name) for name in names}

    @property
    def checkpoint(self) -> Path:
        """The folder of the last complete checkpoint.

        Raises:
            CheckpointError: there is no complete checkpoint.
        """
        found = latest_checkpoint(self.folder.checkpoints)
        if found is None:
            raise CheckpointError("run", str(self.path), "a complete checkpoint", "the run ended before its first one")
        return found

    @cached_property
    def task(self) -> Task:
        """Facts about the job, such as the number of classes, as the last complete checkpoint holds them.

        Raises:
            CheckpointError: there is no complete checkpoint.
        """
        _, meta = load_checkpoint(self.checkpoint)
        return make_task(self.config, meta["columns"], meta["class_names"], meta["clients"], meta.get("vocabulary", ()))

    @cached_property
    def model(self) -> nn.ModuleDict:
        """The networks by role, with the weights of the last complete checkpoint, in evaluation mode, on the CPU.

        Raises:
            CheckpointError: there is no complete checkpoint.
            ConfigError, ConfigErrors: the method or the model cannot be made from the configuration.
        """
        tensors, _ = load_checkpoint(self.checkpoint)
        method = self.method or make_method(self.config.method)
        # Initial weights (init) are not loaded, because the checkpoint replaces them.
        networks = build_networks(method, self.task, self.config.seed, torch.device("cpu"))
        prefix = "network/"
        networks.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        return networks.eval()

    def _repr_html_(self) -> str:
        """The last results, bytes, seconds and how the run ended, as a notebook shows them."""
        found = result_table(History.from_jsonl(self.folder.events))
        report = [f"report   {self.folder.report}"] if self.folder.report.exists() else []
        return to_html([*found.renderables, f"folder   {self.path}", *report])


def load(path: str | Path, method: Method | None = None) -> Run:
    """Open the folder of a run, whether it has finished or not.

    Args:
        path: the run folder.
        method: the method object that the run was given in Python. Only `Run.model` needs it, and only if the class of
            the method cannot be imported by its name.

    Raises:
        CheckpointError: the folder is not a run folder.
        ConfigErrors: the recorded configuration is not valid, because it was changed or another version wrote it.
    """
    folder = RunFolder.open(Path(path))
    config = recorded_config(folder)
    search([*config.modules, Path.cwd()])
    return Run(folder, config, method)
