"""Central differential privacy: Gaussian noise on the mean of clipped updates, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Message
from torch import nn

from fedlab.config import Config
from fedlab.errors import ConfigError, ConfigErrors, InputError
from fedlab.method import Method
from fedlab.method.exchange import Exchange
from fedlab.privacy import CLIP, KEY, WITHIN, Central
from fedlab.privacy.accountant import Sampling, epsilon
from fedlab.seeding import numpy_generator
from fedlab.server.messaging.replies import metrics_of
from fedlab.server.participation.samplers import Poisson, Sampler, Uniform
from fedlab.server.privacy.account import Account
from fedlab.server.strategies.average import FedAvg, FedProx
from fedlab.server.strategies.fedopt import FedAdagrad, FedAdam, FedAvgM, FedYogi

# server steps that see clients through their mean only; others, also subclasses of these, may read single answers
_ACCOUNTED: tuple[type, ...] = (FedAvg, FedProx, FedAvgM, FedAdagrad, FedAdam, FedYogi)
_SAMPLERS = ("poisson", "uniform")
_UNCOVERED = {
    "prepare": "sends statistics before round 1",
    "client_result": "sends tensors beside the weights",
}


class CentralMechanism(Account):
    """The server's half: the clip norm, the noise and the account.

    With n the cohort's expected size, the new mean is x + (Σ Δ_i)/n + N(0, (z·C/n)²), Δ_i clipped to C by the client.

    Args:
        settings: of central privacy.
        sampling: how clients take part.
        seed: the run's seed; whoever knows it can take the noise off again.
        memory: the strategy's lasting arrays; they hold the adaptive clip norm.
    """

    def __init__(
        self, settings: Central.Settings, sampling: Sampling, seed: int, memory: MutableMapping[str, np.ndarray]
    ) -> None:
        self.settings, self.sampling, self._seed, self._memory = settings, sampling, seed, memory
        self._used = settings.clip

    @property
    def clip(self) -> float:
        """C of the round to come."""
        return float(self._memory.get(f"{KEY}/clip", self.settings.clip))

    @property
    def update_noise(self) -> float:
        """Noise multiplier of the update alone: with the noisy count, the two cost what z costs (theorem 1)."""
        z = self.settings.noise_multiplier
        if self.settings.adaptive is None or z == 0:
            return z
        return float((z**-2 - (2 * self._count_noise) ** -2) ** -0.5)

    @property
    def _count_noise(self) -> float:
        z, adaptive = self.settings.noise_multiplier, self.settings.adaptive
        if adaptive is not None and adaptive.count_noise is not None:
            return adaptive.count_noise
        return max(self.sampling.size / 20, z)

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics in the clients' replies that the mechanism computes with: the largest value of each, by name."""
        return {} if self.settings.adaptive is None else {WITHIN: 1.0}

    def client_settings(self) -> dict[str, float]:
        """What clients must know."""
        return {CLIP: self.clip}

    def release(
        self,
        round: int,
        names: Sequence[str],
        current: Mapping[str, np.ndarray],
        mean: Mapping[str, np.ndarray],
        answers: Sequence[Message],
    ) -> dict[str, np.ndarray]:
        """The noisy mean, and the clip norm of the next round.

        Args:
            round: which.
            names: tensors that clients send, sent or not in this round.
            current: what the clients were sent.
            mean: of the clients that answered, each counting alike.
            answers: their replies.
        """
        self._used = self.clip
        share = len(answers) / self.sampling.size
        sigma = self.update_noise * self.clip / self.sampling.size
        released = {
            name: self._noisy(round, name, current[name], mean.get(name, current[name]), share, sigma) for name in names
        }
        if self.settings.adaptive is not None:
            self._adapt(round, answers)
        return released

    def spent(self, rounds: int) -> dict[str, Any]:
        s = self.settings
        return {
            "epsilon": epsilon(self.sampling, s.noise_multiplier, rounds, s.delta),
            "delta": s.delta,
            "adjacency": f"{self.sampling.adjacency} client",
            "sampling": self.sampling.words,
            "noise_multiplier": s.noise_multiplier,
            "clip": self._used,
        }

    def _noisy(
        self, round: int, name: str, current: np.ndarray, mean: np.ndarray, share: float, sigma: float
    ) -> np.ndarray:
        if share == 1 and sigma == 0:
            return mean
        start = current.astype(np.float64)
        noise = sigma * numpy_generator(self._seed, KEY, "noise", round, name).standard_normal(current.shape)
        return np.asarray(start + share * (mean - start) + noise, dtype=mean.dtype)

    def _adapt(self, round: int, answers: Sequence[Message]) -> None:
        adaptive = self.settings.adaptive
        assert adaptive is not None
        noise = 0.0
        if self.settings.noise_multiplier > 0:
            noise = self._count_noise * float(numpy_generator(self._seed, KEY, "count", round).standard_normal())
        # centered, so that a client changes the sum by ½ and not by 1
        count = math.fsum(metrics_of(reply)[WITHIN] - 0.5 for reply in answers) + noise
        within = count / self.sampling.size + 0.5
        self._memory[f"{KEY}/clip"] = np.array(self.clip * math.exp(-adaptive.rate * (within - adaptive.quantile)))


def client_sampling(sampler: Sampler, population: int) -> Sampling:
    """How clients take part, for the account.

    Raises:
        ConfigError: a sampler for which nothing is known about privacy.
    """
    if type(sampler) is Poisson:  # a subclass may sample in another way
        return Sampling("poisson", population, sampler.probability * population)
    if type(sampler) is Uniform:
        size = sampler.size(population)
        return Sampling("all" if size == population else "fixed-size", population, size)
    raise _unknown_sampler(type(sampler).__name__)


def check_central(config: Config, method: Method, strategy: object, settings: Central.Settings) -> list[str]:
    """Refuse what no ε of whole clients can be stated for.

    Args:
        config: the configuration.
        method: the method.
        strategy: the aggregation rule.
        settings: of central privacy.

    Returns:
        Warnings.

    Raises:
        ConfigErrors: everything that cannot be accounted for.
    """
    federation = config.federation
    errors: list[InputError] = []
    if type(strategy) not in _ACCOUNTED:
        errors.append(
            ConfigError(
                "federation.strategy.name",
                federation.strategy.name,
                "with central privacy, a strategy that sees clients through the mean of their updates only",
                "choose fedavg, fedprox, fedavgm, fedadagrad, fedadam or fedyogi",
            )
        )
    if federation.sampler.name not in _SAMPLERS:
        errors.append(_unknown_sampler(federation.sampler.name))
    plain = {
        "federation.mode": (federation.mode, federation.mode != "synchronous", "synchronous"),
        "federation.availability": (federation.availability, federation.availability is not None, "none"),
        "federation.dropout": (federation.dropout, federation.dropout > 0, "0"),
        "federation.over_selection": (federation.over_selection, federation.over_selection > 1, "1"),
        "federation.deadline": (federation.deadline, federation.deadline is not None, "none"),
        "exchange.compression": (config.exchange.compression, bool(config.exchange.compression), "none"),
    }
    errors += [
        ConfigError(key, value, f"{expected} with central privacy, because ε is not known otherwise", f"remove {key}")
        for key, (value, wrong, expected) in plain.items()
        if wrong
    ]
    if federation.on_client_error != "stop":
        errors.append(
            ConfigError(
                "federation.on_client_error",
                federation.on_client_error,
                "stop with central privacy, because it may depend on a client's data whether it fails",
                "set federation.on_client_error: stop",
            )
        )
    if method.overrides("contributes"):
        errors.append(_uncovered(config, "decides on the client whether it contributes", "choose another method"))
    outside = [reason for hook, reason in _UNCOVERED.items() if method.overrides(hook)]
    if outside and not settings.allow_unaccounted:
        fix = "choose another method, or set privacy.allow_unaccounted: true and do not rely on ε"
        errors += [_uncovered(config, reason, fix) for reason in outside]
    if errors:
        raise ConfigErrors(errors)
    warnings = [
        f"privacy.allow_unaccounted: {config.method.name} {reason}, which ε does not cover" for reason in outside
    ]
    if settings.noise_multiplier == 0:
        warnings.append("privacy.noise_multiplier = 0: updates are clipped, but nothing is guaranteed")
    return warnings


def check_released(config: Config, exchange: Exchange, networks: nn.ModuleDict) -> None:
    """Refuse averaged buffers: noise would turn running variances negative.

    Raises:
        ConfigError: a buffer is averaged under central privacy.
    """
    buffers = set(exchange.up) - {name for name, _ in networks.named_parameters()}
    if buffers:
        raise ConfigError(
            "model.name",
            config.model.name,
            f"with central privacy, a model without averaged buffers such as {min(buffers)}",
            "choose a model without batch normalization, or set exchange.local: [norm]",
        )


def _uncovered(config: Config, reason: str, fix: str) -> ConfigError:
    return ConfigError("method.name", config.method.name, f"nothing that leaves the mechanism: it {reason}", fix)


def _unknown_sampler(name: str) -> ConfigError:
    return ConfigError(
        "federation.sampler.name",
        name,
        "with central privacy, a sampler whose effect on ε is known",
        "choose poisson (amplification by sampling) or uniform",
    )
