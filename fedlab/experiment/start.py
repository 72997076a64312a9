"""From a configuration to a finished run folder, and back."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fedlab.callbacks import Callback
from fedlab.clients.app import ClientAppFactory
from fedlab.clients.runtime import RECEIVED
from fedlab.clients.server_tensors import ReceivedTensors
from fedlab.clients.state import StateStore
from fedlab.config import Config
from fedlab.config.overrides import Overrides, changes
from fedlab.config.recorded import check_unchanged
from fedlab.data.samples import on_device
from fedlab.engine import Listeners, Simulation, launch
from fedlab.errors import CheckpointError, ConfigError
from fedlab.experiment.checks import left_out
from fedlab.experiment.configuration import code_of
from fedlab.experiment.configuration import configure as configure
from fedlab.experiment.configuration import method_folder as method_folder
from fedlab.experiment.ending import accounted, stuck_recorder
from fedlab.experiment.given import GivenParts
from fedlab.experiment.job import Job, ready
from fedlab.experiment.result import Run, load
from fedlab.method import Method
from fedlab.report.record import RunRecord, run_status
from fedlab.server.messaging.profiles import known_profiles
from fedlab.server.resuming import resumption
from fedlab.server.setup import ServerSetup
from fedlab.server.simulated import SimulatedServer
from fedlab.server.snapshot import SHARED, Checkpoint
from fedlab.storage.cache import ResultCache
from fedlab.storage.runfolder import RunFolder, write_atomic
from fedlab.tracking.recording import open_session
from fedlab.tracking.signals import ending_signals

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy

    from fedlab.server.participation.samplers import Sampler

Model = nn.Module | Callable[..., nn.Module] | str | Mapping[str, Any]

log = logging.getLogger(__name__)


def run(
    config: str | Path | Mapping[str, Any] | Config,
    *,
    method: Method | type[Method] | None = None,
    strategy: Strategy | type[Strategy] | None = None,
    sampler: Sampler | type[Sampler] | None = None,
    model: Model | None = None,
    data: object = None,
    callbacks: Sequence[Callback | type[Callback]] = (),
    overrides: Overrides = (),
    until: int | None = None,
    command: str | None = None,
) -> Run:
    """Run a federation and write its run folder.

    Args:
        config: a built-in method's name, a YAML file, a mapping or a `Config`; relative paths in a file start from its
            folder, others from the current one.
        method: a method of your own; its settings are taken from ``config.method`` where it is a class.
        strategy: a Flower strategy of your own, object or class.
        sampler: a sampler of your own, object or class; the settings of a class are given as
            ``overrides={"federation.sampler": {…}}``.
        model: a network of your own instead of ``config.model``: an `nn.Module`, whose weights every network that the
            method builds of it starts with; a function or class that is given those of ``input_shape`` and
            ``num_classes`` that it names, with torch's generator seeded from the run's seed; or the name of a model,
            with settings as a mapping with ``name``. The run records class, number of parameters and a hash.
        data: samples of your own instead of ``config.data.source``, in any form that `fedlab.as_dataset` accepts; the
            run records their name and fingerprint.
        callbacks: callbacks of your own, objects or classes, which are called after those of the configuration.
        overrides: changes to the configuration, as ``{"training.lr": 0.1}``, ``{"training": {"lr": 0.1}}`` or
            ``["training.lr=0.1"]``.
        until: stop after this round; `resume` goes on.
        command: how to repeat this run, shown in the report.

    Raises:
        InputError, ConfigErrors: something is wrong with the input; no worker was started.
        ClientError: a client failed.
    """
    given = GivenParts(method, strategy, sampler, model, data, overrides, callbacks)
    job = ready(configure(config, given.changes, given=given.replaced), given)
    tracking = job.config.tracking
    with ending_signals(), job.placed() as job:
        # from here on a run exists; all that can be refused has been
        folder = RunFolder.create(Path(tracking.folder), tracking.name, job.config.method.name, job.config.seed)
        with folder.writing():
            return _execute(job, folder, until, command)


def resume(
    path: str | Path,
    *,
    rounds: int | None = None,
    until: int | None = None,
    method: Method | type[Method] | None = None,
    strategy: Strategy | type[Strategy] | None = None,
    sampler: Sampler | type[Sampler] | None = None,
    model: Model | None = None,
    data: object = None,
    callbacks: Sequence[Callback | type[Callback]] = (),
    overrides: Overrides = (),
    command: str | None = None,
) -> Run:
    """Go on with a run from its last complete checkpoint, or from the beginning where it has none.

    The result is the one an uninterrupted run would have had, bit for bit.

    Args:
        path: the run folder.
        rounds: a new ``federation.rounds``; schedules and plans that depend on it change with it.
        until: stop after this round.
        method: as given to `run`.
        strategy: as given to `run`.
        sampler: as given to `run`.
        model: as given to `run`.
        data: as given to `run`.
        callbacks: as given to `run`; those that the configuration can make again may be left out, all together.
        overrides: changes below ``engine`` and ``tracking`` that do not change results.
        command: how this was started.

    Raises:
        CheckpointError: no run folder, another data set, nothing left to do, its config.yaml was changed, or another
            process is at it.
        ConfigError: an override that would change results, or another method, strategy, sampler or model than the run
            began with.
        ConfigErrors: its configuration cannot be carried out here and now.
        DataError: other data than the run began with, or none where it was given some.
    """
    run = load(path)
    if run.folder.deployment.exists() or any(
        event.get("engine") == "deployment" for event in run.history.of("run_start")
    ):
        raise CheckpointError(
            "run",
            str(path),
            "the folder of a simulation; this run is that of a deployment, whose clients are on other machines",
            f"go on with: fedlab deploy resume {shlex.quote(run.path.name)}",
        )
    check_unchanged(run.folder)
    asked = changes(overrides, Config)
    for key, value in asked:
        override = f"{key}={value}"
        if not key.startswith(("engine.", "tracking.")):
            raise ConfigError("--set", override, "a key below engine or tracking", "other keys would change the result")
        if key.startswith("engine.vectorize"):
            raise ConfigError(
                "--set", override, "the value that the run began with", "the last bits of its result depend on it"
            )
    if rounds is not None:
        asked.append(("federation.rounds", rounds))
    given = GivenParts(method, strategy, sampler, model, data, callbacks=callbacks)
    job = ready(configure(run.config, asked), given, begun=run.config)
    last = job.config.federation.rounds
    ended = run_status(run.history) == "completed"
    found = resumption(run.folder, min(until or last, last), StateStore(run.folder.clients), ended=ended)
    start = found.start
    fingerprint = job.federated.partition.fingerprint
    begun = start.meta["data"] if start is not None else RunRecord(run.folder, run.history).partition.get("fingerprint")
    if begun not in (None, fingerprint):
        raise CheckpointError(
            "run",
            f"{path} with data {begun}",
            f"the same data; it is {fingerprint} now",
            "the data files or the partition have changed since: bring them back, or start a new run",
        )
    with ending_signals(), job.placed() as job, run.folder.writing():
        told = found.take_back()
        _rewind(run.folder, start)
        return _execute(job, run.folder, until, command, start, told)


def _execute(
    job: Job,
    folder: RunFolder,
    until: int | None,
    command: str | None,
    start: Checkpoint | None = None,
    resumed: Sequence[str] | None = None,
) -> Run:
    """Carry a run out.

    Args:
        job: what is to be done.
        folder: the run folder.
        until: stop after this round.
        command: how this was started.
        start: the checkpoint from which it goes on; None begins with round 1.
        resumed: for a run that was begun before, warnings about what was found; None for a new one.
    """
    config, resolved, federated = job.config, job.resolved, job.federated
    network = resolved.components.network
    setup, device, placement = job.clients(folder.clients.resolve()), resolved.device, resolved.placement
    with accounted(config, folder):
        if resumed is None:
            facts = federated.facts(config.federation.rounds)
            write_atomic(folder.partition, json.dumps(facts, indent=1))
        with open_session(
            config,
            folder,
            engine=config.engine.name,
            workers=placement.workers,
            model=job.method.own_model or (None if network is None else network.title),
            command=command,
            code=code_of(config),
            resumed=None if resumed is None else (start.round if start is not None else 0),
            trackers=resolved.trackers,
        ) as tracker:
            for warning in (*(resumed or ()), *(job.warnings if start is None else ())):
                tracker.emit("warning", message=warning)
            for left in left_out(config, federated) if start is None else ():
                tracker.emit("left_out", **left.fields())
            if job.probe and start is None:
                tracker.emit("vectorize", **job.probe)
            tracker.emit("phase_end", round=0, phase="preflight", seconds=job.preflight_seconds)
            server = ServerSetup(
                components=resolved.components,
                strategy=resolved.strategy,
                rules=resolved.rules,
                device=device,
                tracker=tracker,
                folder=folder,
                denormalize=federated.denormalize,
                data={name: on_device(federated.server(name), device) for name in federated.dataset.server},
                data_fingerprint=federated.partition.fingerprint,
                cache=ResultCache(setup.cache_root, lambda: federated.server_fingerprint, config.seed, device),
                client_states=StateStore(setup.state_root),
                callbacks=resolved.callbacks,
                profiles=known_profiles(federated, job.method),
                holds_out=bool(federated.unseen),
                client_test=lambda client: on_device(federated.client(client).test, device),
            )
            main = SimulatedServer(server, until, start)
            fail_fast = config.federation.on_client_error == "stop"
            launch(
                config.engine,
                placement,
                main,
                Simulation(ClientAppFactory(setup), federated.num_clients, fail_fast=fail_fast),
                Listeners(
                    on_progress=main.progress,
                    on_work=lambda work: tracker.emit("work", spans=[[worker, *span] for worker, span in work]),
                    on_stuck=stuck_recorder(folder, config.tracking.report, tracker),
                ),
                client_states=start.client_states() if start is not None else None,
            )
    return Run(folder, config, job.method, network)


def _rewind(folder: RunFolder, start: Checkpoint | None) -> None:
    """Take the simulated clients' disks back to a checkpoint."""
    shutil.rmtree(folder.clients / RECEIVED, ignore_errors=True)
    StateStore(folder.clients).rewind(start.round if start is not None else -1)
    if start is not None:
        received = ReceivedTensors(folder.clients / RECEIVED)
        for name, value in start.part(SHARED).items():
            received.put(name, int(start.meta["shared"]["versions"][name]), value.numpy())
