"""The least memory that a run takes, computed from the sizes of its networks before any of them is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from fedlab.assembly import Components, build_networks, make_task
from fedlab.config import TrainingConfig
from fedlab.data.federated import FederatedData
from fedlab.experiment.rehearsal import stages_of
from fedlab.method.exchange import Exchanges

_SUM_BYTES, _FLOAT_BYTES = 8, 4  # of a number in the exact sum of the replies, and in a network
_MOMENTS = {"adam": 2, "adamw": 2}


@dataclass(frozen=True)
class Footprint:
    """Sizes of a run, of which none depends on a batch.

    Args:
        parameters: number of parameters of each network, by role.
        weights: bytes of all network state.
        gradients: bytes of the gradients, in the stage with the most.
        optimizer: bytes of the optimizer's moments in that stage.
        down: bytes of network state that a client is sent in each round, in the stage with the most.
        up: bytes of network state that it sends.
        process: bytes that a process takes before there are networks: its libraries, and the data.
    """

    parameters: Mapping[str, int]
    weights: int
    gradients: int
    optimizer: int
    down: int
    up: int
    process: int

    @property
    def worker(self) -> int:
        """Least bytes of a process that trains clients: what arrived, networks, gradients and moments."""
        return self.process + self.weights + self.down + self.gradients + self.optimizer

    @property
    def server(self) -> int:
        """Least bytes of the server: networks, what it sent, one reply, and the sum of the replies in float64."""
        return self.process + self.weights + self.down + self.up + self.up * _SUM_BYTES // _FLOAT_BYTES

    @property
    def rehearsal(self) -> int:
        """Least bytes of a rehearsal, in which worker and server are one process."""
        return self.worker + self.down + self.up

    def of_run(self, workers: int, inline: bool) -> int:
        """Least bytes of a run with so many workers, which an inline run has in its own process."""
        return self.rehearsal if inline else workers * self.worker + self.server


def footprint(components: Components, federated: FederatedData, process: int) -> Footprint:
    """The sizes of a run.

    The networks are built without memory for their weights where the method's own code allows this; otherwise they are
    built for good.

    Args:
        components: of the run.
        federated: its data.
        process: bytes that this process takes now.

    Raises:
        InputError: the method refuses the configuration.
    """
    config, method = components.config, components.method
    described = (federated.columns, federated.class_names, federated.num_clients, federated.vocabulary)
    task = make_task(config, *described)
    networks: nn.ModuleDict
    try:
        with torch.device("meta"):
            networks = build_networks(method, task, config.seed, torch.device("meta"))
    except Exception:  # of code that reads a weight, since a meta tensor has no values; what is wrong is raised below
        networks = build_networks(method, task, config.seed, torch.device("cpu"))
    parameters = {role: sum(p.numel() for p in network.parameters()) for role, network in networks.items()}
    exchanges = Exchanges(networks, method, config.exchange.local)
    gradients, optimizer, down, up = 0, 0, 0, 0
    for stage in stages_of(method, config.federation.rounds):
        exchange = exchanges.enter(stage.plan)
        trained = sum(p.numel() * p.element_size() for p in networks.parameters() if p.requires_grad)
        if trained >= gradients:
            gradients, optimizer = trained, trained * _moments(components.stages.training(stage.plan))
        down = max(down, sum(exchange.sizes[name] for name in exchange.down))
        up = max(up, sum(exchange.sizes[name] for name in exchange.up))
    weights = sum(value.numel() * value.element_size() for value in networks.state_dict().values())
    return Footprint(parameters, weights, gradients, optimizer, down, up, process)


def _moments(training: TrainingConfig) -> int:
    """How many numbers the optimizer keeps for each parameter."""
    return _MOMENTS.get(training.optimizer, 1 if training.momentum else 0)
