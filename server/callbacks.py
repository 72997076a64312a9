"""Runs the callbacks of a run, keeps their state, and notes when one of them asks the run to stop."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

from fedlab.callbacks import CallbackContext, ConfiguredCallback
from fedlab.errors import CallbackError
from fedlab.seeding import global_generators
from fedlab.server.setup import ServerSetup
from fedlab.tracking.tracker import plain

Hook = Literal["on_run_start", "on_round_start", "on_evaluation", "on_round_end", "on_run_end"]


@dataclass(frozen=True)
class Stopped:
    """A run that was stopped early.

    Args:
        round: the last round.
        by: the callback that asked for it.
        reason: why.
    """

    round: int
    by: str
    reason: str


class CallbackRunner:
    """The callbacks of one run.

    Args:
        setup: the run.
        network: state of the server's networks by name, which changes as the run goes on.

    Attributes:
        stopped: who has asked the run to stop, and why; None if nobody has.
    """

    def __init__(self, setup: ServerSetup, network: Mapping[str, Tensor]) -> None:
        self._setup, self._network, self._callbacks = setup, network, setup.callbacks
        self.stopped: Stopped | None = None

    def run_start(self, round: int) -> None:
        """The run begins, or goes on after a round."""
        self._call("on_run_start", round)

    def round_start(self, round: int) -> None:
        """A round begins."""
        self._call("on_round_start", round)

    def evaluated(self, round: int, record: Mapping[str, Any], evaluation: Mapping[str, Any]) -> None:
        """A round was evaluated.

        Args:
            round: the round.
            record: fields of its event ``round``.
            evaluation: fields of its event ``evaluation``.
        """
        self._call("on_evaluation", round, record, evaluation)

    def round_end(self, round: int, record: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> None:
        """A round was recorded; the arguments are as above, without an evaluation if there was none."""
        self._call("on_round_end", round, record, evaluation or {})

    def run_end(self, round: int) -> None:
        """The last round is over."""
        self._call("on_run_end", round)

    def book(self) -> dict[str, Any]:
        """What lasts from round to round beside tensors, for a checkpoint; empty without callbacks."""
        if not self._callbacks:
            return {}
        states = {one.key: one.state()[1] for one in self._callbacks}
        return {"states": states, **({"stopped": asdict(self.stopped)} if self.stopped is not None else {})}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the callbacks' states, by configuration key and name."""
        return {f"{one.key}/{name}": value for one in self._callbacks for name, value in one.state()[0].items()}

    def restore(self, book: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take over the `book` and the `tensors` of a checkpoint.

        Raises:
            CallbackError: a callback cannot read its state.
        """
        for one in self._callbacks:
            prefix = f"{one.key}/"
            held = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            try:
                one.callback.load_state_dict({**book.get("states", {}).get(one.key, {}), **held})
            except Exception as error:
                raise _failed(one, "load_state_dict", "when the run was resumed", error) from error
        found = book.get("stopped")
        self.stopped = None if found is None else Stopped(**found)

    def _call(
        self,
        hook: Hook,
        round: int,
        record: Mapping[str, Any] | None = None,
        evaluation: Mapping[str, Any] | None = None,
    ) -> None:
        """Call one hook of each callback.

        Raises:
            CallbackError: the hook of a callback fails.
        """
        if not self._callbacks:
            return
        config = self._setup.config
        rounds, told, measured = config.federation.rounds, plain(record or {}), plain(evaluation or {})
        for one in self._callbacks:

            def ask(reason: str, one: ConfiguredCallback = one) -> None:
                if self.stopped is None and hook != "on_run_end" and 0 < round < rounds:
                    self.stopped = Stopped(round, one.name, str(reason))

            context = CallbackContext(
                config=config,
                folder=self._setup.folder.path,
                round=round,
                rounds=rounds,
                record=told,
                evaluation=measured,
                stopped="" if self.stopped is None else self.stopped.reason,
                read_weights=self._weights,
                ask=ask,
                tell=lambda message: self._setup.tracker.emit("warning", message=str(message)),
            )
            try:
                with global_generators(config.seed, "callback", one.key, round, hook, device=self._setup.device):
                    getattr(one.callback, hook)(context)
            except Exception as error:
                raise _failed(one, hook, f"in round {round}" if round else "before round 1", error) from error

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self._network.items()}


def _failed(one: ConfiguredCallback, hook: str, when: str, error: Exception) -> CallbackError:
    own = error.__traceback__.tb_next if error.__traceback__ else None  # the first frame is the call in this file
    told = traceback.format_exception(type(error), error, own)
    return CallbackError(one.name, hook, when, "".join(told).rstrip())
