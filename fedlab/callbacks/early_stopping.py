"""Early stopping: a run ends when a metric of the clients' validation samples no longer improves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fedlab.callbacks.base import Callback, CallbackContext
from fedlab.config import Config, StopConfig
from fedlab.errors import UNSET, ConfigError
from fedlab.metrics.direction import best_of, ranked

_WEIGHTS = "weights/"
_SCOPES = {"mean": "validation", "pooled": "validation_pooled"}


class EarlyStopping(Callback):
    """Ends a run when a metric of the clients' validation samples no longer improves, and keeps the best weights.

    Test samples are never looked at. A value is an improvement if it is better than the best one so far by more than
    ``minimum``. After ``patience`` evaluations in a row without an improvement the run ends. An evaluation that lacks
    the metric, as those of an earlier stage of a method may, counts for nothing.
    """

    Settings = StopConfig
    settings: StopConfig

    def __init__(self, settings: StopConfig) -> None:
        super().__init__(settings)
        self._best: float | None = None
        self._round = self._waited = 0
        self._weights: dict[str, Tensor] = {}
        self._missed = False

    def check(self, config: Config, key: str) -> Sequence[str]:
        s = self.settings
        if config.data.validation is None:
            expected = "validation samples on the clients, because a run must not be stopped by its test samples"
            raise ConfigError(key, s.metric, expected, "set data.validation, for example data.validation: 0.1")
        if not config.evaluation.validation:
            expected = "evaluations on the clients' validation samples"
            raise ConfigError(key, s.metric, expected, "set evaluation.validation: true")
        if s.better is None and best_of(s.metric) is None:
            expected = "higher or lower, because the name of the metric does not tell which values are better"
            raise ConfigError(f"{key}.better", UNSET, f"{expected}: {s.metric}", f"set {key}.better")
        last = config.federation.rounds
        evaluations = sum(round % config.evaluation.every == 0 or round == last for round in range(1, last + 1))
        if s.patience >= evaluations:
            return [f"{key}.patience = {s.patience} never ends this run early, which has {evaluations} evaluations"]
        return ()

    def on_evaluation(self, ctx: CallbackContext) -> None:
        s, measured = self.settings, ctx.evaluation.get(_SCOPES[self.settings.over], {})
        if s.metric not in measured:
            if not self._missed:
                self._missed = True
                there = ", ".join(ranked(measured)) or "no metric at all"
                what = f"early stopping watches {s.metric!r}, which the evaluation on validation samples after round"
                ctx.warn(f"{what} {ctx.round} does not have: it has {there}")
            return
        value = measured[s.metric]
        if value is not None and self._improves(float(value)):
            self._best, self._round, self._waited = float(value), ctx.round, 0
            self._weights = ctx.weights() if s.keep_best else {}
            return
        self._waited += 1
        if self._waited >= s.patience:
            best = (
                "it never had a finite value" if self._best is None else f"best {self._best:.4g} in round {self._round}"
            )
            ctx.stop(f"validation {s.metric} did not improve in {self._waited} evaluations, {best}")

    def state_dict(self) -> dict[str, Any]:
        state = {"best": self._best, "round": self._round, "waited": self._waited, "missed": self._missed}
        return {**state, **{f"{_WEIGHTS}{name}": value for name, value in self._weights.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        best = state["best"]
        self._best = None if best is None else float(best)
        self._round, self._waited, self._missed = int(state["round"]), int(state["waited"]), bool(state["missed"])
        self._weights = {
            name.removeprefix(_WEIGHTS): value for name, value in state.items() if name.startswith(_WEIGHTS)
        }

    def artifacts(self) -> dict[str, dict[str, Tensor]]:
        """The weights of the best evaluation, one file a network, as the section ``init`` reads them."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, value in self._weights.items():
            role, _, rest = name.partition(".")
            found.setdefault(f"best_{self.settings.metric}_{role}", {})[rest] = value
        return found

    def _improves(self, value: float) -> bool:
        if self._best is None:
            return True
        higher = self.settings.better == "higher" if self.settings.better else best_of(self.settings.metric) is max
        gain = value - self._best if higher else self._best - value
        return gain > self.settings.minimum
