"""The clients at work in asynchronous training, and the versions of the model that they started from."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, order=True)
class Flight:
    """A client at work.

    Args:
        arrival: virtual time at which it is done.
        client: its id.
        version: server updates before it started.
        serial: number of the sampler's call that chose it.
    """

    arrival: float
    client: int
    version: int
    serial: int


@dataclass
class Flights:
    """All clients at work, the free slots for others, and the models that those at work started from.

    Args:
        idle: the virtual time since which each free slot has been free.
        queue: clients at work, as a heap by the time of arrival.
        serial: calls of the sampler so far.
        models: network state by version, as it was sent.
    """

    idle: list[float]
    queue: list[Flight] = field(default_factory=list)
    serial: int = 0
    models: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    @classmethod
    def none(cls, concurrency: int) -> Flights:
        """The start of a run: no client is at work, and `concurrency` clients may be."""
        return cls([0.0] * concurrency)

    @property
    def clients(self) -> set[int]:
        """Ids of the clients at work."""
        return {flight.client for flight in self.queue}

    @property
    def next_arrival(self) -> float | None:
        """Virtual time of the first arrival to come; None where nobody is at work."""
        return self.queue[0].arrival if self.queue else None

    def start(self, flight: Flight) -> None:
        """A client begins to work."""
        heapq.heappush(self.queue, flight)

    def land(self) -> Flight:
        """Take the client that arrives first; its slot is free from then on."""
        flight = heapq.heappop(self.queue)
        self.idle.append(flight.arrival)
        return flight

    def forget_models(self) -> None:
        """Drop the models from which nobody at work has started."""
        flying = {flight.version for flight in self.queue}
        self.models = {version: model for version, model in self.models.items() if version in flying}

    def tensors(self) -> dict[str, Tensor]:
        """The models, for a checkpoint."""
        return {f"{version}/{name}": v for version, model in self.models.items() for name, v in model.items()}

    def book(self) -> dict[str, Any]:
        """Everything else, for a checkpoint."""
        flights = [asdict(flight) for flight in sorted(self.queue)]
        return {"flights": flights, "idle": list(self.idle), "serial": self.serial}

    def restore(self, tensors: Mapping[str, Tensor], book: Mapping[str, Any]) -> None:
        """Take over what `tensors` and `book` gave."""
        self.queue = [Flight(**flight) for flight in book["flights"]]
        self.idle, self.serial = [float(time) for time in book["idle"]], int(book["serial"])
        self.models = {}
        for path, value in tensors.items():
            version, name = path.split("/", 1)
            self.models.setdefault(int(version), {})[name] = value
