"""Requirements of algorithms that compute with the local gradient steps."""

from __future__ import annotations

from fedlab.config import Config
from fedlab.errors import ConfigError


def require_sgd(algorithm: str, config: Config) -> None:
    """Refuse local optimizers for which (x − y) is no weighted sum of gradients.

    Raises:
        ConfigError: ``training.optimizer`` is not SGD.
    """
    if config.training.optimizer != "sgd":
        raise ConfigError(
            "training.optimizer",
            config.training.optimizer,
            f"sgd with federation.strategy.name = {algorithm}: it reads mean gradients off the local update",
            "set training.optimizer: sgd, or choose fedavg, fedprox, fedadam or fedyogi",
        )
