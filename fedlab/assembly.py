"""Makes the objects that server and clients both need from a configuration: components, task and networks.

In each process, the components are made once and then passed on. In a simulation, the main process makes them in
`fedlab.experiment.checks.resolve`, and workers receive them as `Components`. In a deployment, the server and each
client make their own with `Assembly`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

import fedlab.methods
from fedlab.config import Component, Config, TrainingConfig, parse
from fedlab.data.augment import Augment, make_augment
from fedlab.data.holdings import Holdings
from fedlab.data.normalize import overall_statistics
from fedlab.errors import ConfigError, Mistakes
from fedlab.method import Method, Plan, Task, WorkContext
from fedlab.method.assets import Assets, Holding, Shelf
from fedlab.method.columns import main_shape
from fedlab.models import GivenNetwork, build_model, seeded_init
from fedlab.privacy import DPSGD, Central, make_privacy
from fedlab.probes import ConfiguredProbe, make_probes
from fedlab.protocol.compression import Chain, make_chain
from fedlab.registry import Registry
from fedlab.seeding import derive_seed
from fedlab.storage.cache import ResultCache
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
    """Make the method that a configuration names, with validated settings.

    Raises:
        ConfigError, ConfigErrors: there is no such method, or its settings are wrong.
    """
    found = METHODS.find(component.name)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ConfigError("method.name", component.name, "a subclass of fedlab.Method", f"found {found!r}")
    return found(parse(found.Settings, component.settings, "method"))


class Stages:
    """The section ``training`` in each round of a run, with the changes that the method makes to it.

    Args:
        training: the section of the configuration.
        method: the method, whose hook `Method.training` is called once for each plan.
    """

    def __init__(self, training: TrainingConfig, method: Method) -> None:
        self._training, self._method = training, method
        self._known: dict[str, TrainingConfig] = {}

    def training(self, plan: Plan) -> TrainingConfig:
        """The section ``training`` in a round with this plan.

        Raises:
            ConfigErrors: the method's changes make it invalid.
        """
        key = repr(sorted(plan.items()))
        if key not in self._known:
            changes = self._method.training(plan)
            changed = parse(TrainingConfig, {**self._training.model_dump(), **changes}, "training") if changes else None
            self._known[key] = changed or self._training
        return self._known[key]


@dataclass(frozen=True)
class Components:
    """The components that both server and clients need. They can be pickled, because workers receive them.

    Args:
        config: the configuration.
        method: the method object.
        privacy: the configured differential privacy; None if there is none.
        chain: the steps that compress the clients' updates.
        stages: the section ``training`` by plan.
        probes: the probes of the method's features.
        augment: the random changes of the images in training batches.
        shelf: the assets that have been built in this process.
        network: what was given in Python in place of the run's model; None if the configuration names it.
    """

    config: Config
    method: Method
    privacy: Central | DPSGD | None
    chain: Chain
    stages: Stages
    probes: Sequence[ConfiguredProbe] = ()
    augment: Augment = field(default_factory=Augment)
    shelf: Shelf = field(default_factory=Shelf)
    network: GivenNetwork | None = None

    def with_config(self, config: Config) -> Components:
        """The same components with another configuration, which may differ in ``engine`` and ``training`` only."""
        same = config.training == self.config.training
        return replace(self, config=config, stages=self.stages if same else Stages(config.training, self.method))


class Assembly:
    """Makes components, and collects everything that is wrong with them, so that all errors are raised at once.

    Args:
        config: the configuration.
        method: a method object that replaces ``config.method``.
        network: what replaces ``config.model``.
    """

    def __init__(self, config: Config, method: Method | None = None, network: GivenNetwork | None = None) -> None:
        self._mistakes = Mistakes()
        self.config, self.network = config, network
        self.method = method or self.attempt(lambda: make_method(config.method))
        self.chain = self.attempt(lambda: make_chain(config.exchange.compression))
        self.privacy = self.attempt(lambda: make_privacy(config.privacy))
        parts = type(self.method).feature_parts if self.method is not None else None
        self.probes = self.attempt(lambda: make_probes(config.probes, parts, config.data.held))
        self.augment = self.attempt(lambda: make_augment(config.data, self.method))

    def attempt(self, work: Callable[[], T]) -> T | None:
        """Call `work` and return its result; None if it raised an error about the user's input, which is collected."""
        made: T | None = None
        with self._mistakes.collected():
            made = work()
        return made

    def components(self) -> Components:
        """The components.

        Raises:
            ConfigErrors: all collected errors, if there are any.
        """
        self._mistakes.settle()
        assert self.method is not None  # what is None has left an error
        assert self.chain is not None
        assert self.probes is not None
        assert self.augment is not None
        stages = Stages(self.config.training, self.method)
        return Components(
            self.config, self.method, self.privacy, self.chain, stages, self.probes, self.augment, network=self.network
        )


def make_task(
    config: Config,
    columns: Mapping[str, tuple[str, Sequence[int]]],
    class_names: Sequence[str],
    num_clients: int,
    vocabulary: Sequence[str] = (),
    asset_paths: Mapping[str, str] | None = None,
    network: GivenNetwork | None = None,
) -> Task:
    """Make the task that a method is given.

    Args:
        config: the configuration.
        columns: dtype and shape per sample of each column, by name.
        class_names: the name of each class, in the order of the labels.
        num_clients: number of registered clients.
        vocabulary: the words that the numbers in a text column stand for; empty if there is no such column.
        asset_paths: where this participant has the files of assets, by name; default: the run's ``data.assets``.
        network: what was given in Python in place of the configured model.
    """
    described = {name: (dtype, tuple(shape)) for name, (dtype, shape) in columns.items()}
    shape = main_shape(described)

    def make(name: str | None, seed: int | None, settings: Mapping[str, Any]) -> nn.Module:
        with nullcontext() if seed is None else seeded_init(seed):
            if name is None and network is not None:
                return network.make(shape, len(class_names), seeded=seed is not None)
            return build_model(Component(name=name, **settings) if name else config.model, shape, len(class_names))

    return Task(
        num_classes=len(class_names),
        input_shape=shape,
        class_names=tuple(class_names),
        num_clients=num_clients,
        model_name=config.model.name if network is None else network.title,
        columns=described,
        make_model=make,
        vocabulary=tuple(vocabulary),
        asset_paths=config.data.assets if asset_paths is None else asset_paths,
        mean=overall_statistics(config.data.mean),
        std=overall_statistics(config.data.std),
    )


def build_networks(
    method: Method, task: Task, seed: int, device: torch.device, init: Mapping[str, str] | None = None
) -> nn.ModuleDict:
    """Build the method's networks by role, in their initial state.

    The random draws of the initialization depend on the run's seed only.

    Args:
        method: the method, whose `Method.build` is called.
        task: the task.
        seed: the run's seed.
        device: the device to which the networks are moved.
        init: the run's section ``init``, which names files or runs with initial weights, by role.

    Raises:
        ConfigError: weights that `init` names do not exist or do not fit.
    """
    with seeded_init(derive_seed(seed, "init")):
        networks = nn.ModuleDict(method.build(task))
    load_weights(networks, init or {})
    return networks.to(device)


def make_assets(components: Components, task: Task, device: torch.device, cache: Path | None) -> Assets:
    """Make the method's assets, of which none is built yet.

    Args:
        components: the run's components.
        task: the task.
        device: the device to which networks are moved.
        cache: folder of results that outlive runs; None keeps nothing.
    """
    config = components.config

    def bench(name: str) -> WorkContext:
        return WorkContext(
            task=task,
            networks=nn.ModuleDict(),
            training=config.training,
            device=device,
            seed=config.seed,
            round=0,
            rounds=config.federation.rounds,
            plan={},
            scope=("asset", name),
            cache=None if cache is None else ResultCache(cache, lambda: "", config.seed, device),
        )

    return Assets(components.method.assets(replace(task, bench=bench)), config.seed, device, components.shelf)


def server_holding(components: Components, task: Task, device: torch.device, cache: Path | None) -> Holding:
    """What the server holds of the method's assets, as ``data.server_holds`` says; the arguments are as above."""
    assets = make_assets(components, task, device, cache)
    return Holding("the server", Holdings(components.config.data, (), assets.names).server, assets)


def adapt(networks: nn.ModuleDict, training: TrainingConfig) -> nn.ModuleDict:
    """Change the memory layout of networks and compile them, in place, if ``training`` asks for it.

    The names and values of their state do not change.
    """
    if training.channels_last:
        networks.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stub
    if training.compile:
        for network in networks.values():
            network.compile()
    return networks
