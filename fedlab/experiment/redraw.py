"""Draws the pictures and writes the artifacts of a run again, from its last checkpoint."""

from __future__ import annotations

import shlex
from contextlib import closing
from pathlib import Path

from fedlab.assembly import server_holding
from fedlab.clients.state import StateStore
from fedlab.config.recorded import check_unchanged
from fedlab.data.federated import FederatedData
from fedlab.data.samples import Dataset, on_device
from fedlab.engine.device import use_deterministic_kernels
from fedlab.errors import CheckpointError
from fedlab.experiment.checks import Resolved, check_data, resolve
from fedlab.experiment.result import Run, load
from fedlab.method import FigureContext, Method
from fedlab.server.messaging.shared import state_in
from fedlab.server.records import RunWriter
from fedlab.server.snapshot import PRIVATE, SHARED, Checkpoint
from fedlab.storage.checkpoint import load_checkpoint
from fedlab.storage.paths import cache_folder
from fedlab.tracking import Event, Tracker
from fedlab.tracking.jsonl import JsonlSink


def redraw(path: str | Path, method: Method | None = None, data: Dataset | None = None) -> list[str]:
    """Draw a run's pictures after its last checkpoint and write its artifacts again, as at the end of its rounds.

    The run need not have finished. Its clients' states and its data are read again, so both must still be there.

    Args:
        path: the run folder.
        method: as given to `fedlab.run`.
        data: as given to `fedlab.run`.

    Returns:
        Warnings about what could not be made.

    Raises:
        CheckpointError: no run folder, no usable checkpoint, the run was deployed and the states of its clients are
            elsewhere, the data or what decides the result in its config.yaml has changed, or another process is
            writing to the run.
        ConfigErrors: the recorded configuration cannot be carried out here.
        DataError: the data is missing or unusable.
    """
    run = load(path, method)
    if run.folder.deployment.exists():
        fix = f"its pictures need what lies on its nodes; for the report alone: fedlab report {shlex.quote(str(path))}"
        raise CheckpointError("run", str(run.path), "a simulated run", fix)
    check_unchanged(run.folder)
    checkpoint = Checkpoint(*load_checkpoint(run.checkpoint))
    # what follows a run is not needed, and a callback that was given in Python is not here
    quiet = {"tracking": run.config.tracking.model_copy(update={"trackers": (), "mlflow": None})}
    config = run.config.model_copy(update={"callbacks": (), **quiet})
    resolved = resolve(config, method=run.method, network=run.network)
    federated = check_data(resolved, data)
    if (fingerprint := federated.partition.fingerprint) != checkpoint.meta["data"]:
        raise CheckpointError(
            "run",
            f"{run.path} with data {checkpoint.meta['data']}",
            f"the same data; it is {fingerprint} now",
            "the data files have changed since: bring them back",
        )
    use_deterministic_kernels(resolved.device)
    with run.folder.writing():
        run.folder.tidy()
        with closing(_Told(run)) as told:
            writer = RunWriter(resolved.components.method, run.folder, Tracker([told]), run.config.federation.rounds)
            look = _look(run, checkpoint, resolved, federated)
            writer.finish(checkpoint.round, lambda round: look)
            return told.warnings


class _Told(JsonlSink):
    """Appends the events to the run's, and remembers the warnings among them."""

    def __init__(self, run: Run) -> None:
        super().__init__(run.folder.events)
        self.warnings: list[str] = []

    def write(self, event: Event) -> None:
        super().write(event)
        if event["event"] == "warning":
            self.warnings.append(str(event["message"]))


def _look(run: Run, checkpoint: Checkpoint, resolved: Resolved, federated: FederatedData) -> FigureContext:
    """What the server showed to the hooks that draw, at the checkpoint."""
    config, device, states = run.config, resolved.device, StateStore(run.folder.clients)
    versions = checkpoint.versions()
    return FigureContext(
        task=run.task,
        round=checkpoint.round,
        batch_size=config.evaluation.batch_size,
        shared={name: value for name, value in checkpoint.part(SHARED).items() if state_in(name) is None},
        private=checkpoint.part(PRIVATE),
        networks=run.model.to(device).eval(),
        data={name: on_device(federated.server(name), device) for name in federated.dataset.server},
        client_names=federated.partition.names,
        client_state=lambda client: states.load(client, versions[client]) if client in versions else None,
        client_test=lambda client: on_device(federated.client(client).test, device),
        denormalize=federated.denormalize,
        seed=config.seed,
        holding=server_holding(resolved.components, run.task, device, cache_folder(config.tracking.cache).resolve()),
    )
