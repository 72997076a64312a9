"""Networks that a user gives a run in Python: an `nn.Module`, or a factory that makes one."""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import Field
from torch import nn

from fedlab.config import Component, Section, parse
from fedlab.errors import ConfigError
from fedlab.models.base import seeded_init
from fedlab.storage.hashing import state_hash

_TYPES = (
    "the name of a model (see `fedlab list models`), a torch.nn.Module, or a function or class that makes one of "
    "input_shape and num_classes"
)
_AGAIN = (
    "give it again in Python: fedlab.run(config, model=…), fedlab.resume(run, model=…) or fedlab.load(run, model=…)"
)
_FACTS = ("input_shape", "num_classes")


class GivenModelSettings(Section):
    """Description of the network; if nothing is set, any network is accepted."""

    of: str | None = Field(default=None, description="class of the network")
    made_by: str | None = Field(default=None, description="function or class that made it, if a factory was given")
    parameters: int | None = Field(default=None, ge=0, description="number of its parameters")
    fingerprint: str | None = Field(
        default=None, description="hash of its layers and initial weights; a network with another hash is refused"
    )


class GivenNetwork:
    """What a user gave in place of the run's model, from which the method's networks are made.

    A module is a template: every network that a method builds of it is a copy that starts with its weights. A factory
    is called for each network, with torch's generator seeded from the run's seed, as the models of the registry are. If
    it is a class with a nested class ``Settings(fedlab.config.Section)``, it is called like a model of the registry,
    ``Class(settings, input_shape, num_classes)``; any other factory gets those of ``input_shape`` and ``num_classes``
    that it names.

    Args:
        given: the module or the factory.
        component: the run's section ``model``: the settings of a class that has some, or the description of a network
            with which this one must agree.

    Raises:
        ConfigError: it is neither a module nor a factory, or the factory needs other arguments.
        ConfigErrors: wrong settings.
    """

    def __init__(self, given: Any, component: Component) -> None:
        self.given = given
        self.settings: Section = parse(settings_class(given) or GivenModelSettings, component.settings, "model")
        self._facts = () if isinstance(given, nn.Module) or self.configurable else _arguments(given)

    @property
    def configurable(self) -> bool:
        """Whether it is a class with settings, as those of the registry are."""
        return settings_class(self.given) is not None

    @property
    def title(self) -> str:
        """What it is called in reports and errors."""
        return reference(self.given).rpartition(":")[2]

    def make(self, input_shape: Sequence[int], num_classes: int, *, seeded: bool = False) -> nn.Module:
        """A network with initial weights.

        Args:
            input_shape: shape of one sample.
            num_classes: K.
            seeded: whether the method asks for weights of a seed of its own.

        Raises:
            ConfigError: the factory returns no module; the module cannot be copied, or other weights than its own are
                asked for.
        """
        shape = tuple(input_shape)
        if isinstance(self.given, nn.Module):
            if seeded:
                expected = "a factory, because the method builds networks with different initial weights"
                raise ConfigError("model", self.title, expected, "give the class, or a function that returns a new one")
            return _copied(self.given, self.title)
        facts = dict(zip(_FACTS, (shape, num_classes), strict=True))
        made = (
            self.given(self.settings, shape, num_classes)
            if self.configurable
            else self.given(**{name: facts[name] for name in self._facts})
        )
        if not isinstance(made, nn.Module):
            raise ConfigError("model", self.title, "a factory that returns a torch.nn.Module", f"it returns {made!r}")
        return made

    def described(self, input_shape: Sequence[int], num_classes: int) -> Component:
        """The section ``model`` that a run records.

        For a class with settings this is its ``module:Class`` with the settings. Anything else is described by class,
        number of parameters and a hash.

        Args:
            input_shape: shape of one sample.
            num_classes: K.

        Raises:
            ConfigError: the network is not the one that the run's section ``model`` describes; its layers are not
                initialized yet; or a factory draws weights from something else than torch's generator.
        """
        if isinstance(self.settings, GivenModelSettings):
            return self._as_given(self.settings, input_shape, num_classes)
        return Component(name=reference(self.given), **self.settings.model_dump(mode="json"))

    def _as_given(self, wanted: GivenModelSettings, input_shape: Sequence[int], num_classes: int) -> Component:
        made, again = (self._drawn(input_shape, num_classes) for _ in range(2))
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in made.parameters()):
            fix = "call it once on a batch before you give it, or give its layers their sizes"
            raise ConfigError("model", self.title, "a network whose lazy layers are initialized", fix)
        found = fingerprint(made)
        if found != fingerprint(again):
            expected = "a factory that makes equal networks when torch's generator is seeded equally"
            fix = "draw weights as torch.nn's layers do, from torch's generator, and count nothing between calls"
            raise ConfigError("model", self.title, expected, fix)
        settings = GivenModelSettings(
            of=reference(made),
            made_by=None if isinstance(self.given, nn.Module) else reference(self.given),
            parameters=sum(p.numel() for p in made.parameters()),
            fingerprint=found,
        )
        if wanted.fingerprint not in (None, found):
            raise ConfigError(
                "model",
                f"{settings.of}, {settings.parameters:,} parameters, fingerprint {found}",
                f"the network of this configuration: {_described(wanted)}",
                "give that network with its initial weights, or begin a new run",
            )
        return Component(name="given", **settings.model_dump(mode="json", exclude_none=True))

    def _drawn(self, input_shape: Sequence[int], num_classes: int) -> nn.Module:
        with seeded_init(0):
            return self.make(input_shape, num_classes)


def refuse_absent(component: Component) -> None:
    """Say that a configuration's network was given in Python and has to be given again.

    Raises:
        ConfigError: always, or `ConfigErrors` if the description is not valid.
    """
    wanted = parse(GivenModelSettings, component.settings, "model")
    raise ConfigError("model", _described(wanted), "the network itself, which was given in Python", _AGAIN)


def settings_class(given: object) -> type[Section] | None:
    """The class that validates the settings of a model class of the registry's kind; None for anything else."""
    settings = getattr(given, "Settings", None)
    if not (isinstance(given, type) and issubclass(given, nn.Module)):
        return None
    return settings if isinstance(settings, type) and issubclass(settings, Section) else None


def fingerprint(network: nn.Module) -> str:
    """Hash of a network's layers, as it prints itself, and of its weights."""
    layers = re.sub(r" at 0x[0-9a-f]+", "", repr(network))
    return hashlib.blake2b(f"{layers}{state_hash(network)}".encode(), digest_size=16).hexdigest()


def reference(given: object) -> str:
    """The ``module:name`` of a function, a class or of an object's class."""
    while isinstance(given, functools.partial):
        given = given.func
    named = given if isinstance(given, type) or inspect.isroutine(given) else type(given)
    return f"{named.__module__}:{named.__qualname__}"


def _described(wanted: GivenModelSettings) -> str:
    if wanted.fingerprint is None:
        return "any"
    by = f", made by {wanted.made_by}" if wanted.made_by else ""
    return f"{wanted.of}{by}, {wanted.parameters:,} parameters, fingerprint {wanted.fingerprint}"


def _arguments(given: Callable[..., Any]) -> tuple[str, ...]:
    """Those facts about the data that a factory wants to know."""
    if not callable(given):
        raise ConfigError("model", given, _TYPES)
    title = reference(given)
    try:
        parameters = inspect.signature(given).parameters.values()
    except (TypeError, ValueError) as error:
        raise ConfigError("model", title, _TYPES, f"its arguments cannot be found out: {error}") from error
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = [
        p.name
        for p in parameters
        if p.default is p.empty
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        and not (p in by_name and p.name in _FACTS)
    ]
    if needed:
        raise ConfigError(
            "model",
            title,
            f"a function or class that needs no other arguments than {' and '.join(_FACTS)}; this one needs "
            + ", ".join(needed),
            "call its arguments so, give them defaults, or give the network itself",
        )
    return tuple(p.name for p in by_name if p.name in _FACTS)


def _copied(module: nn.Module, title: str) -> nn.Module:
    try:
        return copy.deepcopy(module).cpu()
    except Exception as error:  # whatever a module's own __deepcopy__ or a tensor of a graph raises
        fix = f"give a factory instead, such as its class ({type(error).__name__}: {error})".splitlines()[0]
        raise ConfigError("model", title, "a network that copy.deepcopy can copy", fix) from error
