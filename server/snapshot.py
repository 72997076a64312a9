"""The server's whole state at the end of a round, as a checkpoint holds it, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from fedlab.engine.grid import SimulationGrid
from fedlab.engine.messages import STATE
from fedlab.errors import CheckpointError
from fedlab.exchange import NETWORK
from fedlab.server.strategies.average import AveragingStrategy

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
        return {
            int(client): RecordDict({STATE: ConfigRecord({"version": int(version)})})
            for client, version in self.meta["client_versions"].items()
        }


def snapshot(loop: FederatedLoop) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts from which `restore` goes on as if nothing had happened."""
    tensors = {f"{NETWORK}{name}": value for name, value in loop.state.items()}
    tensors |= {f"{SHARED}{name}": loop.shared[name] for name in loop.shared}
    tensors |= {f"{PRIVATE}{name}": value for name, value in loop.private.items()}
    tensors |= {f"{STRATEGY}{n}": torch.from_numpy(np.array(v)) for n, v in _strategy_arrays(loop.strategy)}
    meta = {
        "seed": loop.config.seed,
        "data": loop.setup.data_fingerprint,
        "shared": loop.shared.book(),
        "client_versions": _client_versions(loop.grid),
        "columns": loop.task.columns,
        "class_names": list(loop.task.class_names),
        "clients": loop.task.num_clients,
        "checkpoints": list(loop.records.checkpoints),
    }
    return tensors, meta


@torch.no_grad()
def restore(loop: FederatedLoop, start: Checkpoint) -> None:
    """Bring a fresh loop to where the checkpoint was made.

    Raises:
        CheckpointError: the data is not the one of the run.
    """
    if start.meta["data"] != loop.setup.data_fingerprint:
        raise CheckpointError(
            "checkpoint",
            f"data {start.meta['data']}",
            f"the data of this run: {loop.setup.data_fingerprint}",
            "the data files or the partition have changed since; bring them back, or start a new run",
        )
    for name, value in start.part(NETWORK).items():
        loop.state[name].copy_(value)
    shared = {name: value.to(loop.device) for name, value in start.part(SHARED).items()}
    loop.shared.restore(shared, start.meta["shared"])
    loop.private.update({name: value.to(loop.device) for name, value in start.part(PRIVATE).items()})
    _restore_strategy(loop.strategy, start.part(STRATEGY))
    loop.records.checkpoints = (*start.meta["checkpoints"], start.round)[-2:]


def _client_versions(grid: object) -> dict[str, int]:
    """Versions of the simulated clients' lasting states."""
    if not isinstance(grid, SimulationGrid):
        return {}
    found = {}
    for client, state in grid.client_states().items():
        record = state.get(STATE)
        if isinstance(record, ConfigRecord):
            found[str(client)] = int(str(record["version"]))
    return found


def _memories(strategy: object) -> Iterator[tuple[str, MutableMapping[str, np.ndarray]]]:
    """(attribute, arrays by name) of a Flower strategy's server state, such as FedAdam's moments."""
    for attribute, value in sorted(vars(strategy).items()):
        if isinstance(value, dict) and value and all(isinstance(array, np.ndarray) for array in value.values()):
            yield attribute, value


def _strategy_arrays(strategy: object) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(strategy, AveragingStrategy):
        yield from strategy.memory.items()
        return
    for attribute, arrays in _memories(strategy):
        for name, values in arrays.items():
            yield f"{attribute}/{name}", values


def _restore_strategy(strategy: object, tensors: Mapping[str, Tensor]) -> None:
    arrays = {name: value.numpy() for name, value in tensors.items()}
    if isinstance(strategy, AveragingStrategy):
        strategy.memory.update(arrays)
        return
    held: dict[str, dict[str, np.ndarray]] = {}
    for path, values in arrays.items():
        attribute, _, name = path.partition("/")
        held.setdefault(attribute, {})[name] = values
    for attribute, values_by_name in held.items():
        setattr(strategy, attribute, values_by_name)
