"""When clients can take part in training: in recorded intervals, or in a generated part of every day."""

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
from fedlab.storage.plain import check_plain


class Availability(Protocol):
    """A rule that says when a client can take part. Times are rounds or virtual seconds, as configured."""

    def open(self, client: int, time: float) -> bool:
        """Whether a client can take part at a given time."""

    def opens(self, client: int, time: float) -> float:
        """The earliest time, not before `time`, at which a client can take part; infinity if there is none."""


class Always:
    """Every client can take part at any time."""

    def open(self, client: int, time: float) -> bool:
        return True

    def opens(self, client: int, time: float) -> float:
        return time


class Intervals:
    """Recorded intervals. A client without intervals can never take part.

    Args:
        rows: (client, from, to); the interval includes ``from`` but not ``to``.
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
    """Each client can take part in a share of every day. The day of each client has a random phase.

    Args:
        period: length of a day, in rounds or virtual seconds.
        share: the share of a day in which a client can take part.
        seed: the run's seed, on which the phases depend.
    """

    def __init__(self, period: float, share: float, seed: int) -> None:
        self._period, self._share, self._seed = period, share, seed
        self._phases: dict[int, float] = {}

    def open(self, client: int, time: float) -> bool:
        return self._position(client, time) < self._share

    def opens(self, client: int, time: float) -> float:
        while not self.open(client, time):
            # at least the next floating-point number, because rounding may end just before the client is available
            time = max(time + (1 - self._position(client, time)) * self._period, math.nextafter(time, math.inf))
        return time

    def _position(self, client: int, time: float) -> float:
        if client not in self._phases:
            self._phases[client] = float(numpy_generator(self._seed, "availability", client).random())
        return (time / self._period + self._phases[client]) % 1.0


def make_availability(config: AvailabilityConfig | None, seed: int) -> Availability:
    """The configured availability; without configuration, clients can always take part.

    Raises:
        ConfigError: neither or both of ``csv`` and ``period`` are set, or the file cannot be used.
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
    """Read columns of numbers from a CSV file with a header.

    Args:
        path: the file.
        columns: names of the columns to read; the first holds client ids.
        key: the configuration key that names the file, for error messages.

    Returns:
        One tuple for each row, with the values in the order of `columns`.

    Raises:
        ConfigError: the file cannot be read or has no rows, a column is missing, a value is not a finite number, or a
            client id is not a whole number ≥ 0.
    """
    header = ",".join(columns)
    try:
        check_plain(Path(path))
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
