"""What the networks share: the interface, initialization, normalization layers, input checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol, assert_never, cast

import torch
from torch import Tensor, nn

from fedlab.errors import ConfigError

Norm = Literal["instance", "batch", "group", "none"]
_GROUPS = 4


class FeatureClassifier(Protocol):
    """A classification network whose penultimate representation can be used on its own.

    Args:
        feature_dim: d.
        head: maps features (n, d) to logits (n, K).
    """

    feature_dim: int
    head: nn.Module

    def features(self, x: Tensor) -> Tensor:
        """(n, C, H, W) → (n, d), what the head receives."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """(n, C, H, W) → logits (n, K) = head(features(x))."""
        ...


@contextmanager
def seeded_init(seed: int) -> Iterator[None]:
    """Parameters created inside depend on `seed` only; the global CPU generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU as well
        yield


def norm_layer(kind: Norm, channels: int) -> nn.Module:
    """A normalization layer with scale and shift for maps of `channels` channels.

    ``instance`` is group normalization with one channel per group: the same maths as `nn.InstanceNorm2d`, and faster
    on the CPU, twice so where its gradient is differentiated again.
    """
    match kind:
        case "instance":
            return nn.GroupNorm(channels, channels)
        case "group":
            return nn.GroupNorm(_GROUPS, channels)
        case "batch":
            return nn.BatchNorm2d(channels)
        case "none":
            return nn.Identity()
        case _:
            assert_never(kind)


def groups_fit(kind: Norm, channels: int) -> bool:
    """Whether `channels` can be normalized in this way."""
    return kind != "group" or channels % _GROUPS == 0


def image_shape(
    model: str, input_shape: Sequence[int], num_classes: int, smallest: int = 1, fix: str = ""
) -> tuple[int, int, int]:
    """`input_shape` as (C, H, W).

    Args:
        model: the model's name, for the message.
        input_shape: shape of one sample.
        num_classes: K.
        smallest: least height and width the model can take.
        fix: what to do about images that are too small.

    Raises:
        ConfigError: no image, too small an image, or no classes.
    """
    if num_classes < 1:
        raise ConfigError("model.name", model, "data with labels: this model classifies", "choose a labeled source")
    found = f"{model} for samples of shape {'x'.join(map(str, input_shape))}"
    if len(input_shape) != 3:
        fix = "choose an image source, or the model mlp or logistic, which take samples of any shape"
        raise ConfigError("model.name", found, "images, of shape channels x height x width", fix)
    channels, height, width = input_shape
    if channels < 1 or min(height, width) < smallest:
        raise ConfigError("model.name", found, f"images of at least {smallest}x{smallest} pixels", fix)
    return channels, height, width


def feature_classifier(model: nn.Module) -> FeatureClassifier:
    """`model` itself, as one that can be asked for features.

    Raises:
        TypeError: it cannot.
    """
    if not hasattr(model, "features"):
        raise TypeError(f"{type(model).__name__} has no features(), see fedlab.models.FeatureClassifier")
    return cast(FeatureClassifier, model)


def check_features(model: nn.Module, name: str) -> None:
    """Refuse a model whose features and head cannot be used apart.

    Args:
        model: of the registry.
        name: its name, for the message.

    Raises:
        ConfigError: no ``features``, ``feature_dim`` and ``head``, see `FeatureClassifier`.
    """
    lacking = [part for part in ("features", "feature_dim", "head") if not hasattr(model, part)]
    if lacking:
        raise ConfigError(
            "model.name",
            name,
            f"a model with features(), feature_dim and head: it lacks {', '.join(lacking)}",
            "choose another model, or see fedlab.models.FeatureClassifier",
        )


def headless(model: nn.Module, name: str) -> tuple[nn.Module, int]:
    """`model` without its classification head, for a method that puts its own on the features; changed in place.

    Args:
        model: of the registry.
        name: its name, for the message.

    Returns:
        The model, and the length d of its features.

    Raises:
        ConfigError: no ``features``, ``feature_dim`` and ``head``, see `FeatureClassifier`.
    """
    check_features(model, name)
    model.head = nn.Identity()
    return model, feature_classifier(model).feature_dim
