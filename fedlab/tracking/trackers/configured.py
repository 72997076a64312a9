"""The trackers that a configuration names: made, and checked before a run folder is made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from fedlab.config import Component, TrackingConfig
from fedlab.errors import ConfigError, Mistakes
from fedlab.registry import Registry
from fedlab.storage.secrets import HIDDEN
from fedlab.tracking.trackers.base import RunTracker

TRACKERS = Registry(
    "tracker",
    {
        "csv": "fedlab.tracking.trackers.wide:WideCsv",
        "mlflow": "fedlab.tracking.trackers.mlflow:MLflow",
        "tensorboard": "fedlab.tracking.trackers.tensorboard:TensorBoard",
        "wandb": "fedlab.tracking.trackers.weights_and_biases:WeightsAndBiases",
    },
    "fedlab.trackers",
)


def make_trackers(tracking: TrackingConfig) -> tuple[RunTracker, ...]:
    """Make the trackers of a configuration.

    ``tracking.tensorboard`` and ``tracking.mlflow`` stand for trackers of these names, unless ``tracking.trackers``
    names one.

    Raises:
        ConfigErrors: trackers are unknown or named twice, or their settings are wrong.
    """
    mistakes, made, seen = Mistakes(), list[RunTracker](), set[str]()
    for key, component in _components(tracking):
        with mistakes.collected():
            text = json.dumps(component.model_dump(mode="json"), sort_keys=True, default=str)
            if text in seen:
                raise ConfigError(key, component.name, "each tracker once", "remove it")
            seen.add(text)
            made.append(_made(component, key))
    mistakes.settle()
    return tuple(made)


def check_trackers(trackers: Sequence[RunTracker]) -> list[str]:
    """Check trackers before a run folder is made, and return warnings.

    Raises:
        ConfigErrors: packages, logins or addresses are missing.
    """
    mistakes, warnings = Mistakes(), list[str]()
    for tracker in trackers:
        with mistakes.collected():
            hidden = unrecorded(tracker)
            warnings += [hidden] if hidden else tracker.check()
    mistakes.settle()
    return warnings


def unrecorded(tracker: RunTracker) -> str:
    """A warning if a secret of a tracker was not recorded, so that a resumed run cannot use the tracker; else ""."""
    settings = tracker.settings.model_dump(mode="json")
    lost = [name for name, value in settings.items() if _is_hidden(value)]
    if not lost:
        return ""
    key = tracker.key if tracker.key == "tracking.mlflow" else f"{tracker.key}.{lost[0]}"
    told = f"the secrets in {key} = {settings[lost[0]]} were not recorded; give them again by --set {key}=…"
    return ", or by ".join(
        [f"{tracker.without}: {told}", *([" and ".join(tracker.variables)] if tracker.variables else [])]
    )


def _is_hidden(value: Any) -> bool:
    return isinstance(value, str) and (value == HIDDEN or f"://{HIDDEN}@" in value)


def _components(tracking: TrackingConfig) -> Iterator[tuple[str, Component]]:
    """Key and component of every tracker."""
    named = {component.name for component in tracking.trackers}
    if tracking.tensorboard and "tensorboard" not in named:
        yield "tracking.tensorboard", Component(name="tensorboard")
    if tracking.mlflow is not None and "mlflow" not in named:
        yield "tracking.mlflow", Component(name="mlflow", uri=tracking.mlflow)
    for index, component in enumerate(tracking.trackers):
        yield f"tracking.trackers.{index}", component


def _made(component: Component, key: str) -> RunTracker:
    found, settings = TRACKERS.configured(component, key)
    if not issubclass(found, RunTracker):
        raise ConfigError(f"{key}.name", component.name, "a subclass of fedlab.tracking.RunTracker")
    tracker: RunTracker = found(settings, key)
    return tracker
