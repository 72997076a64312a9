"""Everything about a configuration that can be known wrong before work starts, and all that it names, made once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from fedlab.assembly import Assembly, Components
from fedlab.config import Config
from fedlab.data.federated import FederatedData
from fedlab.data.partition.drift import Drift, make_drifts
from fedlab.data.partition.partition import Steps, make_steps
from fedlab.data.samples import Dataset
from fedlab.data.sources import Source, build_source, samples_of
from fedlab.engine import Placement, check_engine
from fedlab.engine.device import choose_device
from fedlab.method import Method
from fedlab.models import check_model, is_default_model
from fedlab.server.asynchronous import check_asynchronous, check_concurrency
from fedlab.server.evaluation import check_evaluation, unevaluated
from fedlab.server.participation.samplers import make_sampler
from fedlab.server.participation.selection import Rules, check_participation, check_sampled, make_rules
from fedlab.server.privacy import check_privacy
from fedlab.server.strategies import Strategy, check_participants, make_strategy
from fedlab.server.strategies.average import AveragingStrategy
from fedlab.tracking.left_out import LeftOut
from fedlab.tracking.recording import check_tracking


@dataclass(frozen=True)
class Resolved:
    """All that a configuration names, made once for the whole run in this process.

    Args:
        components: what server and clients work with.
        source: where the samples come from; nothing is loaded yet.
        steps: divide the samples among the clients.
        drifts: change what clients see of them.
        strategy: aggregation rule.
        rules: who may take part in a round.
        placement: where clients run.
        device: where this process computes.
        warnings: what works, but is probably not meant.
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
    """Make every component of a configuration, and validate their settings and the machine.

    Args:
        config: the configuration.
        method: a method object that replaces ``config.method``.
        strategy: a strategy object that replaces ``config.federation.strategy``.

    Raises:
        ConfigErrors: everything that is wrong, in one go.
    """
    assembly, federation = Assembly(config, method), config.federation
    attempt, chosen = assembly.attempt, assembly.method
    attempt(lambda: check_model(config.model))
    source = attempt(lambda: build_source(config.data.source))
    steps = attempt(lambda: make_steps(config.data.partition))
    drifts = attempt(lambda: make_drifts(config.data.drift))
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
    components = assembly.components()  # from here on nothing is missing, or this would have said so
    assert source is not None
    assert steps is not None
    assert drifts is not None
    assert rule is not None
    assert rules is not None
    assert placement is not None
    assert device is not None
    return Resolved(components, source, steps, drifts, rule, rules, placement, device, warnings)


def check_data(resolved: Resolved, dataset: Dataset | None = None) -> FederatedData:
    """Load the data and divide it among the clients; what is wrong with either shows here.

    Args:
        resolved: a configuration's components.
        dataset: samples that replace those of ``config.data.source``.

    Raises:
        DataError: the data is missing, unreadable or unusable, or the partition is impossible.
        ConfigError: statistics that do not fit the data.
    """
    config = resolved.config
    if dataset is None:
        dataset = samples_of(resolved.source, config.data.source.name, config.seed)
    return FederatedData(dataset, config.data, config.seed, steps=resolved.steps, drifts=resolved.drifts)


def check_population(resolved: Resolved, clients: int, unseen: Collection[int]) -> None:
    """Refuse what the clients that were found cannot do.

    Args:
        resolved: a configuration's components.
        clients: registered clients.
        unseen: those held out from training.

    Raises:
        ConfigError: a strategy, a choice of clients or an asynchronous mode that needs others.
    """
    training = clients - len(unseen)
    check_participants(resolved.strategy, training)
    check_sampled(resolved.rules.sampler, clients, unseen)
    check_concurrency(resolved.config, training)


def left_out(config: Config, federated: FederatedData) -> tuple[LeftOut, ...]:
    """What the data, their partition and the choice of evaluated clients leave out, counted.

    Args:
        config: the configuration.
        federated: its data, as `check_data` returns them.
    """
    rest = unevaluated(config, federated.num_clients, federated.unseen, federated.num_test)
    return federated.left_out if rest is None else (*federated.left_out, rest)
