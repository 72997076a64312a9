"""The server's whole state at the end of a round, as a checkpoint holds it, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedlab.engine.grid import SimulationGrid
from fedlab.protocol.messages import STATE, to_numpy, to_record
from fedlab.server.messaging.shared import members, ranges
from fedlab.server.strategies.average import AveragingStrategy
from fedlab.storage.checkpoint import NETWORK

if TYPE_CHECKING:
    from fedlab.server.loop import FederatedLoop

SHARED, PRIVATE, STRATEGY = "shared/", "server/", "strategy/"


@dataclass(frozen=True)
class Checkpoint:
    """What `snapshot` gave, read back.

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


def snapshot(loop: FederatedLoop) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts from which `restore` goes on as if nothing had happened."""
    tensors = {f"{NETWORK}{name}": value for name, value in loop.state.items()}
    tensors |= {f"{SHARED}{name}": loop.shared[name] for name in loop.shared}
    tensors |= {f"{PRIVATE}{name}": value for name, value in loop.private.items()}
    tensors |= {f"{STRATEGY}{n}": torch.from_numpy(np.array(v)) for n, v in _strategy_arrays(loop.strategy)}
    own, facts = loop.memory()
    tensors |= own
    meta = {
        **facts,
        "seed": loop.config.seed,
        "data": loop.setup.data_fingerprint,
        "shared": loop.shared.book(),
        "client_versions": _client_versions(loop.grid),
        "columns": loop.task.columns,
        "class_names": list(loop.task.class_names),
        "vocabulary": list(loop.task.vocabulary),
        "clients": loop.task.num_clients,
        "checkpoints": list(loop.records.checkpoints),
    }
    return tensors, meta


@torch.no_grad()
def restore(loop: FederatedLoop, start: Checkpoint) -> None:
    """Bring a fresh loop to where the checkpoint was made."""
    for name, value in start.part(NETWORK).items():
        loop.state[name].copy_(value)
    shared = {name: value.to(loop.device) for name, value in start.part(SHARED).items()}
    loop.shared.restore(shared, start.meta["shared"])
    loop.private.update({name: value.to(loop.device) for name, value in start.part(PRIVATE).items()})
    loop.recall(start)
    _restore_strategy(loop.strategy, start.part(STRATEGY))
    loop.records.checkpoints = (*start.meta["checkpoints"], start.round)[-2:]


def _client_versions(grid: object) -> list[tuple[int, list[list[int]]]]:
    """Versions of the simulated clients' lasting states, and who has each."""
    if not isinstance(grid, SimulationGrid):
        return []
    holders: dict[int, list[int]] = {}
    for client, state in grid.client_states().items():
        record = state.get(STATE)
        if isinstance(record, ConfigRecord):
            holders.setdefault(int(str(record["version"])), []).append(client)
    return [(version, ranges(clients)) for version, clients in sorted(holders.items())]


def _strategy_arrays(strategy: object) -> Iterator[tuple[str, np.ndarray]]:
    """A strategy's server state: FedLab's own hold it in one place, of Flower's every attribute that holds arrays."""
    if isinstance(strategy, AveragingStrategy):
        yield from strategy.memory.items()
        return
    for attribute, value in sorted(vars(strategy).items()):
        if isinstance(value, ArrayRecord):
            yield from _numbered(f"{attribute}/record", to_numpy(value).items())
        elif isinstance(value, dict) and all(isinstance(array, np.ndarray) for array in value.values()):
            yield from _numbered(f"{attribute}/dict", value.items())
        elif isinstance(value, list) and all(isinstance(array, np.ndarray) for array in value):
            yield from _numbered(f"{attribute}/list", (("", values) for values in value))


def _numbered(prefix: str, arrays: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    # Flower's strategies pair arrays by their order
    return ((f"{prefix}/{index:06d}/{name}", values) for index, (name, values) in enumerate(arrays))


def _restore_strategy(strategy: object, tensors: Mapping[str, Tensor]) -> None:
    arrays = {name: value.numpy() for name, value in sorted(tensors.items())}
    if isinstance(strategy, AveragingStrategy):
        strategy.memory.update(arrays)
        return
    held: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for path, values in arrays.items():
        attribute, kind, index, name = path.split("/", 3)
        held.setdefault((attribute, kind), {})[name or index] = values
    make: dict[str, Callable[[dict[str, np.ndarray]], object]] = {
        "record": to_record,
        "dict": dict,
        "list": lambda found: list(found.values()),
    }
    for (attribute, kind), found in held.items():
        setattr(strategy, attribute, make[kind](found))
