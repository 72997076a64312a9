"""Buffered asynchronous training (FedBuff, Nguyen et al. 2022, algorithm 1) on the virtual clock.

A client starts from the model that is current at its virtual start and arrives when its device is done. Every K
arrivals make one server update: w ← w + η_g · (1/K) Σ Δ_i / √(1 + τ_i), τ_i the updates since client i started. A
client's work is done for real when it arrives, so that only model versions, never half-done work, are in flight.
Arrivals are in the order of (virtual time, client); a slot that is free at a time is filled after all that arrives at
that time. A client contributes to a buffer once at most.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor

from fedlab.assembly import stage_training
from fedlab.config import Config
from fedlab.errors import ConfigError, FedLabError
from fedlab.method import Method, Plan
from fedlab.protocol.messages import CONFIG, REDUCE, config_record, exact_sum, required, to_record
from fedlab.protocol.sums import Reduction
from fedlab.server.loop import FederatedLoop
from fedlab.server.messaging.delivery import Delivered
from fedlab.server.participation.selection import Selection, dropped_out
from fedlab.server.setup import ServerSetup
from fedlab.server.snapshot import Checkpoint
from fedlab.server.strategies.average import AveragingStrategy, FedAvg, FedProx

FLIGHT = "flight/"


@dataclass(frozen=True, order=True)
class Flight:
    """A client at work.

    Args:
        arrival: virtual time.
        client: its id.
        version: server updates before it started.
        serial: number of the sampler's call that chose it.
    """

    arrival: float
    client: int
    version: int
    serial: int


def staleness_weight(staleness: int) -> float:
    """1/√(1 + τ), the paper's choice."""
    return float(1 / np.sqrt(1 + staleness))


class AsynchronousLoop(FederatedLoop):
    """FedBuff: each round is one server update.

    Raises:
        ConfigError: more clients at work, or in a buffer, than there are.
    """

    def __init__(self, grid: Grid, setup: ServerSetup) -> None:
        super().__init__(grid, setup)
        self.settings = self.config.federation.asynchronous
        check_concurrency(self.config, len(self.participants))
        self._queue: list[Flight] = []
        self._idle = [0.0] * self.settings.concurrency
        self._serial = 0
        self._models: dict[int, dict[str, Tensor]] = {}
        self._bases: dict[int, dict[str, Tensor]] = {}
        self._groups: list[tuple[int, list[Message], Reduction]] = []
        self._deliveries: list[Delivered] = []
        self._dropped: list[int] = []

    def memory(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, facts = super().memory()
        for version, model in self._models.items():
            tensors |= {f"{FLIGHT}{version}/{name}": value for name, value in model.items()}
        queue = [asdict(flight) for flight in sorted(self._queue)]
        return tensors, {**facts, "flights": queue, "idle": list(self._idle), "serial": self._serial}

    def recall(self, start: Checkpoint) -> None:
        super().recall(start)
        self._queue = [Flight(**flight) for flight in start.meta["flights"]]
        self._idle, self._serial = [float(time) for time in start.meta["idle"]], int(start.meta["serial"])
        for path, value in start.part(FLIGHT).items():
            version, name = path.split("/", 1)
            self._models.setdefault(int(version), {})[name] = value.to(self.device)

    def _compose(self, round: int, arrays: Mapping[str, Tensor]) -> list[Message]:
        """The messages of the clients whose arrival makes this update, by the version they started from."""
        self._models[round - 1] = dict(arrays)
        began = self.participation.time
        self._dropped = []
        buffer = self._fill(round)
        gone = dropped_out(self._dropped, len(self._dropped) + len(buffer))
        self.selection = Selection(
            tuple(sorted(flight.client for flight in buffer)), {}, self.participation.time - began, (gone,)
        )
        self._groups = [
            self._group(version, sorted(flight.client for flight in buffer if flight.version == version))
            for version in sorted({flight.version for flight in buffer})
        ]
        flying = {flight.version for flight in self._queue}
        self._models = {version: model for version, model in self._models.items() if version in flying}
        return [message for _, messages, _ in self._groups for message in messages]

    def _fill(self, round: int) -> list[Flight]:
        """Let time pass until the buffer is full."""
        buffer: list[Flight] = []
        while len(buffer) < self.settings.buffer:
            if self._idle and (not self._queue or min(self._idle) < self._queue[0].arrival):
                self._start(round, {flight.client for flight in buffer})
            if not self._queue:
                break  # nobody is left who could fill it: drop-outs
            flight = heapq.heappop(self._queue)
            self.participation.time = flight.arrival
            self._idle.append(flight.arrival)
            if self.participation.drops_out(flight.client, flight.serial):
                self._dropped.append(flight.client)
            else:
                buffer.append(flight)
        return buffer

    def _start(self, round: int, buffered: set[int]) -> None:
        """Fill the free slots, all at the present time: slots that stayed empty until now included."""
        busy = buffered | {flight.client for flight in self._queue}
        free = [client for client in self.participants if client not in busy]
        if not self._queue and free:
            self.participation.await_clients(free)
        now, candidates = self.participation.time, self.participation.available(free, round)
        self._serial += 1
        chosen = self.participation.sample(candidates, self._serial, len(self._idle))
        self._idle = self._idle[len(chosen) :]
        training = stage_training(self.config.training, self.method, self._plan(round))
        assert self.participation.devices is not None
        for client in chosen:
            seconds = self.participation.devices[client].seconds(self._work(training, client))
            heapq.heappush(self._queue, Flight(now + seconds, client, round - 1, self._serial))

    def _group(self, version: int, clients: Sequence[int]) -> tuple[int, list[Message], Reduction]:
        strategy = cast(AveragingStrategy, self.strategy)
        cohort = self._cohort(clients, version + 1)
        strategy.cohort = replace(cohort, weight_of=dict.fromkeys(cohort.weight_of, "uniform"))
        sent = to_record(self._models[version])
        messages = list(strategy.configure_train(version + 1, sent, ConfigRecord(), self.grid))
        reduction = required(config_record, messages[0].content, CONFIG)[REDUCE]
        self._bases[version] = self._models[version]
        return version, messages, Reduction.from_json(str(reduction))

    def _carry(self, messages: Sequence[Message], round: int, plan: Plan) -> Delivered:
        self._deliveries = []
        for version, group, _ in self._groups:
            instructions = replace(self._instructions(version + 1, self._plan(version + 1), self.shared), saved=round)
            self._deliveries.append(self.delivery.carry(group, instructions, "train"))
        whole = Delivered()
        for delivery in self._deliveries:
            whole.replies += delivery.replies
            whole.sent += delivery.sent
            whole.served += delivery.served
        whole.replies.sort(key=lambda reply: self.directory.client(reply.metadata.src_node_id))
        return whole

    @torch.no_grad()
    def _aggregate(self, round: int, delivery: Delivered) -> None:
        total: dict[str, np.ndarray] = {}
        for (version, _, reduction), part in zip(self._groups, self._deliveries, strict=True):
            scale = staleness_weight(round - 1 - version)
            summed = exact_sum(part.replies, reduction)
            counts = summed.state()[1]
            for name, mean in summed.mean().items():
                start = self._bases[version][name].cpu().numpy().astype(np.float64)
                total[name] = total.get(name, np.zeros(())) + scale * counts[name] * (mean - start)
        for name, change in total.items():
            step = torch.from_numpy(self.settings.server_lr / len(delivery.answers) * change)
            new = self.state[name].cpu().double() + step
            if not torch.isfinite(new).all():
                raise FedLabError(f"the update of round {round} is NaN or infinite in {name!r}")
            self.state[name].copy_(new)
        self._bases = {}


def make_loop(grid: Grid, setup: ServerSetup) -> FederatedLoop:
    """The loop of the configured mode."""
    asynchronous = setup.config.federation.mode == "asynchronous"
    return (AsynchronousLoop if asynchronous else FederatedLoop)(grid, setup)


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
    """Refuse what asynchronous training cannot do.

    Raises:
        ConfigError: what is wrong.
    """
    federation = config.federation
    if federation.mode != "asynchronous":
        return
    availability = federation.availability
    refused: dict[str, tuple[object, bool, str]] = {
        "devices": (None, federation.devices is None, "a virtual clock: {} for its defaults"),
        "strategy": (
            federation.strategy.name,
            strategy is not None and type(strategy) not in (FedAvg, FedProx),
            "fedavg or fedprox: FedBuff is its own server rule",
        ),
        "sampler": (federation.sampler.name, federation.sampler.name == "poisson", "a sampler of a set size"),
        "over_selection": (federation.over_selection, federation.over_selection > 1, "1: nobody is waited for"),
        "deadline": (federation.deadline, federation.deadline is not None, "none: nobody is waited for"),
        "availability.unit": (
            "rounds",
            availability is not None and availability.unit == "rounds",
            "seconds: rounds are server updates here",
        ),
    }
    for key, (value, wrong, expected) in refused.items():
        if wrong:
            raise ConfigError(f"federation.{key}", value, expected, "change it, or set federation.mode to synchronous")
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
