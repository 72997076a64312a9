"""From a configuration to the objects both sides work with: components, task, networks.

Everything that a configuration names is made once in a process and handed on from there. The driver of a simulation
makes it in `fedlab.experiment.checks.resolve` and sends `Components` to its workers with the clients' setup; a deployed
server or client makes its own with `Assembly`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

import fedlab.methods
from fedlab.config import Component, Config, TrainingConfig, parse
from fedlab.data.columns import main_shape
from fedlab.data.normalize import overall_statistics
from fedlab.errors import ConfigError, ConfigErrors, InputError
from fedlab.method import Method, Plan, Task
from fedlab.models import build_model, seeded_init
from fedlab.privacy import DPSGD, Central, make_privacy
from fedlab.protocol.compression import Chain, make_chain
from fedlab.registry import Registry
from fedlab.seeding import derive_seed
from fedlab.storage.weights import load_weights

T = TypeVar("T")

METHODS = Registry(
    "method",
    {
        info.name: f"fedlab.methods.{info.name}.method:METHOD"
        for info in pkgutil.iter_modules(fedlab.methods.__path__)
        if info.ispkg
    },
    "fedlab.methods",
)


def make_method(component: Component) -> Method:
    """The configured method, its settings validated.

    Raises:
        ConfigError, ConfigErrors: unknown method or setting.
    """
    found = METHODS.find(component.name)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ConfigError("method.name", component.name, "a subclass of fedlab.Method", f"found {found!r}")
    return found(parse(found.Settings, component.settings, "method"))


class Stages:
    """The training section in the rounds of a run, as the method changes it; worked out once for each plan.

    Args:
        training: the run's own section.
        method: changes it from plan to plan.
    """

    def __init__(self, training: TrainingConfig, method: Method) -> None:
        self._training, self._method = training, method
        self._known: dict[str, TrainingConfig] = {}

    def training(self, plan: Plan) -> TrainingConfig:
        """The training section in a round with this plan.

        Raises:
            ConfigErrors: the method changes it to something invalid.
        """
        key = repr(sorted(plan.items()))
        if key not in self._known:
            changes = self._method.training(plan)
            changed = parse(TrainingConfig, {**self._training.model_dump(), **changes}, "training") if changes else None
            self._known[key] = changed or self._training
        return self._known[key]


@dataclass(frozen=True)
class Components:
    """What a configuration names and both sides of a run work with; picklable, as simulated clients receive it.

    Args:
        config: the configuration.
        method: the method object.
        privacy: the guarantee, None where there is none.
        chain: compression of uploads.
        stages: local training by plan.
    """

    config: Config
    method: Method
    privacy: Central | DPSGD | None
    chain: Chain
    stages: Stages

    def with_config(self, config: Config) -> Components:
        """The same components for a configuration that differs in its sections ``engine`` and ``training`` at most."""
        same = config.training == self.config.training
        return replace(self, config=config, stages=self.stages if same else Stages(config.training, self.method))


class Assembly:
    """Components in the making. What is wrong with any of them is collected, to be told in one go.

    Args:
        config: the configuration.
        method: a method object that replaces ``config.method``.
    """

    def __init__(self, config: Config, method: Method | None = None) -> None:
        self.errors: list[InputError] = []
        """What is wrong so far."""
        self.config = config
        self.method = method or self.attempt(lambda: make_method(config.method))
        self.chain = self.attempt(lambda: make_chain(config.exchange.compression))
        self.privacy = self.attempt(lambda: make_privacy(config.privacy))

    def attempt(self, work: Callable[[], T]) -> T | None:
        """What `work` returns; None where it finds something wrong with what the user gave."""
        try:
            return work()
        except ConfigErrors as several:
            self.errors.extend(several.errors)
        except InputError as error:
            self.errors.append(error)
        return None

    def components(self) -> Components:
        """The components, if nothing is wrong.

        Raises:
            ConfigErrors: everything that is wrong.
        """
        if self.errors or self.method is None or self.chain is None:
            raise ConfigErrors(self.errors)
        stages = Stages(self.config.training, self.method)
        return Components(self.config, self.method, self.privacy, self.chain, stages)


def make_task(
    config: Config,
    columns: Mapping[str, tuple[str, Sequence[int]]],
    class_names: Sequence[str],
    num_clients: int,
    vocabulary: Sequence[str] = (),
) -> Task:
    """The facts a method may build on."""
    described = {name: (dtype, tuple(shape)) for name, (dtype, shape) in columns.items()}
    shape = main_shape(described)

    def make(name: str | None, seed: int | None, settings: Mapping[str, Any]) -> nn.Module:
        component = Component(name=name, **settings) if name else config.model
        if seed is None:
            return build_model(component, shape, len(class_names))
        with seeded_init(seed):
            return build_model(component, shape, len(class_names))

    return Task(
        num_classes=len(class_names),
        input_shape=shape,
        class_names=tuple(class_names),
        num_clients=num_clients,
        model_name=config.model.name,
        columns=described,
        make_model=make,
        vocabulary=tuple(vocabulary),
        mean=overall_statistics(config.data.mean),
        std=overall_statistics(config.data.std),
    )


def build_networks(
    method: Method, task: Task, seed: int, device: torch.device, init: Mapping[str, str] | None = None
) -> nn.ModuleDict:
    """The method's networks in their initial state, which depends on the seed and `init` only.

    Args:
        method: builds them.
        task: facts about the job.
        seed: the run's seed.
        device: where they go.
        init: the run's ``init`` section.

    Raises:
        ConfigError: weights that are not there or do not fit.
    """
    with seeded_init(derive_seed(seed, "init")):
        networks = nn.ModuleDict(method.build(task))
    load_weights(networks, init or {})
    return networks.to(device)


def adapt(networks: nn.ModuleDict, training: TrainingConfig) -> nn.ModuleDict:
    """Networks in the layout, and compiled, as local training wants them; names and values stay as they are."""
    if training.channels_last:
        networks.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stub
    if training.compile:
        for network in networks.values():
            network.compile()
    return networks
