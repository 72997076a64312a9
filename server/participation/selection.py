"""Who takes part in a round, for how many steps, and how long that takes on the virtual clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from fedlab.config import Config, FederationConfig
from fedlab.errors import ConfigError, FedLabError
from fedlab.seeding import numpy_generator
from fedlab.server.participation.availability import Availability, make_availability
from fedlab.server.participation.devices import ClientWork, Devices
from fedlab.server.participation.samplers import Fixed, Known, Sampler
from fedlab.tracking.left_out import LeftOut


@dataclass(frozen=True)
class Selection:
    """The clients of a round.

    Args:
        clients: their ids, ascending.
        steps: local steps at most, of those that get less than all.
        seconds: the round's length on the virtual clock.
        left_out: what was chosen or planned and does not take place.
    """

    clients: tuple[int, ...] = ()
    steps: Mapping[int, int] = field(default_factory=dict)
    seconds: float = 0.0
    left_out: tuple[LeftOut, ...] = ()


_NOBODY = LeftOut("rounds of training", 1, "no client was available, or the sampler chose none", 1, wanted=True)


def dropped_out(clients: Sequence[int], chosen: int) -> LeftOut:
    """Count the chosen clients that fail to answer."""
    why = "the client dropped out (federation.dropout)"
    return LeftOut("local trainings", len(clients), why, chosen, examples=_named(clients), wanted=True)


def _named(clients: Iterable[int]) -> tuple[str, ...]:
    return tuple(f"client {client}" for client in islice(clients, 10))


@dataclass(frozen=True)
class Rules:
    """Who may take part in a round, as the configuration says. Nothing of it changes from round to round.

    Args:
        federation: the configuration's section.
        seed: the run's seed.
        sampler: chooses clients.
        availability: when clients can take part.
        devices: how fast they are; None where there is no virtual clock.
    """

    federation: FederationConfig
    seed: int
    sampler: Sampler
    availability: Availability
    devices: Devices | None

    @property
    def in_seconds(self) -> bool:
        """Whether availability follows the virtual clock, not the rounds."""
        return self.federation.availability is not None and self.federation.availability.unit == "seconds"


def make_rules(config: Config, sampler: Sampler) -> Rules:
    """The rules of a configuration.

    Args:
        config: the run's configuration.
        sampler: as `fedlab.server.participation.samplers.make_sampler` made it.

    Raises:
        ConfigError, ConfigErrors: settings that do not go together, unusable files.
    """
    federation, seed = config.federation, config.seed
    availability = make_availability(federation.availability, seed)
    devices = Devices(federation.devices, seed) if federation.devices is not None else None
    rules = Rules(federation, seed, sampler, availability, devices)
    needs = {
        "federation.over_selection": (federation.over_selection, federation.over_selection > 1),
        "federation.deadline": (federation.deadline, federation.deadline is not None),
        "federation.availability.unit": ("seconds", rules.in_seconds),
    }
    for key, (value, asked) in needs.items():
        if asked and devices is None:
            raise ConfigError(key, value, "a virtual clock", "set federation.devices; {} takes its defaults")
    if federation.over_selection > 1 and federation.sampler.name == "poisson":
        raise ConfigError(
            "federation.over_selection",
            federation.over_selection,
            "1 with the sampler poisson, whose rounds have no set size",
            "raise federation.sampler.probability instead",
        )
    return rules


class ClientSelector:
    """Chooses the clients of each round by availability, sampler, drop-out and deadline, and keeps the virtual clock.

    Every choice is a function of the seed, the round and what `book` gives. Clients whose work would be thrown away
    (drop-outs, the last of an over-selection) are known beforehand and are not sent to.

    Args:
        rules: of the run.
        examples: training samples of clients.
    """

    def __init__(self, rules: Rules, examples: Callable[[Sequence[int]], Sequence[int]]) -> None:
        self.rules, self.federation, self.seed = rules, rules.federation, rules.seed
        self.sampler, self.availability, self.devices = rules.sampler, rules.availability, rules.devices
        self.losses: dict[int, float] = {}
        self.time = 0.0
        """Virtual seconds since the start."""
        self._known = Known(examples, self.losses)

    def choose(self, participants: Sequence[int], round: int, work: Callable[[int], ClientWork]) -> Selection:
        """Choose the clients of a round, and advance the virtual clock to its end.

        Args:
            participants: all clients that may train.
            round: the round.
            work: what a client would do.

        Raises:
            FedLabError: no client is ever available again.
        """
        self.await_clients(participants)
        candidates = self.available(participants, round)
        wanted = self.sampler.size(len(participants))
        chosen = self.sample(candidates, round, math.ceil(self.federation.over_selection * wanted - 1e-9))
        present = [client for client in chosen if not self.drops_out(client, round)]
        gone = (dropped_out(sorted(set(chosen) - set(present)), len(chosen)), *([] if chosen else [_NOBODY]))
        if self.devices is None:
            return Selection(tuple(present[:wanted]), left_out=gone)
        selection = self._timed(present, min(wanted, len(chosen)), work)
        self.time += selection.seconds
        return replace(selection, left_out=(*gone, *selection.left_out))

    def available(self, clients: Sequence[int], round: int) -> list[int]:
        """Those of the clients that can take part now."""
        now = self.time if self.rules.in_seconds else round
        return [client for client in clients if self.availability.open(client, now)]

    def await_clients(self, clients: Sequence[int]) -> None:
        """Where availability is in seconds and no client is available, advance the clock until one is.

        Raises:
            FedLabError: nobody will ever be.
        """
        if self.rules.in_seconds:
            opening = min((self.availability.opens(client, self.time) for client in clients), default=math.inf)
            if not math.isfinite(opening):
                raise FedLabError(f"after {self.time:g} virtual seconds no client is ever available again")
            self.time = opening

    def sample(self, candidates: Sequence[int], round: int, count: int) -> list[int]:
        """The sampler's choice."""
        return self.sampler.sample(candidates, round, count, self._known) if candidates else []

    def drops_out(self, client: int, round: int) -> bool:
        """Whether a client that was chosen fails to answer."""
        rate = self.federation.dropout
        return rate > 0 and float(numpy_generator(self.seed, "dropout", round, client).random()) < rate

    def learn(self, client: int, metrics: Mapping[str, float]) -> None:
        """Remember what a client reported, for samplers that use it.

        Raises:
            FedLabError: the sampler's loss is not among it.
        """
        wanted = self.sampler.loss
        if wanted is None:
            return
        if wanted not in metrics:
            raise FedLabError(
                f"the sampler {self.federation.sampler.name!r} needs the clients' metric {wanted!r}, but client "
                f"{client} reports {', '.join(sorted(metrics))}: set federation.sampler.metric"
            )
        self.losses[client] = metrics[wanted]

    def virtual(self, seconds: float) -> dict[str, dict[str, float]]:
        """Fields about the virtual clock for the event ``round``."""
        return {} if self.devices is None else {"virtual": {"round_seconds": seconds, "total": self.time}}

    def book(self) -> dict[str, Any]:
        """What lasts from round to round, for a checkpoint."""
        return {"time": self.time, "losses": {str(client): loss for client, loss in self.losses.items()}}

    def restore(self, book: Mapping[str, Any]) -> None:
        """Take over the `book` of a checkpoint."""
        self.time = float(book["time"])
        self.losses.update({int(client): float(loss) for client, loss in book["losses"].items()})

    def _timed(self, clients: Sequence[int], wanted: int, work: Callable[[int], ClientWork]) -> Selection:
        assert self.devices is not None
        steps: dict[int, int] = {}
        planned: dict[int, int] = {}
        late: list[int] = []
        times: list[tuple[float, int]] = []
        deadline = self.federation.deadline
        for client in clients:
            device, whole = self.devices[client], work(client)
            planned[client] = whole.steps
            seconds = device.seconds(whole)
            if deadline is not None and seconds > deadline:
                fitting = device.steps_until(deadline, whole) if self.federation.late == "partial" else 0
                if not fitting:
                    late.append(client)
                    continue
                steps[client], seconds = fitting, device.seconds(whole, fitting)
            times.append((seconds, client))
        kept = sorted(times)[:wanted]
        # the server waits for all it wanted, for the deadline at most
        length = deadline if deadline is not None and len(kept) < wanted else max((s for s, _ in kept), default=0.0)
        ids = sorted(client for _, client in kept)
        cut = {client: steps[client] for client in ids if client in steps}
        surplus = sorted(client for _, client in sorted(times)[wanted:])
        first, missed = "federation.deadline came first", planned.items()
        left_out = (
            LeftOut("local trainings", len(late), first, len(clients), examples=_named(late), wanted=True),
            LeftOut(
                "local trainings",
                len(surplus),
                "enough others had answered before (federation.over_selection)",
                len(clients),
                examples=_named(surplus),
                wanted=True,
            ),
            LeftOut(
                "training steps",
                sum(count - cut[client] for client, count in missed if client in cut),
                f"{first} (federation.late: partial)",
                sum(planned[client] for client in ids),
                examples=_named(cut),
                wanted=True,
            ),
        )
        return Selection(tuple(ids), cut, length, left_out)


def check_participation(federation: FederationConfig, sampled: bool) -> None:
    """Refuse settings that have no effect with a strategy that chooses clients itself.

    Args:
        federation: the configuration's section.
        sampled: FedLab's samplers choose; Flower's own strategies choose for themselves.

    Raises:
        ConfigError: such a setting.
    """
    asked = {
        "availability": federation.availability is not None,
        "devices": federation.devices is not None,
        "dropout": federation.dropout > 0,
    }
    for name, is_asked in asked.items():
        if is_asked and not sampled:
            raise ConfigError(
                f"federation.{name}",
                getattr(federation, name),
                "one of FedLab's own strategies, because Flower's strategies choose the clients themselves",
                "remove it, or set federation.strategy to one without the prefix flower.",
            )


def check_sampled(sampler: Sampler, clients: int, unseen: Collection[int]) -> None:
    """Refuse a fixed choice of clients that are not there or never train.

    Args:
        sampler: chooses clients.
        clients: registered clients.
        unseen: those held out from training.

    Raises:
        ConfigError: such a client.
    """
    wrong = sorted(sampler.clients - (set(range(clients)) - set(unseen))) if isinstance(sampler, Fixed) else []
    if wrong:
        raise ConfigError(
            "federation.sampler.clients",
            wrong[0],
            f"ids of clients that train, from 0 to {clients - 1}",
            "it is held out by data.unseen" if wrong[0] in unseen else "see fedlab partition for who is who",
        )
