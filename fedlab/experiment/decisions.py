"""Decides, before a run starts, what the configuration leaves to the machine. The decisions hold for the whole run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from fedlab.assembly import Components
from fedlab.clients.setup import ClientSetup
from fedlab.clients.vectorized.runtime import VectorizedRuntime
from fedlab.clients.vectorized.training import refusal
from fedlab.clients.work import WorkRequest
from fedlab.engine.memory import peak_of
from fedlab.errors import ConfigError
from fedlab.experiment.overdue import named_after
from fedlab.experiment.rehearsal import preflight
from fedlab.privacy import DPSGD
from fedlab.storage.temporary import temporary_folder

_AUTO, _PROBED_STEPS, _REPEATS = 16, 8, 2


@dataclass(frozen=True)
class Tuning:
    """The decisions of a run.

    Args:
        components: components whose configuration holds all decisions.
        warnings: settings that have no effect on this machine or with this method, as sentences.
        client_bytes: bytes of GPU memory that one client, or one batch of clients, took at most; None on the CPU.
        probe: fields of the event ``vectorize``: the number of clients in a batch (0 for no batches), and the
            milliseconds that a client took alone and in a batch. Empty if nothing was measured.
        keeps_state: whether clients keep tensors from one round to the next.
    """

    components: Components
    warnings: tuple[str, ...] = ()
    client_bytes: int | None = None
    probe: dict[str, float] = field(default_factory=dict)
    keeps_state: bool = False


def tune(setup: ClientSetup, device: torch.device, *, decided: bool = False) -> Tuning:
    """Run the preflight on one client in this process, then decide what the configuration leaves open.

    These are whether networks are compiled (``training.compile``) and whether clients are trained as one batch
    (``engine.vectorize``).

    Args:
        setup: what the clients of the run need.
        device: the device to compute on.
        decided: whether the configuration is that of a run that is resumed, whose decisions must not change.

    Raises:
        ConfigError: a run that is resumed cannot be carried out here with the decisions that it began with.
        FedLabError: the preflight has taken longer than ``federation.timeout``.
        Exception: whatever `preflight` raises.
    """
    components, warnings = _with_compiler(setup.components, device)
    if decided and components is not setup.components:
        raise ConfigError("training.compile", True, "a machine like the one the run began on", warnings[0])
    setup = replace(setup, components=components)
    with named_after(setup.config.federation.timeout, setup.method):
        rehearsal, peak = peak_of(lambda: preflight(setup, device), device)
    rehearsals, keeps_state = rehearsal.requests, rehearsal.keeps_state
    asked = setup.config.engine.vectorize
    if asked == "off":
        return Tuning(components, tuple(warnings), peak, keeps_state=keeps_state)
    clients = [c for c in range(setup.federated.num_clients) if c not in setup.federated.unseen]
    clients = clients[: _AUTO if asked == "auto" else asked]
    reason, batch_peak = peak_of(lambda: _reason_against(setup, device, rehearsals, clients), device)
    if reason is not None:
        if decided:
            raise ConfigError("engine.vectorize", asked, "clients that can still be trained as one batch", reason)
        warnings.append(f"engine.vectorize = {asked}: clients are trained one after the other, because {reason}")
        return Tuning(_fixed(components, 0), tuple(warnings), peak, keeps_state=keeps_state)
    if asked != "auto":
        return Tuning(components, tuple(warnings), batch_peak, keeps_state=keeps_state)
    alone, together = _milliseconds(setup, device, rehearsals[0], clients)
    size = _AUTO if together < alone else 0
    probe = {"clients": size, "alone": alone, "together": together}
    return Tuning(_fixed(components, size), tuple(warnings), batch_peak if size else peak, probe, keeps_state)


def _fixed(components: Components, clients: int) -> Components:
    return _changed(components, "engine.vectorize", clients or "off")


def _changed(components: Components, key: str, value: object) -> Components:
    return components.with_config(components.config.with_overrides({key: value}))


def _with_compiler(components: Components, device: torch.device) -> tuple[Components, list[str]]:
    """Turn ``training.compile`` off if torch cannot compile here or the run uses DP-SGD, and return a warning if so."""
    if not components.config.training.compile:
        return components, []
    if isinstance(components.privacy, DPSGD):
        warning = "training.compile: networks are not compiled, because DP-SGD takes them apart"
        return _changed(components, "training.compile", False), [warning]
    try:
        trial = nn.Linear(2, 2).to(device)
        trial.compile()
        trial(torch.zeros(1, 2, device=device)).sum().backward()
    except Exception as error:  # each stage of torch's compiler raises errors of its own kind
        first = str(error).strip().splitlines()[0]
        warning = f"training.compile: networks are not compiled, because torch.compile does not work here: {first}"
        return _changed(components, "training.compile", False), [warning]
    return components, []


def _reason_against(
    setup: ClientSetup, device: torch.device, rehearsals: Sequence[WorkRequest], clients: Sequence[int]
) -> str | None:
    """The reason why clients cannot be trained as one batch; None if a trial step in every stage of rounds succeeds."""
    config = setup.config
    if len(clients) < 2:
        return "there is a single client"
    if config.engine.name == "flower":
        return "Flower's simulation hands out one client at a time"
    if config.training.compile:
        return "training.compile is on"
    if isinstance(setup.components.privacy, DPSGD):
        return "DP-SGD batches the examples of each already"
    for rehearsal in rehearsals:
        plan = rehearsal.instructions.plan
        found = refusal(setup.method, setup.components.stages.training(plan), plan)
        if found is not None:
            return found
    with temporary_folder("tuning") as folder:
        runtime = VectorizedRuntime(replace(setup, preflight=True, state_root=folder), device)
        for rehearsal in rehearsals:
            error = _try(runtime, rehearsal, clients)
            if error is not None:
                return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _try(runtime: VectorizedRuntime, rehearsal: WorkRequest, clients: Sequence[int]) -> Exception | None:
    try:
        _vectorized(runtime, rehearsal, clients)
    except Exception as error:
        return error
    return None


def _vectorized(runtime: VectorizedRuntime, rehearsal: WorkRequest, clients: Sequence[int]) -> None:
    runtime.vectorize(dict.fromkeys(clients), rehearsal)
    _one_by_one(runtime, rehearsal, clients)


def _one_by_one(runtime: VectorizedRuntime, rehearsal: WorkRequest, clients: Sequence[int]) -> None:
    for client in clients:
        runtime.train(client, rehearsal, None)
    if runtime.device.type == "cuda":
        torch.cuda.synchronize()


def _milliseconds(
    setup: ClientSetup, device: torch.device, rehearsal: WorkRequest, clients: Sequence[int]
) -> tuple[float, float]:
    """Measure the milliseconds that a client takes alone and as part of a batch, over at most 8 local steps.

    Each way is repeated, and the fastest repetition counts.
    """
    steps = {str(client): _PROBED_STEPS for client in clients}
    rehearsal = replace(rehearsal, instructions=replace(rehearsal.instructions, steps=steps))
    ways = (_one_by_one, _vectorized)
    best = [float("inf")] * len(ways)
    with temporary_folder("tuning") as folder:
        runtime = VectorizedRuntime(replace(setup, state_root=folder), device)
        for repeat in range(1 + _REPEATS):  # the first is not timed: it fills caches and loads kernels
            for way, work in enumerate(ways):
                began = time.perf_counter()
                work(runtime, rehearsal, clients)
                if repeat:
                    best[way] = min(best[way], (time.perf_counter() - began) * 1000 / len(clients))
    return best[0], best[1]
