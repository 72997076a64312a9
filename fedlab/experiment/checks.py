"""Checks of a configuration before a run starts, which also make all components that it names, once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from fedlab.assembly import Assembly, Components, make_task
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
from fedlab.method import Method
from fedlab.models import check_model, is_default_model
from fedlab.server.asynchronous import check_asynchronous, check_concurrency
from fedlab.server.evaluation import check_evaluation, unevaluated
from fedlab.server.participation.samplers import make_sampler
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
    warnings: Sequence[str]

    @property
    def config(self) -> Config:
        """The configuration."""
        return self.components.config


def resolve(config: Config, *, method: Method | None = None, strategy: Strategy | None = None) -> Resolved:
    """Make every component of a configuration, and check that they fit each other and this machine.

    Args:
        config: the configuration.
        method: a method object that replaces ``config.method``.
        strategy: a strategy object that replaces ``config.federation.strategy``.

    Raises:
        ConfigErrors: all errors that were found.
    """
    assembly, federation = Assembly(config, method), config.federation
    attempt, chosen = assembly.attempt, assembly.method
    attempt(lambda: check_model(config.model))
    source = attempt(lambda: build_source(config.data.source))
    steps = attempt(lambda: make_steps(config.data.partition))
    drifts = attempt(lambda: make_drifts(config.data.drift))
    attempt(lambda: check_sites(config.data))
    rule = strategy if strategy is not None else attempt(lambda: make_strategy(federation.strategy))
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
    if chosen is not None:
        warnings += attempt(lambda: chosen.check(config)) or []
        if chosen.own_model and not is_default_model(config.model):
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
    return Resolved(components, source, steps, drifts, rule, rules, placement, device, warnings)


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
    assets = method.assets(make_task(config, *described)) if method.overrides("assets") else {}
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
