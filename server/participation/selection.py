"""Which clients take part in a round, for how many steps, and how long the round takes on the virtual clock."""

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
        clients: their ids, in ascending order.
        steps: largest number of local steps by client, for the clients that cannot take all steps by the deadline.
        seconds: length of the round on the virtual clock; 0 without virtual clock.
        left_out: local trainings and steps that were chosen or planned and do not take place.
    """

    clients: tuple[int, ...] = ()
    steps: Mapping[int, int] = field(default_factory=dict)
    seconds: float = 0.0
    left_out: tuple[LeftOut, ...] = ()


_AWAY = "their nodes were not connected when a round began (federation.on_client_error: skip)"
_NOBODY = LeftOut("rounds of training", 1, "no client was available, or the sampler chose none", 1, wanted=True)


def dropped_out(clients: Sequence[int], chosen: int) -> LeftOut:
    """The entry that counts the clients that dropped out, of `chosen` clients that were chosen."""
    why = "the client dropped out (federation.dropout)"
    return LeftOut("local trainings", len(clients), why, chosen, examples=_named(clients), wanted=True)


def _named(clients: Iterable[int]) -> tuple[str, ...]:
    return tuple(f"client {client}" for client in islice(clients, 10))


@dataclass(frozen=True)
class Rules:
    """The configured rules of participation. They do not change from round to round.

    Args:
        federation: the configuration's section.
        seed: the run's seed.
        sampler: chooses the clients of a round.
        availability: says when a client can take part.
        devices: the clients' devices; None without virtual clock.
    """

    federation: FederationConfig
    seed: int
    sampler: Sampler
    availability: Availability
    devices: Devices | None

    @property
    def in_seconds(self) -> bool:
        """Whether availability is given in seconds of the virtual clock, not in rounds."""
        return self.federation.availability is not None and self.federation.availability.unit == "seconds"


def make_rules(config: Config, sampler: Sampler) -> Rules:
    """The rules of a configuration.

    Args:
        config: the run's configuration.
        sampler: the sampler that `fedlab.server.participation.samplers.make_sampler` made.

    Raises:
        ConfigError, ConfigErrors: settings contradict each other, or a file cannot be used.
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

    For a given configuration and data, every choice depends only on the seed, the round and what `book` returns.
    Clients whose work would be discarded are known beforehand and get no message. These are the clients that drop out,
    that would be too late, or that would be the last of an over-selection.

    Args:
        rules: the rules of the run.
        examples: returns the weights of clients, by default their numbers of training samples.
    """

    def __init__(self, rules: Rules, examples: Callable[[Sequence[int]], Sequence[int]]) -> None:
        self.rules, self.federation, self.seed = rules, rules.federation, rules.seed
        self.sampler, self.availability, self.devices = rules.sampler, rules.availability, rules.devices
        self.losses: dict[int, float] = {}
        self.time = 0.0
        """Virtual seconds since the start."""
        self._known = Known(examples, self.losses)

    def choose(
        self,
        participants: Sequence[int],
        round: int,
        work: Callable[[int], ClientWork],
        present: Sequence[int] | None = None,
    ) -> Selection:
        """Choose the clients of a round, and advance the virtual clock to the end of the round.

        Args:
            participants: all clients that may train.
            round: the round.
            work: returns the work that a client would have in this round.
            present: those participants whose nodes are connected, in a deployment that leaves out the others; None for
                all.

        Raises:
            FedLabError: no client will be available again, or the file of devices lacks a client.
        """
        here = participants if present is None else present
        self.await_clients(here)
        candidates = self.available(here, round)
        wanted = self.sampler.size(len(participants))
        chosen = self.sample(candidates, round, math.ceil(self.federation.over_selection * wanted - 1e-9))
        taking_part = [client for client in chosen if not self.drops_out(client, round)]
        away = sorted(set(participants) - set(here)) if here is not participants else []
        gone = (
            LeftOut("clients to choose from", len(away), _AWAY, len(participants), examples=_named(away)),
            dropped_out(sorted(set(chosen) - set(taking_part)), len(chosen)),
            *([] if chosen else [_NOBODY]),
        )
        if self.devices is None:
            return Selection(tuple(taking_part[:wanted]), left_out=gone)
        selection = self._timed(taking_part, min(wanted, len(chosen)), work)
        self.time += selection.seconds
        return replace(selection, left_out=(*gone, *selection.left_out))

    def available(self, clients: Sequence[int], round: int) -> list[int]:
        """The clients that can take part in the round, or at the present virtual time if availability is in seconds."""
        now = self.time if self.rules.in_seconds else round
        return [client for client in clients if self.availability.open(client, now)]

    def await_clients(self, clients: Sequence[int]) -> None:
        """If availability is in seconds and no client is available, advance the virtual clock until one is.

        Raises:
            FedLabError: no client will be available again.
        """
        if self.rules.in_seconds:
            opening = min((self.availability.opens(client, self.time) for client in clients), default=math.inf)
            if not math.isfinite(opening):
                raise FedLabError(f"after {self.time:g} virtual seconds no client is ever available again")
            self.time = opening

    def sample(self, candidates: Sequence[int], round: int, count: int) -> list[int]:
        """The clients that the sampler chooses, at most `count` of the candidates."""
        return self.sampler.sample(candidates, round, count, self._known) if candidates else []

    def drops_out(self, client: int, round: int) -> bool:
        """Whether a client that was chosen drops out of the round."""
        rate = self.federation.dropout
        return rate > 0 and float(numpy_generator(self.seed, "dropout", round, client).random()) < rate

    def learn(self, client: int, metrics: Mapping[str, float]) -> None:
        """Keep the loss that a client reported, if the sampler uses it.

        Raises:
            FedLabError: the sampler needs a metric that the client did not report.
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
        """Fields of the event ``round`` about the virtual clock, for a round that takes `seconds`; empty without it."""
        return {} if self.devices is None else {"virtual": {"round_seconds": seconds, "total": self.time}}

    def book(self) -> dict[str, Any]:
        """The state that is kept from round to round, for a checkpoint: virtual time and reported losses."""
        return {"time": self.time, "losses": {str(client): loss for client, loss in self.losses.items()}}

    def restore(self, book: Mapping[str, Any]) -> None:
        """Restore the `book` of a checkpoint."""
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
        # the server waits until as many clients as wanted have answered, but at most until the deadline
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
    """Refuse settings that have no effect with a strategy that chooses the clients itself.

    Args:
        federation: the configuration's section.
        sampled: whether FedLab's samplers choose the clients; Flower's own strategies choose them themselves.

    Raises:
        ConfigError: there is such a setting.
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


def check_min_clients(federation: FederationConfig, clients: int) -> None:
    """Refuse to wait for more clients than there are.

    Args:
        federation: the configuration's section.
        clients: number of clients that may train.

    Raises:
        ConfigError: ``min_clients`` is larger, or has no effect because no client may be missing.
    """
    key, value = "federation.min_clients", federation.min_clients
    if value > clients:
        raise ConfigError(key, value, f"at most {clients}, the clients that may train", "lower it")
    if value > 1 and federation.on_client_error == "stop":
        raise ConfigError(
            key, value, "1 with on_client_error: stop, where no client may be missing", "set on_client_error: skip"
        )


def check_sampled(sampler: Sampler, clients: int, unseen: Collection[int]) -> None:
    """Refuse a fixed choice of clients that do not exist or that never train.

    Args:
        sampler: the sampler; all but `Fixed` are accepted.
        clients: number of registered clients.
        unseen: ids of the clients that are held out from training.

    Raises:
        ConfigError: there is such a client.
    """
    wrong = sorted(sampler.clients - (set(range(clients)) - set(unseen))) if isinstance(sampler, Fixed) else []
    if wrong:
        raise ConfigError(
            "federation.sampler.clients",
            wrong[0],
            f"ids of clients that train, from 0 to {clients - 1}",
            "it is held out by data.unseen" if wrong[0] in unseen else "see fedlab partition for who is who",
        )
