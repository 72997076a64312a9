"""Differential privacy on the server: the guarantee of a run, its account, and the configurations that are refused."""

from __future__ import annotations

from torch import nn

from fedlab.config import Config
from fedlab.method import Method
from fedlab.method.exchange import Exchange
from fedlab.privacy import DPSGD, Central
from fedlab.privacy.accountant import require_accountant
from fedlab.server.participation.samplers import Sampler
from fedlab.server.privacy.account import Account
from fedlab.server.privacy.central import CentralMechanism, check_central, check_released, client_sampling
from fedlab.server.privacy.dp_sgd import ExampleAccount, check_dp_sgd, check_mixing, check_rounds
from fedlab.server.setup import ServerSetup
from fedlab.server.strategies.average import AveragingStrategy

__all__ = [
    "Account",
    "CentralMechanism",
    "ExampleAccount",
    "check_networks",
    "check_privacy",
    "check_rounds",
    "make_account",
]


def make_account(setup: ServerSetup, population: int) -> Account | None:
    """Make the account of the configured guarantee; None where no privacy is configured.

    Args:
        setup: a run that `check_privacy` accepts; with central privacy its strategy's memory holds the clip norm.
        population: clients that may train.
    """
    privacy, strategy = setup.components.privacy, setup.strategy
    if isinstance(privacy, DPSGD):
        return ExampleAccount(privacy.settings)
    if privacy is None or not isinstance(strategy, AveragingStrategy):
        return None
    sampling = client_sampling(setup.rules.sampler, population)
    return CentralMechanism(privacy.settings, sampling, setup.config.seed, strategy.memory)


def check_privacy(
    config: Config, privacy: Central | DPSGD | None, method: Method, strategy: object, sampler: Sampler | None
) -> list[str]:
    """Refuse configurations for which no ε can be stated.

    Args:
        config: the configuration.
        privacy: the guarantee it asks for.
        method: the method.
        strategy: the aggregation rule.
        sampler: who chooses the clients; None where the configured one is refused elsewhere.

    Returns:
        Warnings.

    Raises:
        ConfigError, ConfigErrors: everything that cannot be accounted for.
    """
    if privacy is None:
        return []
    require_accountant(config.privacy.name if config.privacy else None)
    if isinstance(privacy, Central):
        return check_central(config, method, strategy, privacy.settings)
    return check_dp_sgd(config, method, strategy, sampler, privacy.settings)


def check_networks(
    config: Config, privacy: Central | DPSGD | None, exchange: Exchange, networks: nn.ModuleDict
) -> None:
    """Refuse networks for which the guarantee does not hold.

    Raises:
        ConfigError: a layer or a buffer is in the way.
    """
    if privacy is None:
        return
    check = check_released if isinstance(privacy, Central) else check_mixing
    check(config, exchange, networks)
