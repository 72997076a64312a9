"""From a configuration to a finished run folder, and back."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlab.assembly import make_method
from fedlab.clients.app import ClientAppFactory
from fedlab.clients.runtime import RECEIVED, ClientSetup
from fedlab.clients.server_tensors import ReceivedTensors
from fedlab.clients.state import StateStore
from fedlab.config import Config, parse
from fedlab.data.federated import FederatedData
from fedlab.data.samples import Dataset, on_device
from fedlab.engine import check_engine, launch, started
from fedlab.engine.device import choose_device
from fedlab.errors import CheckpointError, ConfigError
from fedlab.experiment.checks import check_config, check_data, check_population, left_out
from fedlab.experiment.components import complete
from fedlab.experiment.configuration import code_of, recorded
from fedlab.experiment.configuration import configure as configure
from fedlab.experiment.configuration import method_folder as method_folder
from fedlab.experiment.decisions import Tuning, tune
from fedlab.experiment.given import record_data, record_method, record_strategy
from fedlab.experiment.result import Run, load
from fedlab.method import Method
from fedlab.report.page import report_quietly
from fedlab.report.record import RunRecord
from fedlab.server.asynchronous import make_loop
from fedlab.server.loop import FederatedLoop
from fedlab.server.messaging.profiles import known_profiles
from fedlab.server.privacy import check_rounds
from fedlab.server.setup import ServerSetup
from fedlab.server.snapshot import SHARED, Checkpoint
from fedlab.server.strategies import make_strategy
from fedlab.storage.cache import ResultCache
from fedlab.storage.checkpoint import latest_checkpoint, load_checkpoint
from fedlab.storage.paths import cache_folder
from fedlab.storage.runfolder import RunFolder, write_atomic
from fedlab.tracking.recording import open_session, refuse_full_disk

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import Strategy

log = logging.getLogger(__name__)


def run(
    config: str | Path | Mapping[str, Any] | Config,
    *,
    method: Method | type[Method] | None = None,
    strategy: Strategy | type[Strategy] | None = None,
    data: Dataset | None = None,
    overrides: Sequence[str] = (),
    until: int | None = None,
    command: str | None = None,
) -> Run:
    """Run a federation and write its run folder.

    Args:
        config: a built-in method's name, a YAML file, a mapping or a `Config`; relative paths in a file start from its
            folder, others from the current one.
        method: a method of your own; its settings are taken from ``config.method`` where it is a class.
        strategy: a Flower strategy of your own, object or class.
        data: samples of your own instead of ``config.data.source``; the run records their name and fingerprint.
        overrides: ``dotted.key=value`` strings.
        until: stop after this round; `resume` goes on.
        command: how to repeat this run, shown in the report.

    Raises:
        InputError, ConfigErrors: something is wrong with the input; no worker was started.
        ClientError: a client failed.
    """
    job = ready(configure(config, overrides), method, strategy, data)
    tracking = job.config.tracking
    with started(job.config.engine, job.tuning.client_bytes):
        # from here on a run exists; all that can be refused has been
        folder = RunFolder.create(Path(tracking.folder), tracking.name, job.config.method.name, job.config.seed)
        with folder.writing():
            write_atomic(folder.partition, json.dumps(_facts(job), indent=1))
            return _execute(job, folder, until, command)


def _facts(job: Job) -> dict[str, Any]:
    """Who holds what, and the data's identity, which is written before the first round."""
    data = job.federated.dataset
    held = {name: len(samples) for name, samples in data.server.items()}
    told = {"name": data.name, "fingerprint": data.fingerprint, "train": len(data.train), "test": len(data.test)}
    summary = job.federated.summary(job.config.federation.rounds)
    return {**summary, "data": {**told, "server": held}, "fingerprint": job.federated.partition.fingerprint}


def resume(
    path: str | Path,
    *,
    rounds: int | None = None,
    until: int | None = None,
    method: Method | type[Method] | None = None,
    strategy: Strategy | type[Strategy] | None = None,
    data: Dataset | None = None,
    overrides: Sequence[str] = (),
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
        data: as given to `run`.
        overrides: changes below ``engine`` and ``tracking`` that do not change results.
        command: how this was started.

    Raises:
        CheckpointError: no run folder, another data set, nothing left to do, or another process is at it.
        ConfigError: an override that would change results, or another method or strategy than the run began with.
        DataError: other data than the run began with, or none where it was given some.
    """
    run = load(path)
    for override in overrides:
        if not override.startswith(("engine.", "tracking.")):
            raise ConfigError("--set", override, "a key below engine or tracking", "other keys would change the result")
        if override.startswith("engine.vectorize"):
            raise ConfigError(
                "--set", override, "the value that the run began with", "the last bits of its result depend on it"
            )
    if rounds is not None:
        check_rounds(run.config, rounds)
    changes = [*overrides, *([f"federation.rounds={rounds}"] if rounds is not None else [])]
    job = ready(configure(run.config, changes), method, strategy, data, described=True)
    found = latest_checkpoint(run.folder.checkpoints)
    start = None if found is None else Checkpoint(*load_checkpoint(found))
    if start is not None and start.round >= min(until or job.config.federation.rounds, job.config.federation.rounds):
        raise CheckpointError(
            "run", str(path), f"rounds left to do, but all {start.round} are done", "ask for more rounds with --rounds"
        )
    fingerprint = job.federated.partition.fingerprint
    begun = start.meta["data"] if start is not None else RunRecord(run.folder, run.history).partition.get("fingerprint")
    if begun not in (None, fingerprint):
        raise CheckpointError(
            "run",
            f"{path} with data {begun}",
            f"the same data; it is {fingerprint} now",
            "the data files or the partition have changed since: bring them back, or start a new run",
        )
    with started(job.config.engine, job.tuning.client_bytes), run.folder.writing():
        _rewind(run.folder, start)
        return _execute(job, run.folder, until, command, start, resumed=True)


@dataclass(frozen=True)
class Job:
    """A run that can start: everything that could be refused has been looked at."""

    config: Config
    method: Method
    strategy: Strategy
    federated: FederatedData
    warnings: Sequence[str]
    preflight_seconds: float
    tuning: Tuning


def ready(
    config: Config,
    method: Method | type[Method] | None = None,
    strategy: Strategy | type[Strategy] | None = None,
    data: Dataset | None = None,
    described: bool = False,
) -> Job:
    """Check everything and try one client in this process: all that a run does before its folder and workers exist.

    Args:
        config: the configuration.
        method: a method of the user's own.
        strategy: a strategy of the user's own.
        data: samples of the user's own.
        described: the configuration describes the user's own objects already.
    """
    chosen = _method(config, method)
    if method is not None:
        config = record_method(config, chosen, resumed=described)
    rule = None if strategy is None else make_strategy(config.federation.strategy, strategy)
    if rule is not None:
        settings = config.federation.strategy.settings if isinstance(strategy, type) else None
        config = record_strategy(config, rule, settings, resumed=described)
    if data is not None:
        config = record_data(config, data, resumed=described)
    config = recorded(complete(config))
    warnings = check_config(config, method=chosen, strategy=rule)
    federated = check_data(config, data)
    rule = rule if rule is not None else make_strategy(config.federation.strategy)
    check_population(config, rule, federated.num_clients, federated.unseen)
    check_engine(config.engine)
    began = time.perf_counter()
    tuning = tune(_setup(config, chosen, federated, Path()), decided=described)
    warnings += [*federated.warnings, *tuning.warnings]
    return Job(tuning.config, chosen, rule, federated, warnings, time.perf_counter() - began, tuning)


def _setup(config: Config, method: Method, federated: FederatedData, state_root: Path) -> ClientSetup:
    cache = cache_folder(config.tracking.cache).resolve()
    return ClientSetup(config=config, method=method, federated=federated, state_root=state_root, cache_root=cache)


def _execute(
    job: Job,
    folder: RunFolder,
    until: int | None,
    command: str | None,
    start: Checkpoint | None = None,
    resumed: bool = False,
) -> Run:
    config, federated = job.config, job.federated
    setup = _setup(config, job.method, federated, folder.clients.resolve())
    device = choose_device(config.engine.device)
    loops: list[FederatedLoop] = []
    try:
        with open_session(
            config,
            folder,
            engine=config.engine.name,
            workers=check_engine(config.engine, job.tuning.client_bytes).workers,
            model=job.method.own_model,
            command=command,
            code=code_of(config),
            resumed=(start.round if start is not None else 0) if resumed else None,
        ) as tracker:
            for warning in job.warnings if start is None else ():
                tracker.emit("warning", message=warning)
            for left in left_out(config, federated) if start is None else ():
                tracker.emit("left_out", **left.fields())
            if job.tuning.probe and start is None:
                tracker.emit("vectorize", **job.tuning.probe)
            tracker.emit("phase_end", round=0, phase="preflight", seconds=job.preflight_seconds)
            server = ServerSetup(
                config=config,
                method=job.method,
                strategy=job.strategy,
                tracker=tracker,
                folder=folder,
                denormalize=federated.denormalize,
                data={name: on_device(federated.server(name), device) for name in federated.dataset.server},
                data_fingerprint=federated.partition.fingerprint,
                cache=ResultCache(setup.cache_root, lambda: federated.server_fingerprint, config.seed, device),
                client_states=StateStore(setup.state_root),
                profiles=known_profiles(federated, job.method),
                holds_out=bool(federated.unseen),
                client_test=lambda client: on_device(federated.client(client).test, device),
            )

            def main(grid: Grid, context: Context) -> None:
                loops.append(make_loop(grid, server))
                loops[-1].run(until, start)

            launch(
                config.engine,
                main,
                ClientAppFactory(setup),
                federated.num_clients,
                {},
                on_progress=lambda done, total: loops[-1].progress(done, total) if loops else None,
                on_work=lambda work: tracker.emit("work", spans=[[worker, *span] for worker, span in work]),
                client_states=start.client_states() if start is not None else None,
                fail_fast=config.federation.on_client_error == "stop",
                client_bytes=job.tuning.client_bytes,
            )
    except BaseException as problem:
        refuse_full_disk(problem, folder)
        problem.add_note(f"run folder: {folder.path}, report: {folder.report}")
        raise
    finally:
        report_quietly(folder)
    return Run(folder, config, job.method)


def _rewind(folder: RunFolder, start: Checkpoint | None) -> None:
    """Take the simulated clients' disks back to a checkpoint; damaged later checkpoints go."""
    round = start.round if start is not None else 0
    for path in folder.checkpoints.glob("round_*"):
        if int(path.name.removeprefix("round_")) > round:
            shutil.rmtree(path)
    shutil.rmtree(folder.clients / RECEIVED, ignore_errors=True)
    StateStore(folder.clients).rewind(round if start is not None else -1)
    if start is not None:
        received = ReceivedTensors(folder.clients / RECEIVED)
        for name, value in start.part(SHARED).items():
            received.put(name, int(start.meta["shared"]["versions"][name]), value.numpy())


def _method(config: Config, method: Method | type[Method] | None) -> Method:
    if method is None:
        return make_method(config.method)
    if isinstance(method, Method):
        return method
    if isinstance(method, type) and issubclass(method, Method):
        return method(parse(method.Settings, config.method.settings, "method"))
    raise ConfigError("method", method, "a fedlab.Method, object or class")
