"""A machine that lost its disk and its memory in mid-run is served again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.serverapp import Grid

import fedlab
from fedlab.clients.server_tensors import ReceivedTensors
from fedlab.config import Config
from fedlab.engine.grids.base import SimulationGrid
from fedlab.server.loop import FederatedLoop
from fedlab.server.strategies.average import FedAvg
from fedlab.server.strategies.rounds import Arrays, TrainingRound

Settings = Callable[..., Config]
FEDLGD = {"name": "fedlgd", "ipc_local": 2, "ipc_global": 2, "warmup_steps": 2, "dm_steps": 1, "gm_steps": 2}


class Disaster(FedAvg):
    """Averages, and before round 2 takes everything the machine of the clients knows."""

    def __init__(self, folder: Path, memories: list[ReceivedTensors], grids: list[Grid]) -> None:
        super().__init__()
        self.folder, self.memories, self.grids = folder, memories, grids
        self.lost: list[Path] = []

    def begin(self, round: TrainingRound, current: Arrays) -> None:
        if round.number == 2:
            (grid,) = self.grids
            assert isinstance(grid, SimulationGrid)
            grid.restore_client_states({})
            self.lost = list(self.folder.glob("*/clients/*"))
            for folder in self.lost:
                shutil.rmtree(folder)
            for memory in self.memories:
                memory._ready.clear()  # what a new process would not have


@pytest.mark.parametrize("updates", [0, 2])
def test_clients_start_anew_and_are_sent_the_global_images_again(
    updates: int, settings: Settings, samples: fedlab.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to round 2 a client's images are those of its warm-up, which the same data gives again: equal weights."""
    config = settings(method={**FEDLGD, "spacing": 1, "updates": updates}, federation__rounds=2)
    whole = fedlab.run(config, data=samples)
    memories: list[ReceivedTensors] = []
    make = ReceivedTensors.__init__

    def remembered(self: ReceivedTensors, root: Path, device: torch.device | str = "cpu") -> None:
        make(self, root, device)
        memories.append(self)

    monkeypatch.setattr(ReceivedTensors, "__init__", remembered)
    grids: list[Grid] = []
    run = FederatedLoop.run

    def watched(self: FederatedLoop, *arguments: Any) -> None:
        grids.append(self.grid)
        run(self, *arguments)

    monkeypatch.setattr(FederatedLoop, "run", watched)
    strategy = Disaster(Path(config.tracking.folder), memories, grids)
    lossy = fedlab.run(config, strategy=strategy, data=samples)
    assert strategy.lost
    assert [round["clients"] for round in lossy.history.rounds] == [[0, 1, 2, 3]] * 2
    for name, value in whole.model.state_dict().items():
        assert torch.equal(lossy.model.state_dict()[name], value), name
    images = 4 * 2 * 3 * 8 * 8 * 4  # clients · images per class · classes · pixels · bytes
    assert lossy.history.rounds[1]["bytes"]["shared"]["down"] == images
