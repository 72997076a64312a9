"""When clients can take part: recorded intervals or generated days and nights."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from fedlab.config import AvailabilityConfig
from fedlab.errors import ConfigError
from fedlab.seeding import numpy_generator


class Availability(Protocol):
    """Base of the rules that say when a client can take part."""

    def open(self, client: int, time: float) -> bool:
        """Whether a client can take part at a time."""

    def opens(self, client: int, time: float) -> float:
        """The first time from `time` on at which a client can take part; infinity where there is none."""


class Always:
    """Every client can take part at any time."""

    def open(self, client: int, time: float) -> bool:
        return True

    def opens(self, client: int, time: float) -> float:
        return time


class Intervals:
    """Recorded intervals, half open; a client without any never takes part.

    Args:
        rows: (client, from, to).
    """

    def __init__(self, rows: Iterable[tuple[int, float, float]]) -> None:
        self._held: dict[int, list[tuple[float, float]]] = defaultdict(list)
        for client, begin, end in rows:
            self._held[client].append((begin, end))

    def open(self, client: int, time: float) -> bool:
        return any(begin <= time < end for begin, end in self._held.get(client, ()))

    def opens(self, client: int, time: float) -> float:
        return min((max(begin, time) for begin, end in self._held.get(client, ()) if time < end), default=math.inf)


class Days:
    """A share of every day, each client with its own phase.

    Args:
        period: length of a day.
        share: the part of it in which a client is available.
        seed: of the phases.
    """

    def __init__(self, period: float, share: float, seed: int) -> None:
        self._period, self._share, self._seed = period, share, seed
        self._phases: dict[int, float] = {}

    def open(self, client: int, time: float) -> bool:
        return self._position(client, time) < self._share

    def opens(self, client: int, time: float) -> float:
        while not self.open(client, time):
            # at least the next number there is: rounding may stop just short of the morning
            time = max(time + (1 - self._position(client, time)) * self._period, math.nextafter(time, math.inf))
        return time

    def _position(self, client: int, time: float) -> float:
        if client not in self._phases:
            self._phases[client] = float(numpy_generator(self._seed, "availability", client).random())
        return (time / self._period + self._phases[client]) % 1.0


def make_availability(config: AvailabilityConfig | None, seed: int) -> Availability:
    """The configured trace.

    Raises:
        ConfigError: neither or both of the two kinds are asked for, or the file cannot be used.
    """
    key = "federation.availability"
    if config is None:
        return Always()
    if (config.csv is None) == (config.period is None):
        value = config.model_dump(include={"csv", "period"})
        raise ConfigError(key, value, "either a csv or a period", f"set {key}.csv or {key}.period")
    if config.csv is None:
        assert config.period is not None
        return Days(config.period, config.share, seed)
    rows = read_numbers(config.csv, ("client", "from", "to"), f"{key}.csv")
    for _, begin, end in rows:
        if not begin < end:
            raise ConfigError(
                f"{key}.csv", f"{config.csv}: {begin:g} to {end:g}", "intervals that end after they begin"
            )
    return Intervals((int(client), begin, end) for client, begin, end in rows)


def read_numbers(path: str, columns: tuple[str, ...], key: str) -> list[tuple[float, ...]]:
    """Columns of numbers of a CSV file with a header; the first column is a client's id.

    Args:
        path: the file.
        columns: their names.
        key: the configuration key that names the file.

    Raises:
        ConfigError: unreadable, a column is missing, or a value is no number.
    """
    header = ",".join(columns)
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(key, path, f"a readable CSV file with the columns {header}", str(error)) from error
    if not rows:
        raise ConfigError(key, path, f"a header {header} and at least one row below it")
    found = []
    for number, row in enumerate(rows, 2):
        try:
            values = tuple(float(row[column]) for column in columns)
        except (KeyError, TypeError, ValueError):
            raise ConfigError(key, f"{path}, line {number}: {row}", f"numbers in the columns {header}") from None
        if not all(map(math.isfinite, values)) or values[0] < 0 or not values[0].is_integer():
            raise ConfigError(key, f"{path}, line {number}: {row}", "a client id ≥ 0 and finite numbers")
        found.append(values)
    return found
