"""Prepares a run: makes its components, divides its data and tries one client. Nothing is written to its folder yet."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fedlab.clients.setup import ClientSetup
from fedlab.config import Config, parse
from fedlab.data.federated import FederatedData
from fedlab.engine import fitting, started
from fedlab.engine.device import use_deterministic_kernels
from fedlab.engine.dynamo import postpone_compiler
from fedlab.engine.limit import can_limit
from fedlab.errors import ConfigError
from fedlab.experiment.checks import Resolved, check_data, check_holdings, check_population, resolve
from fedlab.experiment.components import complete, located
from fedlab.experiment.configuration import recorded
from fedlab.experiment.decisions import tune
from fedlab.experiment.fits import check_network, missing_column
from fedlab.experiment.given import (
    GivenParts,
    given_callbacks,
    record_callbacks,
    record_data,
    record_method,
    record_sampler,
    record_strategy,
)
from fedlab.method import Method
from fedlab.probes import check_sets
from fedlab.server.participation.samplers import make_sampler
from fedlab.server.privacy import check_rounds
from fedlab.server.strategies import make_strategy
from fedlab.storage.paths import PathKind, cache_folder


@dataclass(frozen=True)
class Job:
    """A run that is ready to start, because all checks have passed.

    Args:
        resolved: the components of the run. Their configuration holds all decisions that `tune` has made.
        federated: the data, divided among the clients.
        warnings: warnings about the configuration and the data, and those of `tune`.
        preflight_seconds: seconds that the preflight and the decisions took.
        probe: fields of the event ``vectorize``; empty if nothing was measured.
        keeps_state: whether clients keep tensors from one round to the next.
    """

    resolved: Resolved
    federated: FederatedData
    warnings: Sequence[str]
    preflight_seconds: float
    probe: dict[str, float]
    keeps_state: bool

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return self.resolved.config

    @property
    def method(self) -> Method:
        """The method object."""
        return self.resolved.components.method

    @contextmanager
    def placed(self) -> Iterator[Job]:
        """A context in which the engine's Ray is up, with this run placed on it.

        A run enters it before it writes anything, so that machines on which it cannot run leave no run folder.

        Raises:
            MachineError: Ray does not start here, or the cluster lacks what the run needs.
        """
        shared = Path(self.config.tracking.folder) if self.keeps_state else None
        with started(self.config.engine, self.resolved.placement, shared, _read_by_clients(self.config)) as placement:
            yield replace(self, resolved=replace(self.resolved, placement=placement))

    def clients(self, state_root: Path) -> ClientSetup:
        """Return what simulated clients need.

        Args:
            state_root: folder in which the states of the clients are stored.
        """
        return _client_setup(self.resolved, self.federated, state_root)


def ready(config: Config, given: GivenParts | None = None, begun: Config | None = None) -> Job:
    """Do all checks of a run and try one client in this process, before the run folder and the workers are created.

    Args:
        config: the configuration.
        given: what replaces parts of the configuration; default: nothing.
        begun: the configuration that a resumed run began with; None for a new run.

    Raises:
        InputError, ConfigErrors: something is wrong with the input.
        Exception: whatever the method, the model or the data raise.
    """
    goes_on, given = begun is not None, given or GivenParts()
    chosen = None if given.method is None else _given_method(config, given.method)
    if chosen is not None:
        config = record_method(config, chosen, resumed=goes_on)
    rule = None if given.strategy is None else make_strategy(config.federation.strategy, given.strategy)
    if rule is not None:
        settings = config.federation.strategy.settings if isinstance(given.strategy, type) else None
        config = record_strategy(config, rule, settings, resumed=goes_on)
    sampler = None
    if given.sampler is not None:
        sampler = make_sampler(config.federation.sampler, config.seed, given.sampler)
        config = record_sampler(config, sampler, made=isinstance(given.sampler, type), resumed=goes_on)
    network = given.network(config, resumed=goes_on)
    if given.dataset is not None:
        config = record_data(config, given.dataset, resumed=goes_on, asked=given.overrides)
    followers = given_callbacks(given.callbacks)
    config = record_callbacks(config, followers, resumed=goes_on)
    resolved = resolve(
        recorded(complete(config)),
        method=chosen,
        strategy=rule,
        network=network,
        sampler=sampler,
        callbacks=followers,
    )
    if begun is not None:
        check_rounds(resolved.components.privacy, begun.federation.rounds, config.federation.rounds)
    federated = check_data(resolved, given.dataset)
    if network is not None:
        resolved = check_network(resolved, federated, resumed=goes_on)
    check_population(resolved, federated.num_clients, federated.unseen)
    holding = check_holdings(resolved, federated)
    sets = {name: samples.columns for name, samples in federated.dataset.server.items()}
    check_sets(resolved.components.probes, sets, federated.num_classes)
    began = time.perf_counter()
    use_deterministic_kernels(resolved.device)
    postpone_compiler()
    with missing_column(resolved.components.method, federated):
        tuning = tune(_client_setup(resolved, federated, Path()), resolved.device, decided=goes_on)
    unlimited = config.engine.name == "inline" and not can_limit()
    told = "federation.timeout ends no client that hangs: the inline engine can do that in a main thread of Unix only"
    warnings = (*resolved.warnings, *federated.warnings, *holding, *tuning.warnings, *([told] if unlimited else []))
    placement = fitting(resolved.placement, tuning.components.config.engine, tuning.client_bytes)
    decided = replace(resolved, components=tuning.components, placement=placement)
    return Job(decided, federated, warnings, time.perf_counter() - began, tuning.probe, tuning.keeps_state)


def _read_by_clients(config: Config) -> list[Path]:
    """The files and folders in the configuration that clients read: those of the method, its networks and assets."""
    found: list[Path] = []

    def note(kind: PathKind, text: str, key: str) -> str:
        if kind.kind in ("input", "hub", "weights") and key.startswith(("method.", "model.", "init.", "data.assets.")):
            whole = Path(text)
            place = whole if kind.kind != "weights" or whole.exists() else Path(text.rpartition("#")[0] or text)
            found.extend([place] if place.is_absolute() else [])  # the others are names on a hub
        return text

    located(config.model_dump(mode="json"), note)
    return found


def _client_setup(resolved: Resolved, federated: FederatedData, state_root: Path) -> ClientSetup:
    cache = cache_folder(resolved.config.tracking.cache).resolve()
    return ClientSetup(resolved.components, federated, state_root, cache)


def _given_method(config: Config, method: object) -> Method:
    if isinstance(method, Method):
        return method
    if isinstance(method, type) and issubclass(method, Method):
        return method(parse(method.Settings, config.method.settings, "method"))
    raise ConfigError("method", method, "a fedlab.Method, object or class")
