"""Everything about a configuration that can be known wrong before work starts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from fedlab.assembly import make_method
from fedlab.config import Config
from fedlab.data.federated import FederatedData
from fedlab.data.partition.drift import make_drifts
from fedlab.data.partition.partition import check_steps
from fedlab.data.samples import Dataset
from fedlab.data.sources import build_source, load_source
from fedlab.engine import check_engine
from fedlab.errors import ConfigErrors, InputError
from fedlab.method import Method
from fedlab.models import check_model, is_default_model
from fedlab.protocol.compression import make_chain
from fedlab.server.asynchronous import check_asynchronous, check_concurrency
from fedlab.server.evaluation import check_evaluation, unevaluated
from fedlab.server.participation.selection import check_participation, check_sampled
from fedlab.server.privacy import check_privacy
from fedlab.server.strategies import check_participants, make_strategy
from fedlab.server.strategies.average import AveragingStrategy
from fedlab.tracking.left_out import LeftOut
from fedlab.tracking.recording import check_tracking


def check_config(config: Config, *, method: Method | None = None, strategy: object = None) -> list[str]:
    """Validate every component's settings and the machine.

    Args:
        config: the configuration.
        method: a method object that replaces ``config.method``.
        strategy: a strategy object that replaces ``config.federation.strategy``.

    Returns:
        Warnings.

    Raises:
        ConfigErrors: everything that is wrong, in one go.
    """
    errors: list[InputError] = []

    def attempt(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except ConfigErrors as several:
            errors.extend(several.errors)
        except InputError as error:
            errors.append(error)
        return None

    chosen = method or attempt(lambda: make_method(config.method))
    attempt(lambda: check_model(config.model))
    attempt(lambda: build_source(config.data.source))
    attempt(lambda: check_steps(config.data.partition))
    attempt(lambda: make_drifts(config.data.drift))
    attempt(lambda: make_chain(config.exchange.compression))
    rule = strategy if strategy is not None else attempt(lambda: make_strategy(config.federation.strategy))
    attempt(lambda: check_participation(config, rule is None or isinstance(rule, AveragingStrategy)))
    if rule is not None:
        attempt(lambda: check_evaluation(config, rule))
    attempt(lambda: check_asynchronous(config, chosen, rule))
    attempt(lambda: check_engine(config.engine))
    warnings = list(attempt(lambda: check_tracking(config.tracking)) or [])
    warnings += list(attempt(lambda: chosen.check(config)) or []) if chosen is not None else []
    if chosen is not None and chosen.own_model and not is_default_model(config.model):
        warnings.append(f"model.name = {config.model.name} is not used: {chosen.title} builds a {chosen.own_model}")
    if isinstance(rule, AveragingStrategy):
        warnings += attempt(lambda: rule.check(config)) or []
    if chosen is not None and rule is not None:
        warnings += attempt(lambda: check_privacy(config, chosen, rule)) or []
    if errors:
        raise ConfigErrors(errors)
    return warnings


def check_data(config: Config, dataset: Dataset | None = None) -> FederatedData:
    """Load the data and divide it among the clients; what is wrong with either shows here.

    Args:
        config: a configuration that `check_config` accepts.
        dataset: samples that replace ``config.data.source``.

    Raises:
        DataError: the data is missing, unreadable or unusable, or the partition is impossible.
        ConfigError: statistics that do not fit the data.
    """
    dataset = dataset if dataset is not None else load_source(config.data.source, config.seed)
    return FederatedData(dataset, config.data, config.seed)


def check_population(config: Config, strategy: Any, clients: int, unseen: Collection[int]) -> None:
    """Refuse what the clients that were found cannot do.

    Args:
        config: the configuration.
        strategy: the aggregation rule.
        clients: registered clients.
        unseen: those held out from training.

    Raises:
        ConfigError: a strategy, a choice of clients or an asynchronous mode that needs others.
    """
    training = clients - len(unseen)
    check_participants(strategy, training)
    check_sampled(config, clients, unseen)
    check_concurrency(config, training)


def left_out(config: Config, federated: FederatedData) -> tuple[LeftOut, ...]:
    """What the data, their partition and the choice of evaluated clients leave out, counted.

    Args:
        config: the configuration.
        federated: its data, as `check_data` returns them.
    """
    rest = unevaluated(config, federated.num_clients, federated.unseen, federated.num_test)
    return federated.left_out if rest is None else (*federated.left_out, rest)
