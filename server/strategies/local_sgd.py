"""What algorithms that reason about local steps ask of them."""

from __future__ import annotations

from fedlab.config import Config
from fedlab.errors import ConfigError


def require_sgd(algorithm: str, config: Config) -> None:
    """Refuse local optimisers for which (x − y) is no weighted sum of gradients.

    Raises:
        ConfigError: ``training.optimiser`` is not SGD.
    """
    if config.training.optimiser != "sgd":
        raise ConfigError(
            "training.optimiser",
            config.training.optimiser,
            f"sgd with federation.strategy.name = {algorithm}: it reads mean gradients off the local update",
            "set training.optimiser: sgd, or choose fedavg, fedprox, fedadam or fedyogi",
        )
