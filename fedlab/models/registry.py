"""Builds the network that the section ``model`` of a configuration describes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fedlab.config import Component, Config, Section, parse
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.models.given import refuse_absent
from fedlab.registry import GIVEN, Registry

MODELS = Registry(
    "model",
    {
        "convnet": "fedlab.models.convnet:ConvNet",
        "logistic": "fedlab.models.logistic:Logistic",
        "mlp": "fedlab.models.mlp:MLP",
        "resnet": "fedlab.models.standard_resnet:ResNet",
        "resnet18": "fedlab.models.resnet:ResNet18",
        "simple_cnn": "fedlab.models.simple_cnn:SimpleCNN",
    },
    "fedlab.models",
)


def build_model(component: Component, input_shape: Sequence[int], num_classes: int) -> nn.Module:
    """The model called ``component.name``, its weights drawn from torch's default generator.

    Args:
        component: name and settings.
        input_shape: shape of one sample, (C, H, W) for images.
        num_classes: K.

    Raises:
        ConfigError, ConfigErrors: unknown model or setting, or an input the model cannot take.
    """
    model, settings = _resolve(component)
    if not input_shape and component.name in MODELS.builtin:
        expected = "data with a column image or features, which this model takes"
        fix = "call the column so, say which it is by fedlab.as_dataset(…, columns={…}), or give a model of your own"
        raise ConfigError("model.name", component.name, expected, fix)
    network: nn.Module = model(settings, tuple(input_shape), num_classes)
    return network


def check_model(component: Component) -> None:
    """Refuse settings that can be recognized as wrong before the data is loaded.

    Raises:
        ConfigError, ConfigErrors: unknown model or setting.
    """
    _resolve(component)


def is_default_model(component: Component) -> bool:
    """Whether a component is the default model, with or without its default settings written out."""
    default: Component = Config.model_fields["model"].default
    try:
        return component.name == default.name and _resolve(component) == _resolve(default)
    except ConfigErrors:  # it is wrong, and `check_model` says how
        return False


def _resolve(component: Component) -> tuple[Any, Section]:
    if component.name == GIVEN:
        refuse_absent(component)
    model = MODELS.find(component.name)
    settings = getattr(model, "Settings", None)
    if not (
        isinstance(model, type)
        and issubclass(model, nn.Module)
        and isinstance(settings, type)
        and issubclass(settings, Section)
    ):
        raise ConfigError(
            "model.name",
            component.name,
            "a torch.nn.Module class with a nested class Settings(fedlab.config.Section)",
            "see fedlab/models/logistic.py for the smallest one",
        )
    return model, parse(settings, component.settings, "model")
