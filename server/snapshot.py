"""The server's state at the end of a round: into a checkpoint, and back from one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from fedlab.engine.grids.base import SimulationGrid
from fedlab.errors import CheckpointError
from fedlab.protocol.messages import STATE
from fedlab.server.messaging.shared import SharedTensors, members, ranges, state_in
from fedlab.server.state import ServerState
from fedlab.storage.checkpoint import NETWORK

SHARED, PRIVATE, STRATEGY, FLIGHT, CALLBACK = "shared/", "server/", "strategy/", "flight/", "callback/"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read back.

    Args:
        tensors: by name.
        meta: facts.
    """

    tensors: Mapping[str, Tensor]
    meta: Mapping[str, Any]

    def check(self) -> None:
        """Check that the facts are those of a run's checkpoint.

        Raises:
            CheckpointError: facts are missing, or they are no such facts. Only a checkpoint of an earlier version of
                FedLab, which wrote no hash of the facts, can be damaged like this.
        """
        try:
            known = self.round >= 1 and all(version >= 0 for version in self.versions().values())
            known &= set(self.meta["shared"]["versions"]) == set(self.part(SHARED))
            SharedTensors().restore({}, self.meta["shared"])
            tuple(map(int, self.meta["checkpoints"]))
            known &= isinstance(self.meta.get("callbacks", {}), dict) and self.stopped in (None, self.round)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            known, reason = False, f" ({type(error).__name__}: {error})"
        else:
            reason = ""
        if not known:
            fix = f"it was changed: use an earlier checkpoint{reason}"
            raise CheckpointError("checkpoint", f"round {self.meta.get('round')}", "the facts of a checkpoint", fix)

    @property
    def round(self) -> int:
        """Rounds finished."""
        return int(self.meta["round"])

    @property
    def stopped(self) -> int | None:
        """The round after which a callback has ended the run early; None if none has."""
        found = self.meta.get("callbacks", {}).get("stopped")
        return None if found is None else int(found["round"])

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors below a prefix, without it."""
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}

    def versions(self) -> dict[int, int]:
        """Version of each client's state, for the clients that have one."""
        return {client: int(v) for v, clients in self.meta["client_versions"] for client in members(clients)}

    def members(self) -> list[int]:
        """The clients that a deployed run has; empty if the checkpoint does not say."""
        return list(members(self.meta.get("members", [])))

    def client_states(self) -> dict[int, RecordDict]:
        """Flower's client states, for the engine. Clients with equal versions share one object."""
        found: dict[int, RecordDict] = {}
        for version, clients in self.meta["client_versions"]:
            state = RecordDict({STATE: ConfigRecord({"version": int(version)})})
            found |= dict.fromkeys(members(clients), state)
        return found


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint of the server's state consists of.

    Args:
        tensors: by name.
        facts: facts that can be serialized as JSON.
        lasting: names of the tensors that are not expected to change until the next checkpoint.
        copies: names of shared tensors that equal network state, with the name of that state.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    lasting: frozenset[str]
    copies: Mapping[str, str]


def snapshot(state: ServerState) -> Snapshot:
    """The server's state, from which `restore` makes the same state again."""
    copies = {
        f"{SHARED}{name}": f"{NETWORK}{held}"
        for name, value in state.shared.items()
        if (held := state_in(name)) is not None and torch.equal(value, state.network[held])
    }
    tensors = {f"{NETWORK}{name}": value for name, value in state.network.items()}
    tensors |= {key: value for name, value in state.shared.items() if (key := f"{SHARED}{name}") not in copies}
    tensors |= {f"{PRIVATE}{name}": value for name, value in state.private.items()}
    tensors |= {f"{STRATEGY}{name}": torch.from_numpy(np.array(v)) for name, v in state.strategy.memory()}
    facts: dict[str, Any] = {
        "shared": state.shared.book(),
        "participation": state.selector.book(),
        "watch": state.watch.book(),
        "checkpoints": list(state.checkpoints),
    }
    tensors |= {f"{CALLBACK}{name}": value for name, value in state.callbacks.tensors().items()}
    if book := state.callbacks.book():
        facts["callbacks"] = book
    if state.assets:
        facts["assets"] = dict(state.assets)
    if state.account is not None:
        facts["privacy"] = state.account.book()
    if state.flights is not None:
        tensors |= {f"{FLIGHT}{name}": value for name, value in state.flights.tensors().items()}
        facts |= state.flights.book()
    return Snapshot(tensors, facts, frozenset(f"{NETWORK}{name}" for name in state.lasting), copies)


def changing(state: ServerState) -> Iterator[tuple[str, Tensor]]:
    """All tensors that a round may have changed, under their names in a checkpoint."""
    yield from ((f"{NETWORK}{name}", value) for name, value in state.network.items() if name not in state.lasting)
    yield from ((f"{SHARED}{name}", value) for name, value in state.shared.items())
    yield from ((f"{PRIVATE}{name}", value) for name, value in state.private.items())
    yield from ((f"{STRATEGY}{name}", torch.from_numpy(np.array(value))) for name, value in state.strategy.memory())
    if state.flights is not None:
        yield from ((f"{FLIGHT}{name}", value) for name, value in state.flights.tensors().items())


@torch.no_grad()
def restore(state: ServerState, start: Checkpoint, device: torch.device) -> None:
    """Put the state of a checkpoint into a fresh state.

    Args:
        state: of a run that has not begun.
        start: the checkpoint.
        device: where tensors go.
    """

    def placed(prefix: str) -> dict[str, Tensor]:
        return {name: value.to(device) for name, value in start.part(prefix).items()}

    for name, value in start.part(NETWORK).items():
        state.network[name].copy_(value)
    state.shared.restore(placed(SHARED), start.meta["shared"])
    state.private.update(placed(PRIVATE))
    state.strategy.restore({name: value.numpy() for name, value in start.part(STRATEGY).items()})
    state.selector.restore(start.meta["participation"])
    state.watch.restore(start.meta.get("watch", {}))
    state.callbacks.restore(start.meta.get("callbacks", {}), start.part(CALLBACK))
    if state.account is not None:
        state.account.restore(start.meta["privacy"])
    if state.flights is not None:
        state.flights.restore(placed(FLIGHT), start.meta)
    state.checkpoints = tuple(start.meta["checkpoints"])
    state.checkpointed(start.round)
    state.versions.update(start.versions())


def client_versions(grid: object, deployed: Mapping[int, int]) -> list[tuple[int, list[list[int]]]]:
    """Versions of the clients' states, and which clients have each.

    Args:
        grid: the grid, which keeps the versions in a simulation.
        deployed: the versions by client in a deployment.
    """
    holders: dict[int, list[int]] = {}
    for client, version in _versions_of(grid).items() if isinstance(grid, SimulationGrid) else deployed.items():
        holders.setdefault(version, []).append(client)
    return [(version, ranges(clients)) for version, clients in sorted(holders.items())]


def _versions_of(grid: SimulationGrid) -> dict[int, int]:
    records = ((client, state.get(STATE)) for client, state in grid.client_states().items())
    return {client: int(str(held["version"])) for client, held in records if isinstance(held, ConfigRecord)}
