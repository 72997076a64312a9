"""The base class of callbacks, and what a callback may read of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from fedlab.config import Config, Section
from fedlab.errors import FedLabError


@dataclass(frozen=True)
class CallbackContext:
    """What a callback may read at one moment of a run, and what it may ask for.

    Nothing that a callback does to these objects changes the run.

    Args:
        config: the run's configuration.
        folder: the run folder, for files of the callback's own.
        round: the round, from 1. In `Callback.on_run_start` it is the last round that is finished, 0 for a new run.
        rounds: number of rounds that are planned.
        record: the fields of the event ``round`` (see `fedlab.tracking.tracker`), such as ``train``, the means of what
            the clients logged, ``server``, what the server logged, and ``bytes_up``. It is empty before the round ends.
        evaluation: the fields of the event ``evaluation`` of this round, such as ``mean``, ``pooled`` and
            ``validation``. It is empty if the round was not evaluated.
        stopped: in `Callback.on_run_end`, why the run was stopped early; otherwise "".
        read_weights: makes `weights`.
        ask: takes the reason of `stop`.
        tell: takes the text of `warn`.
    """

    config: Config
    folder: Path
    round: int
    rounds: int
    record: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    stopped: str = ""
    read_weights: Callable[[], dict[str, Tensor]] = dict
    ask: Callable[[str], None] = lambda reason: None
    tell: Callable[[str], None] = lambda message: None

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the state of the server's networks, on the CPU, by ``ROLE.NAME``: ``model.head.bias``."""
        return self.read_weights()

    def stop(self, reason: str) -> None:
        """Ask the run to end after this round, which is then evaluated and finished as a last round is.

        The last round ends the run anyway, and a request in `Callback.on_run_end` has no effect.

        Args:
            reason: why, as a clause that follows "stopped early after round 3 of 10: ".
        """
        self.ask(reason)

    def warn(self, message: str) -> None:
        """Record a warning of the run, which the console and the report show."""
        self.tell(message)


class NoSettings(Section):
    """Settings of a callback that has none."""


class Callback:
    """Follows a run on the server. A subclass overrides the hooks that it needs.

    Hooks run one after the other, in the order in which the configuration names the callbacks. Python's, NumPy's and
    torch's global generators are seeded for each of them, so that what a callback draws is the same whenever the run
    is repeated and does not change what others draw.

    Args:
        settings: an instance of the class's `Settings`; default: one in which every setting has its default.
    """

    Settings: ClassVar[type[Section]] = NoSettings
    """The callback's keys in the configuration."""

    def __init__(self, settings: Any = None) -> None:
        self.settings = self.Settings() if settings is None else settings

    def check(self, config: Config, key: str) -> Sequence[str]:
        """Check before a run starts that the callback fits the configuration.

        Args:
            config: the run's configuration.
            key: configuration key of this callback, for errors.

        Returns:
            Warnings, as sentences.

        Raises:
            ConfigError: it does not fit.
        """
        return ()

    def on_run_start(self, ctx: CallbackContext) -> None:
        """Called before the first round, and again whenever the run is resumed, after `load_state_dict`."""

    def on_round_start(self, ctx: CallbackContext) -> None:
        """Called before the clients of a round are chosen."""

    def on_evaluation(self, ctx: CallbackContext) -> None:
        """Called after each evaluation, before `on_round_end`.

        If a callback has asked in `on_round_end` to stop after a round without an evaluation, the round is evaluated
        afterwards, and this is called then.
        """

    def on_round_end(self, ctx: CallbackContext) -> None:
        """Called when a round has been recorded, before its checkpoint is written."""

    def on_run_end(self, ctx: CallbackContext) -> None:
        """Called after the last round, or after the round in which the run was stopped; not if the run fails."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return what the callback has to remember when a run is resumed, by name: tensors and values of JSON.

        It is part of every checkpoint.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned when the checkpoint was written. Tensors are on the CPU."""
        if state:
            raise FedLabError(
                f"{type(self).__name__} defines state_dict() without load_state_dict(), so that its state "
                f"({', '.join(sorted(state))}) cannot be restored: define both"
            )

    def artifacts(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Return tensors that the run folder keeps when the run ends: name of a file → its tensors by name."""
        return {}
