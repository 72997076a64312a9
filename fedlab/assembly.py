"""From a configuration to the objects both sides work with: method, task, networks, device."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

import fedlab.methods
from fedlab.config import Component, Config, TrainingConfig, parse
from fedlab.data.normalize import overall_statistics
from fedlab.errors import ConfigError
from fedlab.method import Method, Plan, Task
from fedlab.models import build_model, seeded_init
from fedlab.registry import Registry
from fedlab.seeding import derive_seed
from fedlab.storage.weights import load_weights

_MAIN_COLUMNS = ("image", "audio", "points", "text")  # a sample's shape is that of the first there is
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


def make_task(
    config: Config,
    columns: Mapping[str, tuple[str, Sequence[int]]],
    class_names: Sequence[str],
    num_clients: int,
    vocabulary: Sequence[str] = (),
) -> Task:
    """The facts a method may build on."""
    described = {name: (dtype, tuple(shape)) for name, (dtype, shape) in columns.items()}
    shape = next((described[name][1] for name in _MAIN_COLUMNS if name in described), ())

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


def stage_training(training: TrainingConfig, method: Method, plan: Plan) -> TrainingConfig:
    """The training section in a round with this plan.

    Raises:
        ConfigErrors: the method changes it to something invalid.
    """
    changes = method.training(plan)
    return parse(TrainingConfig, {**training.model_dump(), **changes}, "training") if changes else training


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
