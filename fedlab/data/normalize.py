"""Images in [0, 1] ↔ the normalized space clients train in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fedlab.config import DataConfig
from fedlab.errors import ConfigError


def check_statistics(data: DataConfig, channels: int, domains: Sequence[str]) -> None:
    """Refuse statistics that do not fit the data.

    Raises:
        ConfigError: wrong number of channels, a domain without statistics, or a divisor of 0.
    """
    for key in ("mean", "std"):
        given = getattr(data, key)
        if isinstance(given, dict):
            missing = sorted(set(domains) - set(given))
            if missing:
                raise ConfigError(f"data.{key}", sorted(given), f"one entry per domain; missing: {missing}", "add them")
        for values in given.values() if isinstance(given, dict) else (given,):
            if len(values) not in (1, channels):
                raise ConfigError(f"data.{key}", values, f"1 or {channels} numbers, one per channel")
            if key == "std" and min(values) <= 0:
                raise ConfigError("data.std", values, "numbers above 0")


def normalize(images: np.ndarray, domains: np.ndarray | None, names: Sequence[str], data: DataConfig) -> np.ndarray:
    """``(x − mean) / std`` as float32.

    Args:
        images: (n, C, H, W), uint8 or float32 in [0, 1].
        domains: (n,) domain indices, needed where the statistics differ by domain.
        names: domain names.
        data: holds ``mean`` and ``std``.
    """
    result = images.astype(np.float32)
    if images.dtype == np.uint8:
        result /= 255.0
    mean, std = (_per_sample(given, domains, names, len(images)) for given in (data.mean, data.std))
    result -= mean
    result /= std
    return result


def denormalizer(data: DataConfig) -> Callable[[Tensor], Tensor]:
    """Normalized images (n, C, H, W) → [0, 1], clipped, with the mean of the domains' statistics; for pictures."""
    mean, std = (torch.tensor(overall_statistics(given)).reshape(1, -1, 1, 1) for given in (data.mean, data.std))

    def denormalize(images: Tensor) -> Tensor:
        return (images.detach().cpu().float() * std + mean).clamp(0, 1)

    return denormalize


def overall_statistics(given: tuple[float, ...] | dict[str, tuple[float, ...]]) -> tuple[float, ...]:
    """One number per channel, or one for all; if the domains differ, the mean of their numbers."""
    if not isinstance(given, dict):
        return given
    return tuple(float(mean) for mean in _table(list(given.values())).mean(axis=0))


def _table(statistics: Sequence[tuple[float, ...]]) -> np.ndarray:
    """One row per domain; a single number stands for every channel."""
    channels = max(len(values) for values in statistics)
    return np.array([np.broadcast_to(values, channels) for values in statistics], np.float32)


def _per_sample(
    given: tuple[float, ...] | dict[str, tuple[float, ...]],
    domains: np.ndarray | None,
    names: Sequence[str],
    count: int,
) -> np.ndarray:
    if not isinstance(given, dict):
        return np.asarray(given, np.float32).reshape(1, -1, 1, 1)
    table = _table([given[name] for name in names])
    chosen = table[domains if domains is not None else np.zeros(count, np.int64)]
    result: np.ndarray = chosen[:, :, None, None]
    return result
