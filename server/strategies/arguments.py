"""The constructor arguments of a Flower strategy as settings of the configuration."""

from __future__ import annotations

import inspect
import re
import typing
from typing import Any, ClassVar

from flwr.serverapp.strategy import Strategy
from pydantic import ConfigDict, create_model

from fedlab.config import Component, Section, parse
from fedlab.errors import ConfigError
from fedlab.protocol.messages import ARRAYS, CONFIG

KEY = "federation.strategy"
_FIXED = {"arrayrecord_key": ARRAYS, "configrecord_key": CONFIG}


class _Arguments(Section):
    """Base of the models that validate constructor arguments; what YAML cannot express keeps its default."""

    model_config: ClassVar[ConfigDict] = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())
    passed_on: ClassVar[frozenset[str]] = frozenset()
    """Arguments that a constructor takes as ``**kwargs`` only: what it does without them is its own affair."""


def construct(kind: type[Strategy], component: Component) -> Strategy:
    """A strategy from the settings of its component, checked against its constructor's annotations.

    Raises:
        ConfigError, ConfigErrors: an argument that is unknown, missing, of the wrong type, or refused by the class.
    """
    arguments = parse(arguments_model(kind), component.settings, KEY)
    given = {name: getattr(arguments, name) for name in component.settings}
    constructor: Any = kind
    try:
        strategy: Strategy = constructor(**given)
    except (TypeError, ValueError) as error:
        blamed = next((name for name in given if re.search(rf"\b{name}\b", str(error))), None)
        key, value = (f"{KEY}.{blamed}", given[blamed]) if blamed else (KEY, component.settings)
        raise ConfigError(key, value, f"what {component.name} accepts", str(error)) from error
    return strategy


def check_participants(strategy: Strategy, clients: int) -> None:
    """Refuse a strategy that would wait forever because it asks for more nodes than the federation has.

    Raises:
        ConfigError: the strategy asks for more clients than there are.
    """
    while isinstance(wrapped := getattr(strategy, "strategy", None), Strategy):  # differential privacy
        strategy = wrapped
    for phase in ("train", "evaluate"):
        fraction = getattr(strategy, f"fraction_{phase}", None)
        if fraction is None or (fraction == 0 and phase == "evaluate"):
            continue
        if not 0 < fraction <= 1:
            raise ConfigError(f"{KEY}.fraction_{phase}", fraction, "a share of the clients, above 0 and at most 1")
        for name in (f"min_{phase}_nodes", "min_available_nodes"):
            least = getattr(strategy, name, 0)
            if least > clients:
                raise ConfigError(
                    f"{KEY}.{name}", least, f"at most {clients}, the clients of the federation", f"set {name}"
                )


def arguments_model(kind: type[Strategy]) -> type[_Arguments]:
    """A class that validates a strategy's constructor arguments."""
    fields: dict[str, Any] = {}
    for name, (annotation, default) in _parameters(kind).items():
        if name not in _FIXED and "Callable" not in str(annotation):
            fields[name] = (annotation, ... if default is inspect.Parameter.empty else default)
    model: type[_Arguments] = create_model(f"{kind.__name__}Arguments", __base__=_Arguments, **fields)
    model.passed_on = frozenset(fields) - inspect.signature(kind).parameters.keys()
    return model


def known_arguments(strategy: Strategy) -> tuple[dict[str, Any], list[str]]:
    """The constructor arguments of a strategy object, as far as they can be found out from outside.

    Flower's strategies, and most others, keep an argument as an attribute of its name. That this is so is tried: a
    strategy made anew of these must look alike.

    Returns:
        Arguments that are plain values, and the names of the others.
    """
    kind: Any = type(strategy)
    found: dict[str, Any] = {}
    unknown: list[str] = []
    for name, (_, default) in _parameters(kind).items():
        value = getattr(strategy, name, inspect.Parameter.empty)
        if name in _FIXED or value is default or (name in arguments_model(kind).passed_on and value == default):
            continue
        if _plain(value):
            found[name] = value
        else:
            unknown.append(name)
    try:
        again = kind(**found)
    except (TypeError, ValueError):
        return {}, [name for name in _parameters(kind) if name not in _FIXED]
    absent = object()
    unknown = [name for name in unknown if getattr(again, name, absent) is not getattr(strategy, name, None)]
    if any(_plain(value) and getattr(again, name, absent) != value for name, value in vars(strategy).items()):
        return {}, [name for name in _parameters(kind) if name not in _FIXED]
    return found, unknown


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(inner) for key, inner in value.items())
    return value is None or isinstance(value, bool | int | float | str)


def _parameters(kind: type) -> dict[str, tuple[Any, Any]]:
    """Name → (annotation, default), followed into the base classes while a constructor takes ``**kwargs``."""
    found: dict[str, tuple[Any, Any]] = {}
    for owner in kind.__mro__:
        if "__init__" not in vars(owner) or owner is object:
            continue
        constructor = vars(owner)["__init__"]
        hints = _hints(constructor)
        passes_on = False
        for parameter in list(inspect.signature(constructor).parameters.values())[1:]:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(parameter.name, (hints.get(parameter.name, Any), parameter.default))
            passes_on |= parameter.kind is parameter.VAR_KEYWORD
        if not passes_on:
            break
    return found


def _hints(constructor: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(constructor)
    except NameError:  # names imported for type checkers only: the constructor itself must do the checking
        return {}
