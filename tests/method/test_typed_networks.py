"""A method's networks and settings, as the classes that it made them of."""

from __future__ import annotations

import pytest
from torch import nn

from fedlab.config import Section
from fedlab.method import Method, NoSettings, Task, network
from fedlab.models import feature_classifier


class Pace(Section):
    """Settings of a test."""

    lr: float = 0.5


class Paced(Method[Pace]):
    """A method with settings."""

    Settings = Pace

    def build(self, task: Task) -> dict[str, nn.Module]:
        return {"model": nn.Linear(1, 1)}


class Plain(Method):
    """One that names none."""

    def build(self, task: Task) -> dict[str, nn.Module]:
        return {}


def test_settings_are_the_ones_given_or_the_defaults() -> None:
    assert Paced().settings == Pace()
    assert Paced(Pace(lr=2)).settings.lr == 2
    assert isinstance(Plain().settings, NoSettings)


def test_a_network_is_given_as_its_class_or_refused_by_name() -> None:
    networks = nn.ModuleDict({"model": nn.Linear(2, 3)})
    assert network(networks, "model", nn.Linear).out_features == 3
    with pytest.raises(TypeError, match="'model' is a Linear, not a Conv2d"):
        network(networks, "model", nn.Conv2d)


def test_a_model_without_features_says_what_it_lacks() -> None:
    with pytest.raises(TypeError, match=r"Linear has no features\(\)"):
        feature_classifier(nn.Linear(2, 3))
