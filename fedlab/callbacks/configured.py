"""The callbacks of a run: those that its configuration names, and those that it was given in Python."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedlab.callbacks.base import Callback
from fedlab.config import Component, Config
from fedlab.errors import ConfigError, FedLabError, Mistakes
from fedlab.registry import Registry

CALLBACKS = Registry(
    "callback",
    {"early_stopping": "fedlab.callbacks.early_stopping:EarlyStopping"},
    "fedlab.callbacks",
)
GIVEN = "given"
"""Name of a callback that was an object whose constructor takes more than settings, so that it cannot be made again."""
STOP = "federation.stop"


@dataclass(frozen=True)
class ConfiguredCallback:
    """A callback of a run.

    Args:
        key: configuration key, such as ``callbacks.0``, under which checkpoints hold its state.
        callback: the object.
    """

    key: str
    callback: Callback

    @property
    def name(self) -> str:
        """The name of its class, with the key: ``EarlyStopping (federation.stop)``."""
        return f"{type(self.callback).__name__} ({self.key})"

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and the other values of its state.

        Raises:
            FedLabError: a value is one that JSON cannot hold.
        """
        found = dict(self.callback.state_dict())
        tensors = {name: value.detach().cpu() for name, value in found.items() if isinstance(value, Tensor)}
        values = {name: value for name, value in found.items() if name not in tensors}
        for name, value in values.items():
            if not _survives(value):
                raise FedLabError(
                    f"the state of {self.name} holds {name!r} = {value!r}, which JSON cannot hold: state_dict() gives "
                    "tensors, texts, finite numbers, and lists and mappings of these, by name"
                )
        return tensors, values


def make_callbacks(config: Config, given: Sequence[Callback] = ()) -> tuple[ConfiguredCallback, ...]:
    """Make the callbacks of a configuration.

    Args:
        config: the configuration. The last entries of ``callbacks`` describe the callbacks that were given.
        given: callbacks that were given in Python.

    Raises:
        ConfigErrors: callbacks are unknown, or their settings are wrong.
    """
    mistakes, made = Mistakes(), list[ConfiguredCallback]()
    named = config.callbacks[: len(config.callbacks) - len(given)]
    if config.federation.stop is not None:
        stop = Component(name="early_stopping", **config.federation.stop.model_dump())
        made.append(ConfiguredCallback(STOP, _made(stop, STOP)))
    for index, component in enumerate(named):
        key = f"callbacks.{index}"
        with mistakes.collected():
            made.append(ConfiguredCallback(key, _made(component, key)))
    made += [ConfiguredCallback(f"callbacks.{len(named) + index}", one) for index, one in enumerate(given)]
    for one in made:
        with mistakes.collected():
            _check_state(one)
    mistakes.settle()
    return tuple(made)


def check_callbacks(config: Config, callbacks: Sequence[ConfiguredCallback]) -> list[str]:
    """Check that callbacks fit a configuration, and return warnings.

    Raises:
        ConfigErrors: some do not.
    """
    mistakes, warnings = Mistakes(), list[str]()
    for one in callbacks:
        with mistakes.collected():
            warnings += one.callback.check(config, one.key)
    mistakes.settle()
    return warnings


def _made(component: Component, key: str) -> Callback:
    if component.name == GIVEN:
        raise ConfigError(
            key,
            component.settings.get("of", GIVEN),
            "the callback object that this was run with, because its constructor takes more than settings",
            "make it again in Python and give it to fedlab.run(config, callbacks=[…]) or fedlab.resume(run, "
            "callbacks=[…]). In a deployment callbacks run on the server, which has no such objects: give the class a "
            "nested class Settings instead of arguments of its own, and name it in the configuration as module:Class",
        )
    found, settings = CALLBACKS.configured(component, key)
    if not issubclass(found, Callback):
        raise ConfigError(f"{key}.name", component.name, "a subclass of fedlab.Callback")
    if not takes_settings(found):
        fix = "give an object of it to fedlab.run(config, callbacks=[…]), or read its arguments from a class Settings"
        raise ConfigError(
            f"{key}.name", component.name, "a callback class whose constructor takes its settings only", fix
        )
    callback: Callback = found(settings)
    return callback


def described(callback: Callback, reference: str) -> Component:
    """What a configuration records of a callback object.

    Args:
        callback: the object.
        reference: ``module:Class`` of its class.
    """
    if not takes_settings(type(callback)):
        return Component(name=GIVEN, of=reference)
    return Component(name=reference, **callback.settings.model_dump(mode="json"))


def takes_settings(kind: type[Callback]) -> bool:
    """Whether a class can be made from its settings alone, as one that a configuration names."""
    return list(inspect.signature(kind).parameters) == ["settings"]


def _check_state(one: ConfiguredCallback) -> None:
    """Refuse a callback whose state no checkpoint could hold, before a run starts and not at its first checkpoint."""
    kind = type(one.callback)
    saves, loads = (getattr(kind, name) is not getattr(Callback, name) for name in ("state_dict", "load_state_dict"))
    if saves != loads:
        raise ConfigError(one.key, kind.__name__, "a callback with both state_dict() and load_state_dict(), or neither")
    try:
        one.state()
    except FedLabError as error:
        expected = "a callback whose state can be written to a checkpoint"
        raise ConfigError(one.key, kind.__name__, expected, str(error)) from error


def _survives(value: Any) -> bool:
    """Whether JSON gives a value back as it was; tuples come back as lists."""
    try:
        found = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return False
    return bool(found == _listed(value))


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _listed(part) for key, part in value.items()}
    return [_listed(part) for part in value] if isinstance(value, list | tuple) else value
