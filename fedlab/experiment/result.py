"""Access to a run on disk, whether it has finished or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedlab.assembly import build_networks, make_method, make_task
from fedlab.config import Config
from fedlab.config.modules import search
from fedlab.config.recorded import recorded_config
from fedlab.errors import CheckpointError, ConfigError
from fedlab.experiment.client import ClientOfRun, client_of
from fedlab.experiment.evaluated import NoEvaluation
from fedlab.experiment.given import GivenParts
from fedlab.experiment.prediction import predict
from fedlab.method import Method, Task
from fedlab.models import GivenNetwork
from fedlab.report.confusion import by_class
from fedlab.report.record import RunRecord
from fedlab.report.tables import result_table
from fedlab.server.snapshot import Checkpoint
from fedlab.storage.checkpoint import NETWORK, latest_checkpoint, load_checkpoint
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
        network: what was given in Python in place of the configured model; None if the configuration names it.
    """

    folder: RunFolder
    config: Config
    method: Method | None = None
    network: GivenNetwork | None = None

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
    def per_class(self) -> Mapping[str, float | None]:
        """The share of each class's test samples that the last evaluation found classified correctly, by class name.

        The samples are those of all clients that may train. The value is None for a class without any, and the mapping
        is empty if the method does not measure classification.

        Raises:
            NotEvaluatedError: there was no evaluation yet.
        """
        found = by_class(self.history) if self.metrics["clients"] is not None else None
        return {} if found is None else found.accuracy

    @property
    def confusion(self) -> np.ndarray:
        """The test samples of the last evaluation by label (row) and prediction (column), (K, K) int64.

        The samples and the order of the classes are those of `per_class`. The array is (0, 0) if the method does not
        measure classification, or if there are more than 100 classes.

        Raises:
            NotEvaluatedError: there was no evaluation yet.
        """
        found = by_class(self.history) if self.metrics["clients"] is not None else None
        return np.zeros((0, 0), np.int64) if found is None or found.confusion is None else found.confusion

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
        meta = self._loaded.meta
        described = (meta["columns"], meta["class_names"], meta["clients"], meta.get("vocabulary", ()))
        return make_task(self.config, *described, network=self.network)

    @cached_property
    def model(self) -> nn.ModuleDict:
        """The networks by role, with the weights of the last complete checkpoint, in evaluation mode, on the CPU.

        They take images as the clients do, which are normalized with ``data.mean`` and ``data.std``. `predict` does
        that for you.

        Raises:
            CheckpointError: there is no complete checkpoint.
            ConfigError, ConfigErrors: the method or the model cannot be made from the configuration.
        """
        # Initial weights (init) are not loaded, because the checkpoint replaces them.
        networks = build_networks(self._method, self.task, self.config.seed, torch.device("cpu"))
        try:
            networks.load_state_dict(self._loaded.part(NETWORK))
        except RuntimeError as error:
            if self.network is None:
                raise
            expected = "the network that the run was given, of which its checkpoint holds the weights"
            reason = " ".join(str(error).split())
            raise ConfigError("model", self.network.title, expected, reason) from error
        return networks.eval()

    def _repr_html_(self) -> str:
        """The last results, bytes, seconds and how the run ended, as a notebook shows them."""
        found = result_table(History.from_jsonl(self.folder.events))
        report = [f"report   {self.folder.report}"] if self.folder.report.exists() else []
        return to_html([*found.renderables, f"folder   {self.path}", *report])

    def predict(self, samples: Any, *, domain: str | Sequence[str] | None = None, batch_size: int = 256) -> Tensor:
        """What the method predicts for samples with the networks of `model`, such as logits (n, K) of classes.

        Images are normalized as those of the run were. ``argmax(1)`` of logits gives the numbers of classes, and
        ``run.task.class_names`` their names.

        Args:
            samples: images, uint8 or floats in [0, 1], as (n, H, W), (n, H, W, C) or (n, C, H, W); feature vectors
                (n, d); or samples in any other form that `fedlab.as_dataset` accepts for one split.
            domain: the domain of all samples or of each, for runs whose domains are normalized differently.
            batch_size: number of samples that are predicted at once.

        Raises:
            DataError: the samples are not like those of the run, or their domain is not known.
            CheckpointError, ConfigError, ConfigErrors: see `model`.
        """
        predicted = partial(predict, self._method, self.model, self.task, self.config.data)
        return predicted(samples, domain=domain, batch_size=batch_size)

    def client(self, client: int | str) -> ClientOfRun:
        """One client: its own networks, the tensors that it keeps, and its metrics.

        Args:
            client: id from 0, or name.

        Raises:
            DataError: there is no such client.
            CheckpointError: there is no complete checkpoint, or the clients' states are on other machines or damaged.
            ConfigError, ConfigErrors: see `model`.
        """
        record = RunRecord(self.folder, self.history)
        return client_of(client, record, self.config, self._loaded, self._method, self.task, self.model, self._initial)

    def _initial(self) -> nn.ModuleDict:
        config, task = self.config, self.task
        if self.network is not None:
            self.network.described(task.input_shape, task.num_classes)  # refuses one with other initial weights
        return build_networks(self._method, task, config.seed, torch.device("cpu"), config.init)

    @cached_property
    def _loaded(self) -> Checkpoint:
        return Checkpoint(*load_checkpoint(self.checkpoint))

    @cached_property
    def _method(self) -> Method:
        return self.method or make_method(self.config.method)


def load(
    path: str | Path, method: Method | None = None, model: nn.Module | Callable[..., nn.Module] | None = None
) -> Run:
    """Open the folder of a run, whether it has finished or not.

    Args:
        path: the run folder.
        method: the method object that the run was given in Python. Only `Run.model` needs it, and only if the class of
            the method cannot be imported by its name.
        model: the network or the factory that the run was given in Python. Only `Run.model`, `Run.predict` and
            `Run.client` need it; its weights are replaced by those of the run.

    Raises:
        CheckpointError: the folder is not a run folder.
        ConfigErrors: the recorded configuration is not valid, because it was changed or another version wrote it.
        ConfigError: another model than the run was given.
    """
    folder = RunFolder.open(Path(path))
    config = recorded_config(folder)
    search([*config.modules, Path.cwd()])
    return Run(folder, config, method, GivenParts(model=model).network(config, resumed=True))
