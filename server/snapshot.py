"""The server's state at the end of a round: into a checkpoint, and back from one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from fedlab.engine.grids.base import SimulationGrid
from fedlab.protocol.messages import STATE
from fedlab.server.messaging.shared import members, ranges
from fedlab.server.state import ServerState
from fedlab.storage.checkpoint import NETWORK

SHARED, PRIVATE, STRATEGY, FLIGHT = "shared/", "server/", "strategy/", "flight/"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read back.

    Args:
        tensors: by name.
        meta: facts.
    """

    tensors: Mapping[str, Tensor]
    meta: Mapping[str, Any]

    @property
    def round(self) -> int:
        """Rounds finished."""
        return int(self.meta["round"])

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors below a prefix, without it."""
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}

    def client_states(self) -> dict[int, RecordDict]:
        """Flower's client states, for the engine."""
        found: dict[int, RecordDict] = {}
        for version, clients in self.meta["client_versions"]:
            state = RecordDict({STATE: ConfigRecord({"version": int(version)})})
            found |= dict.fromkeys(members(clients), state)
        return found


def snapshot(state: ServerState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of the server's state, from which `restore` makes the same state again."""
    tensors = {f"{NETWORK}{name}": value for name, value in state.network.items()}
    tensors |= {f"{SHARED}{name}": value for name, value in state.shared.items()}
    tensors |= {f"{PRIVATE}{name}": value for name, value in state.private.items()}
    tensors |= {f"{STRATEGY}{name}": torch.from_numpy(np.array(v)) for name, v in state.strategy.memory()}
    facts: dict[str, Any] = {
        "shared": state.shared.book(),
        "participation": state.selector.book(),
        "watch": state.watch.book(),
        "checkpoints": list(state.checkpoints),
    }
    if state.account is not None:
        facts["privacy"] = state.account.book()
    if state.flights is not None:
        tensors |= {f"{FLIGHT}{name}": value for name, value in state.flights.tensors().items()}
        facts |= state.flights.book()
    return tensors, facts


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
    if state.account is not None:
        state.account.restore(start.meta["privacy"])
    if state.flights is not None:
        state.flights.restore(placed(FLIGHT), start.meta)
    state.checkpoints = tuple(start.meta["checkpoints"])
    state.checkpointed(start.round)


def client_versions(grid: object) -> list[tuple[int, list[list[int]]]]:
    """Versions of the simulated clients' states, and which clients have each. Empty in a deployment."""
    if not isinstance(grid, SimulationGrid):
        return []
    holders: dict[int, list[int]] = {}
    for client, state in grid.client_states().items():
        record = state.get(STATE)
        if isinstance(record, ConfigRecord):
            holders.setdefault(int(str(record["version"])), []).append(client)
    return [(version, ranges(clients)) for version, clients in sorted(holders.items())]
