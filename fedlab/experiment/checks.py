"""Checks of a configuration before a run starts, which also make all components that it names, once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from fedlab.assembly import Assembly, Components, make_task
from fedlab.callbacks import Callback, ConfiguredCallback, check_callbacks, make_callbacks
from fedlab.config import Config
from fedlab.data.federated import FederatedData
from fedlab.data.holdings import Holdings
from fedlab.data.partition.drift import Drift, make_drifts
from fedlab.data.partition.partition import Steps, make_steps
from fedlab.data.samples import Dataset
from fedlab.data.sources import Source, build_source, samples_of
from fedlab.data.sources.sites import check_sites
from fedlab.engine import Placement, check_engine
from fedlab.engine.device import choose_device
from fedlab.errors import ConfigError
from fedlab.method import Method
from fedlab.models import GivenNetwork, check_model, is_default_model
from fedlab.server.asynchronous import check_asynchronous, check_concurrency
from fedlab.server.evaluation import check_evaluation, unevaluated
from fedlab.server.participation.samplers import Sampler, make_sampler
from fedlab.server.participation.selection import (
    Rules,
    check_min_clients,
    check_participation,
    check_sampled,
    make_rules,
)
from fedlab.server.privacy import check_privacy
from fedlab.server.probing import check_probing
from fedlab.server.strategies import Strategy, check_participants, make_strategy
from fedlab.server.strategies.average import AveragingStrategy
from fedlab.tracking.left_out import LeftOut
from fedlab.tracking.recording import check_tracking
from fedlab.tracking.trackers import RunTracker, check_trackers, make_trackers


@dataclass(frozen=True)
class Resolved:
    """All components that a configuration names, made once for the whole run in the main process.

    Args:
        components: the components that both server and clients need.
        source: the source of the samples, which has not loaded them yet.
        steps: the steps that divide the samples among the clients.
        drifts: the changes of the clients' data over the rounds.
        strategy: the aggregation rule.
        rules: the sampler, and all else that decides which clients take part in a round.
        placement: the device, the number of workers and their share of a GPU.
        device: the device on which this process computes.
        callbacks: what follows the run on the server.
        trackers: where numbers and pictures are sent.
        warnings: settings that work, but are probably not intended, as sentences.
    """

    components: Components
    source: Source
    steps: Steps
    drifts: Sequence[Drift]
    strategy: Strategy
    rules: Rules
    placement: Placement
    device: torch.device
    callbacks: Sequence[ConfiguredCallback]
    trackers: Sequence[RunTracker]
    warnings: Sequence[str]

    @property
    def config(self) -> Config:
        """The configuration."""
        return self.components.config


def resolve(
    config: Config,
    *,
    method: Method | None = None,
    strategy: Strategy | None = None,
    network: GivenNetwork | None = None,
    sampler: Sampler | None = None,
    callbacks: Sequence[Callback] = (),
) -> Resolved:
    """Make every component of a configuration, and check that they fit each other and this machine.

    Args:
        config: the configuration.
        method: a method object that replaces ``config.method``.
        strategy: a strategy object that replaces ``config.federation.strategy``.
        network: what replaces ``config.model``.
        sampler: a sampler object that replaces ``config.federation.sampler``.
        callbacks: callback objects that replace as many of the last ``config.callbacks``.

    Raises:
        ConfigErrors: all errors that were found.
    """
    assembly, federation = Assembly(config, method, network), config.federation
    attempt, chosen = assembly.attempt, assembly.method
    if network is None:
        attempt(lambda: check_model(config.model))
    source = attempt(lambda: build_source(config.data.source))
    steps = attempt(lambda: make_steps(config.data.partition))
    drifts = attempt(lambda: make_drifts(config.data.drift))
    attempt(lambda: check_sites(config.data))
    rule = strategy if strategy is not None else attempt(lambda: make_strategy(federation.strategy))
    if sampler is None:
        sampler = attempt(lambda: make_sampler(federation.sampler, config.seed))
    rules = None if sampler is None else attempt(lambda: make_rules(config, sampler))
    if rules is not None:
        attempt(lambda: check_participation(federation, rule is None or isinstance(rule, AveragingStrategy)))
    if rule is not None:
        attempt(lambda: check_evaluation(config, rule))
    attempt(lambda: check_asynchronous(config, chosen, rule))
    placement = attempt(lambda: check_engine(config.engine))
    device = None if placement is None else attempt(lambda: choose_device(config.engine.device))
    warnings = list(attempt(lambda: check_tracking(config.tracking)) or [])
    trackers = attempt(lambda: make_trackers(config.tracking))
    warnings += attempt(lambda: check_trackers(trackers or ())) or []
    followers = attempt(lambda: make_callbacks(config, callbacks))
    warnings += attempt(lambda: check_callbacks(config, followers or ())) or []
    if chosen is not None:
        warnings += attempt(lambda: chosen.check(config)) or []
        if chosen.own_model and network is not None:
            attempt(lambda: _refuse_network(network, chosen))
        elif chosen.own_model and not is_default_model(config.model):
            warnings.append(f"model.name = {config.model.name} is not used: {chosen.title} builds a {chosen.own_model}")
    if isinstance(rule, AveragingStrategy):
        warnings += attempt(lambda: rule.check(config)) or []
    if chosen is not None and rule is not None:
        warnings += attempt(lambda: check_privacy(config, assembly.privacy, chosen, rule, sampler)) or []
    attempt(lambda: check_probing(config, assembly.probes or ()))
    components = assembly.components()  # raises if anything is missing: the assertions only inform mypy
    assert source is not None
    assert steps is not None
    assert drifts is not None
    assert rule is not None
    assert rules is not None
    assert placement is not None
    assert device is not None
    assert trackers is not None
    assert followers is not None
    return Resolved(components, source, steps, drifts, rule, rules, placement, device, followers, trackers, warnings)


def _refuse_network(network: GivenNetwork, method: Method) -> None:
    expected = f"a method that trains the run's model; {method.title} builds a {method.own_model} of its own"
    raise ConfigError("model", network.title, expected, "leave model out, or choose another method")


def check_data(resolved: Resolved, dataset: Dataset | None = None) -> FederatedData:
    """Load the data and divide it among the clients.

    Args:
        resolved: a configuration's components.
        dataset: samples that replace those of ``config.data.source``.

    Raises:
        DataError: the data is missing, unreadable or unusable, or the partition is impossible.
        ConfigError: ``data.mean``, ``data.std`` or ``data.augment`` does not fit the data.
    """
    config = resolved.config
    if dataset is None:
        dataset = samples_of(resolved.source, config.data.source.name, config.seed)
    federated = FederatedData(dataset, config.data, config.seed, steps=resolved.steps, drifts=resolved.drifts)
    resolved.components.augment.check(federated.columns)
    return federated


def check_population(resolved: Resolved, clients: int, unseen: Collection[int]) -> None:
    """Check that a configuration can be carried out with the clients that the partition has made.

    Args:
        resolved: a configuration's components.
        clients: number of registered clients.
        unseen: ids of the clients that never train.

    Raises:
        ConfigError: the strategy, the sampler or asynchronous training needs other clients, or more of them.
    """
    training = clients - len(unseen)
    check_participants(resolved.strategy, training)
    check_sampled(resolved.rules.sampler, clients, unseen)
    check_concurrency(resolved.config, training)
    check_min_clients(resolved.config.federation, training)


def check_holdings(resolved: Resolved, federated: FederatedData) -> list[str]:
    """Check who holds which assets of the method.

    Args:
        resolved: a configuration's components.
        federated: its data, as `check_data` returned it.

    Returns:
        Warnings, as sentences.

    Raises:
        ConfigErrors: ``data.holds`` or ``data.assets`` does not fit the method or the clients.
    """
    config, method = resolved.config, resolved.components.method
    described = (federated.columns, federated.class_names, federated.num_clients, federated.vocabulary)
    network = resolved.components.network
    assets = method.assets(make_task(config, *described, network=network)) if method.overrides("assets") else {}
    holdings = Holdings(config.data, federated.partition.names, list(assets))
    training = [client for client in range(federated.num_clients) if client not in federated.unseen]
    holdings.check(training, method.lacks)
    return holdings.unused(training)


def left_out(config: Config, federated: FederatedData) -> tuple[LeftOut, ...]:
    """Count what is left out: by the data source, by the partition, and by the choice of clients to evaluate.

    Args:
        config: the configuration.
        federated: its data, as `check_data` returned it.
    """
    rest = unevaluated(config, federated.num_clients, federated.unseen, federated.num_test)
    return federated.left_out if rest is None else (*federated.left_out, rest)
