"""The base class of trackers, and what a tracker is told of a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from fedlab.config import Config, Section
from fedlab.config.flowerapp import FlowerAppConfig
from fedlab.storage.runfolder import RunFolder
from fedlab.tracking.tracker import Event


class NumberSettings(Section):
    """Settings of trackers that send numbers."""

    most_clients: int = Field(
        default=40,
        ge=0,
        description="largest number of clients whose metrics are sent for each client; of more clients only minimum, "
        "quantiles and maximum are sent, because thousands of curves cannot be read",
    )


class NoSettings(Section):
    """Settings of a tracker that has none."""


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker is opened for.

    Args:
        folder: the run folder.
        config: the run's configuration. It may hold passwords: `fedlab.storage.secrets.tree_redacted` hides them.
        resumed: the round after which the run continues, 0 if it begins again, None for a new run.
    """

    folder: RunFolder
    config: Config | FlowerAppConfig
    resumed: int | None = None


class RunTracker(ABC):
    """Receives the events of a run, see `fedlab.tracking.tracker`, and sends them somewhere.

    `fedlab.tracking.table.rows` gives the numbers in an event. A tracker that fails in `open` or `write` is left out
    from then on with a warning, because it must not cost a result.

    Args:
        settings: an instance of the class's `Settings`.
        key: configuration key of this tracker, for errors.
    """

    Settings: ClassVar[type[Section]] = NoSettings
    """The tracker's keys in the configuration.

    The values of keys that are called like passwords, such as ``token`` or ``api_key``, are not recorded in the run
    folder. A run that is resumed then needs them again, so environment variables are a better place for them.
    """

    variables: ClassVar[tuple[str, ...]] = ()
    """Environment variables that the tracker reads secrets from, which are named where a secret is missing."""

    def __init__(self, settings: Any, key: str) -> None:
        self.settings, self.key = settings, key

    @property
    def without(self) -> str:
        """What is missing if this tracker cannot be used, for warnings."""
        return f"nothing is sent to {type(self).__name__}"

    def check(self) -> Sequence[str]:
        """Check, before the run folder is made, that packages, logins and addresses are there.

        Returns:
            Warnings, as sentences; the run begins nevertheless.

        Raises:
            ConfigError: something is missing.
        """
        return ()

    @abstractmethod
    def open(self, run: TrackedRun) -> None:
        """Called once when the run folder exists, before the first event."""

    @abstractmethod
    def write(self, event: Event) -> None:
        """Receive an event: ``event`` is its kind, ``time`` the seconds since the epoch, and the others its fields."""

    def close(self) -> None:
        """Called when the run has ended, however it has."""
