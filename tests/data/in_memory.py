"""A source of data sets that tests have made."""

from __future__ import annotations

from typing import Any

from fedlab.config import Section
from fedlab.data.samples import Dataset


class Held:
    """A source of a data set in memory, by name."""

    sets: dict[str, Dataset] = {}  # noqa: RUF012  filled by the tests

    class Settings(Section):
        key: str

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def missing(self) -> str | None:
        return None

    def load(self, seed: int) -> Dataset:
        return self.sets[self.settings.key]
