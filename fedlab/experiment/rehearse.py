"""Tries a configuration at its full size in a process of its own, and says what the whole run would take here."""

from __future__ import annotations

import multiprocessing
import os
import platform
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fedlab.clients.setup import ClientSetup
from fedlab.config import Config
from fedlab.data.federated import FederatedData
from fedlab.data.stand_in import Wanted
from fedlab.engine.cgroup import free_memory
from fedlab.engine.device import use_deterministic_kernels
from fedlab.engine.machine import cores, settle_process
from fedlab.engine.resident import peak_bytes, resident_bytes
from fedlab.errors import ConfigErrors, FedLabError
from fedlab.experiment.checks import Resolved, check_holdings, check_population, resolve
from fedlab.experiment.components import complete
from fedlab.experiment.configuration import configure, recorded
from fedlab.experiment.extrapolation import Size, extrapolated
from fedlab.experiment.footprint import Footprint, footprint
from fedlab.experiment.measuring import Meter
from fedlab.experiment.rehearsal import largest_client, preflight, stages_of
from fedlab.experiment.stand_ins import load_data, random_weights, without_missing_weights
from fedlab.probes import check_sets

_SHARE, _LOOK = 0.9, 0.05  # of the free memory that a rehearsal may take; seconds between two looks at it
_SMALLEST = 64

Report = dict[str, Any]


@dataclass(frozen=True)
class Reality:
    """What is known of data that is not here.

    Args:
        samples: training samples of all clients.
        tests: test samples of all clients.
        classes: number of classes.
        domains: number of domains, or of natural owners.
        held: names of the sets that the server holds.
    """

    samples: int | None = None
    tests: int | None = None
    classes: int = Wanted.classes
    domains: int = Wanted.domains
    held: tuple[str, ...] = ()


def rehearse(
    config: Config,
    reality: Reality | None = None,
    limit: int | None = None,
    tell: Callable[[str], None] = lambda phase: None,
) -> Report:
    """Try one client, one step of every stage, one aggregation and one evaluation in a process of its own.

    Args:
        config: a complete configuration.
        reality: what is known of data that is not here.
        limit: bytes of memory that the rehearsal may take; default: nine tenths of what is free.
        tell: is told each phase before it begins.

    Returns:
        Plain values: ``status`` (``rehearsed``; ``too large``: the least that it takes is more than the limit;
        ``stopped``: it was ended when it had taken the limit), ``replaced``, ``estimated``, ``measured``,
        ``extrapolated`` and ``not_counted``, the last three only if it was rehearsed. Sizes are bytes, times seconds.

    Raises:
        FedLabError: the configuration cannot be carried out, or the process ended without an answer.
    """
    free = free_memory()
    most = limit if limit is not None else None if free is None else int(_SHARE * free)
    context = multiprocessing.get_context("spawn")  # a fork would begin with the memory of this process
    ours, theirs = context.Pipe(duplex=False)
    arguments = (theirs, config.model_dump(mode="json"), reality or Reality(), most, free)
    child = context.Process(target=_work, args=arguments, name="rehearsal", daemon=True)
    child.start()
    theirs.close()
    report: Report = {}
    phase = "start"
    try:
        while True:
            taken = resident_bytes(child.pid or 0)
            if most is not None and taken is not None and taken > most:
                return {**report, "status": "stopped", "phase": phase, "taken": taken, "limit": most}
            if not ours.poll(_LOOK):
                continue
            try:
                kind, value = ours.recv()
            except EOFError:
                child.join()
                raise FedLabError(
                    f"the rehearsal ended without an answer (exit code {child.exitcode}) in the phase {phase!r}: if "
                    "that is -9, the system ended it for want of memory; rehearse with a lower --memory"
                ) from None
            if kind == "error":
                raise value
            if kind == "phase":
                phase = value
                tell(value)
            else:
                report.update(value)
                if kind == "done":
                    return report
    finally:
        child.kill()
        child.join()
        ours.close()


def _work(to: Connection, raw: Mapping[str, Any], reality: Reality, limit: int | None, free: int | None) -> None:
    """The rehearsal itself, in its own process. Whatever it raises is sent to the other one."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        config = configure(raw)
        settle_process(config.engine.threads)
        to.send(("done", trial(config, reality, limit, free, to.send)))
    except (FedLabError, ConfigErrors) as error:
        to.send(("error", error))
    except BaseException:
        to.send(("error", FedLabError(f"the rehearsal failed:\n{traceback.format_exc()}")))


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, because nobody would end it when it takes too much."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def trial(
    config: Config,
    reality: Reality,
    limit: int | None,
    free: int | None,
    send: Callable[[tuple[str, Any]], None] = lambda message: None,
) -> Report:
    """Try a configuration in this process; see `rehearse`.

    Args:
        config: a complete configuration.
        reality: what is known of data that is not here.
        limit: bytes that it may take; None sets no limit.
        free: bytes of memory that are free; None if that is not known.
        send: is sent pairs of ``phase`` and its name, and of ``estimate`` and what is known before anything is built.
    """
    send(("phase", "data"))
    config, weights = without_missing_weights(recorded(complete(config)))
    with random_weights(config) as random:
        resolved = resolve(config)
        federated, data = load_data(resolved, _wanted(config, reality))
        replaced = [*([data] if data else []), *weights]
        _check(resolved, federated)
        send(("phase", "estimate"))
        sizes = footprint(resolved.components, federated, peak_bytes())
        report = {**_facts(resolved, federated), "replaced": [*replaced, *random], **_estimate(resolved, sizes, free)}
        send(("estimate", report))
        if limit is not None and sizes.rehearsal > limit:
            return {**report, "status": "too large", "limit": limit}
        meter = Meter(resolved.strategy, resolved.device, config.engine.threads, lambda phase: send(("phase", phase)))
        setup = ClientSetup(resolved.components, federated, Path(), Path(os.devnull))
        preflight(setup, resolved.device, meter)
        told = _told(resolved, federated, meter, reality, bool(data))
        return {**report, "replaced": [*replaced, *random], "status": "rehearsed", **told}


def _wanted(config: Config, reality: Reality) -> Wanted:
    batch = config.training.batch_size
    return Wanted(
        train=max(2 * batch, _SMALLEST),
        test=max(2, min(config.evaluation.batch_size, batch)),
        classes=reality.classes,
        domains=reality.domains,
        held=reality.held,
    )


def _check(resolved: Resolved, federated: FederatedData) -> None:
    """What is checked before every run."""
    check_population(resolved, federated.num_clients, federated.unseen)
    check_holdings(resolved, federated)
    sets = {name: samples.columns for name, samples in federated.dataset.server.items()}
    check_sets(resolved.components.probes, sets, federated.num_classes)
    use_deterministic_kernels(resolved.device)


def _facts(resolved: Resolved, federated: FederatedData) -> Report:
    config, training = resolved.config, federated.num_clients - len(federated.unseen)
    return {
        "method": config.method.name,
        "title": resolved.components.method.title,
        "clients": training,
        "cohort": min(training, resolved.rules.sampler.size(training)),
        "rounds": config.federation.rounds,
        "workers": resolved.placement.workers,
        "machine": {
            "cores": cores(), "processor": platform.processor() or platform.machine(), "device": resolved.device.type,
            "torch_threads": config.engine.threads,
        },
    }  # fmt: skip


def _estimate(resolved: Resolved, sizes: Footprint, free: int | None) -> Report:
    workers, inline = resolved.placement.workers, resolved.config.engine.name == "inline"
    return {
        "estimated": {
            "parameters": dict(sizes.parameters),
            "weights": sizes.weights,
            "gradients": sizes.gradients,
            "optimizer": sizes.optimizer,
            "process": sizes.process,
            "worker": sizes.worker,
            "server": sizes.server,
            "rehearsal": sizes.rehearsal,
            "run": sizes.of_run(workers, inline),
            "free": free,
        }
    }


def _told(resolved: Resolved, federated: FederatedData, meter: Meter, reality: Reality, replaced: bool) -> Report:
    config, components = resolved.config, resolved.components
    stages = stages_of(components.method, config.federation.rounds)
    training = [client for client in range(federated.num_clients) if client not in federated.unseen]
    tested = range(federated.num_clients)
    samples = reality.samples if replaced else sum(map(federated.num_train, training))
    tests = reality.tests if replaced else sum(map(federated.num_test, tested))
    size = Size(
        rounds=[stage.rounds for stage in stages],
        training=[components.stages.training(stage.plan) for stage in stages],
        cohort=min(len(training), resolved.rules.sampler.size(len(training))),
        workers=resolved.placement.workers,
        examples=None if samples is None else samples / len(training),
        tests=tests,
        tested=federated.num_test(largest_client(federated)),
        evaluations=-(-config.federation.rounds // config.evaluation.every),
    )
    result = extrapolated(meter.stages, size)
    peaks = {who: {"bytes": peak.bytes, "gpu": peak.gpu, "phase": peak.phase} for who, peak in meter.peaks.items()}
    memory = meter.peaks["worker"].bytes * size.workers + meter.peaks["server"].bytes
    if config.engine.name == "inline":
        memory = max(peak.bytes for peak in meter.peaks.values())
    return {
        "measured": {
            **peaks,
            "apart": meter.apart,
            "clock": meter.clock,
            "stages": [vars(stage) for stage in meter.stages],
        },
        "extrapolated": {**result.to_json(), "memory": memory, "samples": samples},
        "not_counted": list(result.missing),
    }
