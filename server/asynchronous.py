"""Buffered asynchronous training (FedBuff, Nguyen et al. 2022, algorithm 1) on the virtual clock.

A client starts from the model that is current at its virtual start and arrives when its device is done. Every K
arrivals make one server update: w ← w + η_g · (1/K) Σ Δ_i / √(1 + τ_i), τ_i the updates since client i started. A
client's work is done for real when it arrives, so that only model versions, never half-done work, are in flight.
Arrivals are in the order of (virtual time, client); a slot that is free at a time is filled after all that arrives at
that time. A client contributes to a buffer once at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import torch
from flwr.app import Message
from flwr.serverapp import Grid
from torch import Tensor

from fedlab.config import Config
from fedlab.errors import ConfigError
from fedlab.method import Method, Plan
from fedlab.protocol.messages import exact_sum, to_numpy, to_record
from fedlab.server.flights import Flight, Flights
from fedlab.server.loop import FederatedLoop
from fedlab.server.messaging.asked import Delivered, Part
from fedlab.server.messaging.directory import ClientDirectory
from fedlab.server.messaging.returned import take_over
from fedlab.server.participation.selection import Selection, dropped_out
from fedlab.server.setup import ServerSetup
from fedlab.server.strategies.average import AveragingStrategy, Composition, FedAvg, FedProx
from fedlab.server.strategies.rounds import TrainingRound
from fedlab.tracking.left_out import LeftOut


def staleness_weight(staleness: int) -> float:
    """1/√(1 + τ), the paper's choice."""
    return float(1 / np.sqrt(1 + staleness))


class AsynchronousLoop(FederatedLoop):
    """FedBuff: each round is one server update.

    Args:
        grid: Flower grid that reaches the clients.
        setup: the run.
        directory: the clients of the grid, which has been opened.

    Raises:
        ConfigError: more clients at work, or in a buffer, than there are.
    """

    def __init__(self, grid: Grid, setup: ServerSetup, directory: ClientDirectory) -> None:
        super().__init__(grid, setup, directory)
        self.settings = self.config.federation.asynchronous
        check_concurrency(self.config, len(self.participants))
        self.flights = self.state.flights = Flights.none(self.settings.concurrency)
        self._averaging = cast(AveragingStrategy, setup.strategy)  # see `check_asynchronous`
        self._groups: list[_Group] = []

    def _compose(self, round: int, arrays: Mapping[str, Tensor]) -> tuple[TrainingRound, list[Message]]:
        """The messages of the clients whose arrival makes this update, by the version they started from."""
        flights, selector = self.flights, self.state.selector
        flights.models[round - 1] = dict(arrays)
        began = selector.time
        buffer, dropped = self._fill(round)
        clients = tuple(sorted(flight.client for flight in buffer))
        gone = dropped_out(dropped, len(dropped) + len(buffer))
        self.selection = Selection(clients, {}, selector.time - began, (gone,))
        self._groups = [
            self._group(version, sorted(flight.client for flight in buffer if flight.version == version))
            for version in sorted({flight.version for flight in buffer})
        ]
        flights.forget_models()
        return self._told(round, clients), [message for group in self._groups for message in group.sent.messages]

    def _fill(self, round: int) -> tuple[list[Flight], list[int]]:
        """Let virtual time pass until the buffer is full.

        Returns:
            The arrivals in the buffer, and the clients that dropped out meanwhile.
        """
        flights, selector = self.flights, self.state.selector
        buffer: list[Flight] = []
        dropped: list[int] = []
        while len(buffer) < self.settings.buffer:
            if flights.idle and (flights.next_arrival is None or min(flights.idle) < flights.next_arrival):
                self._start(round, {flight.client for flight in buffer})
            if not flights.queue:
                break  # nobody is left who could fill it: drop-outs
            flight = flights.land()
            selector.time = flight.arrival
            if selector.drops_out(flight.client, flight.serial):
                dropped.append(flight.client)
            else:
                buffer.append(flight)
        return buffer, dropped

    def _start(self, round: int, buffered: set[int]) -> None:
        """Start clients in all free slots at the present virtual time, also in those free for a while."""
        flights, selector = self.flights, self.state.selector
        busy = buffered | flights.clients
        here = self.delivery.presence.choosable(self.participants, round)
        free = [client for client in here if client not in busy]
        if not flights.queue and free:
            selector.await_clients(free)
        now, candidates = selector.time, selector.available(free, round)
        flights.serial += 1
        chosen = selector.sample(candidates, flights.serial, len(flights.idle))
        flights.idle = flights.idle[len(chosen) :]
        training = self.stages.training(self._plan(round))
        assert selector.devices is not None
        for client in chosen:
            seconds = selector.devices[client].seconds(self._work(training, self.state.shared, client))
            flights.start(Flight(now + seconds, client, round - 1, flights.serial))

    def _group(self, version: int, clients: Sequence[int]) -> _Group:
        told = self._told(version + 1, clients)
        told = replace(told, weight_of=dict.fromkeys(told.weight_of, "uniform"))
        model = self.flights.models[version]
        return _Group(version, model, self._averaging.compose(told, to_numpy(to_record(model))))

    def _carry(self, messages: Sequence[Message], round: int, plan: Plan) -> Delivered:
        whole, parts = Delivered(), []
        for group in self._groups:
            number = group.version + 1
            instructions = replace(self._instructions(number, self._plan(number), self.state.shared), saved=round)
            parts.append(Part(group.sent.messages, instructions, self._training()))
        for group, delivered in zip(self._groups, self.delivery.carry_parts(parts, "train"), strict=True):
            group.delivered = delivered
            whole.replies += group.delivered.replies
            whole.sent += group.delivered.sent
            whole.served += group.delivered.served
        whole.replies.sort(key=lambda reply: self.directory.client(reply.metadata.src_node_id))
        return whole

    @torch.no_grad()
    def _aggregate(self, told: TrainingRound, delivered: Delivered) -> None:
        network, total = self.state.network, dict[str, np.ndarray]()
        for group in self._groups:
            scale = staleness_weight(told.number - 1 - group.version)
            for reduction in group.sent.reductions.values():
                summed = exact_sum(group.delivered.replies, reduction)
                counts = summed.state()[1]
                for name, mean in summed.mean().items():
                    start = group.model[name].cpu().numpy().astype(np.float64)
                    total[name] = total.get(name, np.zeros(())) + scale * counts[name] * (mean - start)
        new: dict[str, np.ndarray] = {}
        for name, change in total.items():
            step = self.settings.server_lr / len(delivered.answers) * change
            new[name] = network[name].cpu().double().numpy() + step
        take_over(network, new, (), "FedBuff", told.number)
        self._groups = []


@dataclass
class _Group:
    """Clients of a buffer that started from one version.

    Args:
        version: server updates before they started.
        model: the network state they started from.
        sent: their messages.
        delivered: what came back.
    """

    version: int
    model: Mapping[str, Tensor]
    sent: Composition
    delivered: Delivered = field(default_factory=Delivered)


def make_loop(grid: Grid, setup: ServerSetup) -> FederatedLoop:
    """Wait for the clients, then make the loop of the configured mode.

    Raises:
        MachineError: too few nodes of a deployment came, or two claim one client.
        RefusedError: nodes could not say who they are, or their data is of different kinds.
    """
    federation = setup.config.federation
    skip = federation.on_client_error == "skip"
    directory = ClientDirectory(
        grid,
        setup.expected_clients,
        federation.timeout,
        setup.profiles,
        skip=skip,
        names=setup.client_names,
        members=setup.members,
    )
    directory.open()
    for problem in directory.strays.values():
        setup.tracker.emit("warning", message=f"a node is left out, because it is no client of this run: {problem}")
    for reason in directory.refused.values():
        setup.tracker.emit("warning", message=f"a node is left out, because it cannot take part: {reason}")
    if directory.missing:
        total = directory.missing + len(directory.clients)
        why = (
            "the run began with them, and they have not come as it goes on (federation.on_client_error: skip)"
            if setup.members
            else "their nodes cannot take part, as the warnings say (federation.on_client_error: skip)"
        )
        left_out = LeftOut("clients", directory.missing, why, total, examples=tuple(directory.absent))
        setup.tracker.emit("left_out", **left_out.fields())
    asynchronous = federation.mode == "asynchronous"
    return (AsynchronousLoop if asynchronous else FederatedLoop)(grid, setup, directory)


def check_concurrency(config: Config, clients: int) -> None:
    """Refuse more clients at work, or in a buffer, than there are.

    Args:
        config: the run's configuration.
        clients: how many train.

    Raises:
        ConfigError: one of the two is too large.
    """
    federation = config.federation
    if federation.mode != "asynchronous":
        return
    asked = {"concurrency": federation.asynchronous.concurrency, "buffer": federation.asynchronous.buffer}
    for key, value in asked.items():
        if value > clients:
            expected = f"at most {clients}, the clients that train"
            raise ConfigError(f"federation.asynchronous.{key}", value, expected, "lower it")


def check_asynchronous(config: Config, method: Method | None, strategy: object) -> None:
    """Refuse configurations that asynchronous training cannot run.

    Raises:
        ConfigError: what is wrong.
    """
    federation = config.federation
    if federation.mode != "asynchronous":
        return
    availability = federation.availability
    refused: dict[str, tuple[object, bool, str]] = {
        "devices": (None, federation.devices is None, "a virtual clock; {} takes its defaults"),
        "strategy": (
            federation.strategy.name,
            strategy is not None and type(strategy) not in (FedAvg, FedProx),
            "fedavg or fedprox, because FedBuff has its own update of the server",
        ),
        "sampler": (
            federation.sampler.name,
            federation.sampler.name == "poisson",
            "a sampler that chooses a fixed number of clients",
        ),
        "over_selection": (
            federation.over_selection,
            federation.over_selection > 1,
            "1, because the server waits for no particular clients",
        ),
        "deadline": (
            federation.deadline,
            federation.deadline is not None,
            "none, because the server waits for no particular clients",
        ),
        "availability.unit": (
            "rounds",
            availability is not None and availability.unit == "rounds",
            "seconds, because a round is an update of the server here",
        ),
    }
    for key, (value, wrong, expected) in refused.items():
        if wrong:
            raise ConfigError(f"federation.{key}", value, expected, "change it, or set federation.mode: synchronous")
    if method is None:
        return
    stages = {tuple(method.exchange(method.plan(r, federation.rounds))) for r in range(1, federation.rounds + 1)}
    if len(stages) > 1 or method.overrides("server_update"):
        raise ConfigError(
            "federation.mode",
            "asynchronous",
            f"synchronous with {method.title}: it works on the server after each round, or in stages",
            "choose another method, or set federation.mode to synchronous",
        )
