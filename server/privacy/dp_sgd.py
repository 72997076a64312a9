"""Example-level privacy seen from the server: the account of every client, and what no ε can be stated for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from flwr.app import Message
from flwr.serverapp import strategy as flower
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fedlab.config import Config
from fedlab.errors import ConfigError, ConfigErrors, InputError
from fedlab.method import Method
from fedlab.method.exchange import Exchange
from fedlab.privacy import DPSGD, Central
from fedlab.privacy.accountant import GaussianStep, composed_epsilon
from fedlab.protocol.messages import SPENT, config_record, required
from fedlab.server.participation.samplers import Sampler
from fedlab.server.privacy.account import Account
from fedlab.server.strategies.average import FedAvg, FedProx
from fedlab.server.strategies.feddyn import FedDyn
from fedlab.server.strategies.fednova import FedNova
from fedlab.server.strategies.fedopt import FedAdagrad, FedAdam, FedAvgM, FedYogi
from fedlab.server.strategies.scaffold import Scaffold

# they see of a client what its noisy steps made, and numbers of samples and steps; others may read its metrics too
_POST_PROCESSING: tuple[type, ...] = (
    *(FedAvg, FedProx, FedNova, Scaffold, FedDyn, FedAvgM, FedAdagrad, FedAdam, FedYogi),
    *(flower.FedAvg, flower.FedProx, flower.FedAvgM, flower.FedAdagrad, flower.FedAdam, flower.FedYogi),
    *(flower.FedMedian, flower.FedTrimmedAvg, flower.Krum, flower.MultiKrum, flower.Bulyan),
)
_LEAKS = {
    "prepare": "sends statistics before round 1",
    "client_result": "sends tensors beside the weights",
    "contributes": "decides on the client whether it contributes",
    "examples": "weighs clients by more than their number of samples",
    "batch_spec": "draws or changes batches in its own way, so that the sampling rate is not known",
}


class ExampleAccount(Account):
    """Every client's ε, over the steps it really did. The worst client's is the run's.

    Args:
        settings: of DP-SGD.
    """

    def __init__(self, settings: DPSGD.Settings) -> None:
        self.settings = settings
        self._done: dict[int, Counter[GaussianStep]] = {}
        self._epsilon: dict[int, float] = {}

    def learn(self, client: int, reply: Message) -> dict[str, float]:
        record = required(config_record, reply.content, SPENT)
        rate, noise, steps = (float(str(record[name])) for name in ("rate", "noise_multiplier", "steps"))
        done = self._done.setdefault(client, Counter())
        if steps:
            done[GaussianStep(rate, noise)] += int(steps)
        self._epsilon[client] = composed_epsilon(done, self.settings.delta)
        return {"epsilon": self._epsilon[client], "rate": rate, "noise_multiplier": noise, "steps": done.total()}

    def spent(self, rounds: int) -> dict[str, Any]:
        worst = max(self._epsilon, key=lambda client: (self._epsilon[client], -client), default=None)
        done = self._done[worst] if worst is not None else {}
        rates, noises = ({getattr(step, of) for step in done} for of in ("rate", "noise_multiplier"))
        return {
            "epsilon": self._epsilon[worst] if worst is not None else 0.0,
            "delta": self.settings.delta,
            "adjacency": "add-or-remove-one example",
            "sampling": f"poisson, rate {max(rates, default=0.0):g}",
            "noise_multiplier": min(noises, default=0.0),
            "clip": self.settings.clip,
            "client": worst,
            "clients": {str(client): self._epsilon[client] for client in sorted(self._epsilon)},
        }

    def book(self) -> dict[str, Any]:
        return {
            str(client): [[step.rate, step.noise_multiplier, count] for step, count in sorted(done.items())]
            for client, done in self._done.items()
        }

    def restore(self, book: Mapping[str, Any]) -> None:
        for client, steps in book.items():
            done = Counter({GaussianStep(rate, noise): count for rate, noise, count in steps})
            self._done[int(client)] = done
            self._epsilon[int(client)] = composed_epsilon(done, self.settings.delta)


def check_dp_sgd(
    config: Config, method: Method, strategy: object, sampler: Sampler | None, settings: DPSGD.Settings
) -> list[str]:
    """Refuse what no ε of single examples can be stated for.

    Args:
        config: the configuration.
        method: the method.
        strategy: the aggregation rule.
        sampler: who chooses the clients; None where the configured one is refused elsewhere.
        settings: of DP-SGD.

    Returns:
        Warnings.

    Raises:
        ConfigErrors: everything that cannot be accounted for.
    """
    errors = [*_method_errors(config, method), *_run_errors(config, sampler)]
    if type(strategy) not in _POST_PROCESSING:
        errors.append(
            ConfigError(
                "federation.strategy.name",
                config.federation.strategy.name,
                "with DP-SGD, a strategy that reads updates and numbers of samples only, no metrics of the clients",
                "choose one of FedLab's own, or of Flower's that average or select updates",
            )
        )
    if errors:
        raise ConfigErrors(errors)
    warnings = []
    if settings.noise_multiplier == 0:
        warnings.append("privacy.noise_multiplier = 0: gradients are clipped, but nothing is guaranteed")
    if config.training.drop_last:
        warnings.append("training.drop_last has no effect with DP-SGD, which draws a batch anew for every step")
    return warnings


def _method_errors(config: Config, method: Method) -> list[InputError]:
    name, key = config.method.name, "method.name"
    if not method.promises("per_example_loss"):
        return [
            ConfigError(
                key,
                name,
                "with DP-SGD, a method whose loss is a mean of terms that depend on one example each",
                "choose supervised or moon; a class of your own promises it with per_example_loss = True",
            )
        ]
    return [
        ConfigError(key, name, f"nothing of the data but noisy gradients: it {reason}", "choose another method")
        for hook, reason in _LEAKS.items()
        if method.overrides(hook)
    ]


def _run_errors(config: Config, sampler: Sampler | None) -> list[InputError]:
    federation, drift = config.federation, [drift.name for drift in config.data.drift]
    limit = config.training.clip_norm
    plain: dict[str, tuple[object, object, str]] = {
        "federation.mode": (federation.mode, "synchronous", "how often a client trains is not known otherwise"),
        "federation.on_client_error": (
            federation.on_client_error,
            "stop",
            "whether a client fails may depend on its data",
        ),
        "training.clip_norm": (limit, None, "privacy.clip limits the gradient of each example"),
        "data.drift": (drift, [], "which of its examples a client sees would depend on the others"),
    }
    errors: list[InputError] = [
        ConfigError(key, value, f"{json.dumps(wanted)} with DP-SGD: {why}", f"set {key}: {json.dumps(wanted)}")
        for key, (value, wanted, why) in plain.items()
        if value != wanted
    ]
    if sampler is not None and sampler.loss is not None:
        errors.append(
            ConfigError(
                "federation.sampler.name",
                federation.sampler.name,
                "with DP-SGD, a sampler that does not use the clients' losses, because they have no noise",
                "choose uniform, weighted or poisson",
            )
        )
    return errors


def check_mixing(config: Config, exchange: Exchange, networks: nn.ModuleDict) -> None:
    """Refuse trained networks with layers in which the examples of a batch meet, or that keep statistics of them.

    Raises:
        ConfigError: there is one.
    """
    for role in networks:
        if role in exchange.fixed_roles:  # they evaluate: their statistics are constants
            continue
        for path, module in networks[role].named_modules():
            if isinstance(module, _BatchNorm) or (isinstance(module, _InstanceNorm) and module.track_running_stats):
                raise ConfigError(
                    "model.name",
                    config.model.name,
                    f"with DP-SGD, layers that treat every example alone, unlike {role}.{path} ({module})",
                    "set model.norm: group or instance, or choose a model with such layers",
                )


def check_rounds(privacy: Central | DPSGD | None, planned: int, rounds: int) -> None:
    """Refuse to go on with a run for another number of rounds than its noise was made for.

    Args:
        privacy: the guarantee.
        planned: rounds with which the run began.
        rounds: those it is to have now.

    Raises:
        ConfigError: the noise follows from ``privacy.target_epsilon``.
    """
    if rounds != planned and isinstance(privacy, DPSGD) and privacy.settings.target_epsilon is not None:
        raise ConfigError(
            "--rounds",
            rounds,
            f"{planned}: the noise is that of privacy.target_epsilon after so many",
            "leave --rounds out, or start a new run",
        )
