"""Networks that a user gives: copies of a module, results of a factory, and what is refused."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedlab.config import Component, Section
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.models import GivenNetwork, build_model, check_model, is_default_model, seeded_init
from fedlab.models.given import fingerprint, reference

GIVEN = Component(name="given")


class Net(nn.Module):
    def __init__(self, num_classes: int = 3, hidden: int = 4) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, hidden), nn.Linear(hidden, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.body(x.flatten(1)).relu())
        return found


class Configured(nn.Module):
    class Settings(Section):
        hidden: int = 4

    def __init__(self, settings: Settings, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(input_shape[0], settings.hidden), nn.Linear(settings.hidden, num_classes))


def both(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Linear(input_shape[0], num_classes)


def made(given: Any, component: Component = GIVEN, shape: tuple[int, ...] = (6,), classes: int = 5) -> Any:
    with seeded_init(7):
        return GivenNetwork(given, component).make(shape, classes)


def test_a_module_is_copied_with_its_weights() -> None:
    net = Net()
    net.body.weight.requires_grad_(False)
    copy = made(net)
    assert copy is not net
    assert torch.equal(copy.head.weight, net.head.weight)
    assert copy.head.weight.data_ptr() != net.head.weight.data_ptr()
    assert not copy.body.weight.requires_grad, "frozen layers stay frozen"


@pytest.mark.parametrize(
    ("given", "outputs"),
    [
        (Net, 5),
        (both, 5),
        (lambda: Net(2), 2),
        (lambda num_classes: Net(num_classes), 5),
        (lambda *, num_classes, width=3: Net(num_classes, width), 5),
        (functools.partial(Net, hidden=9), 5),
        (lambda input_shape, **more: Net(input_shape[0]), 6),
    ],
)
def test_a_factory_is_told_what_it_names(given: Any, outputs: int) -> None:
    network = made(given)
    assert (network.head if hasattr(network, "head") else network).out_features == outputs


def test_a_class_with_settings_is_called_like_a_model_of_the_registry() -> None:
    component = Component(name="given", hidden=9)
    assert made(Configured, component).layers[0].out_features == 9
    network = GivenNetwork(Configured, component)
    assert network.described((6,), 5) == Component(name=f"{__name__}:Configured", hidden=9)
    with pytest.raises(ConfigErrors, match=r"model\.hiden"):
        GivenNetwork(Configured, Component(name="given", hiden=9))


def test_factories_draw_from_the_seeded_generator() -> None:
    assert torch.equal(made(Net).head.weight, made(Net).head.weight)


def test_the_description_has_class_size_and_hash_and_is_the_same_again() -> None:
    net = Net()
    found = GivenNetwork(net, GIVEN).described((6,), 3)
    assert found.name == "given"
    assert found.settings == {"of": f"{__name__}:Net", "parameters": 43, "fingerprint": fingerprint(net)}
    assert GivenNetwork(net, found).described((6,), 3) == found
    assert GivenNetwork(both, GIVEN).described((6,), 3).settings["made_by"] == f"{__name__}:both"


def test_the_hash_tells_weights_and_layers_apart() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    same = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    same.load_state_dict(net.state_dict())
    other = nn.Sequential(net[0], nn.Tanh())
    assert fingerprint(net) == fingerprint(same)
    assert len({fingerprint(net), fingerprint(other), fingerprint(nn.Sequential(nn.Linear(3, 2), nn.ReLU()))}) == 3
    with torch.no_grad():
        same[0].bias[0] += 1e-7
    assert fingerprint(net) != fingerprint(same)


def test_another_network_than_the_described_one_is_refused() -> None:
    described = GivenNetwork(Net(), GIVEN).described((6,), 3)
    with pytest.raises(ConfigError, match="the network of this configuration") as caught:
        GivenNetwork(Net(), described).described((6,), 3)
    assert str(described.settings["fingerprint"]) in str(caught.value)


def test_without_the_network_its_description_is_refused_everywhere() -> None:
    described = GivenNetwork(Net(), GIVEN).described((6,), 3)
    for call in (lambda: build_model(described, (6,), 3), lambda: check_model(described), lambda: check_model(GIVEN)):
        with pytest.raises(ConfigError, match="given in Python") as caught:
            call()
        assert "model=…" in caught.value.fix
    assert not is_default_model(described)


def numpy_weights() -> nn.Module:
    net = nn.Linear(2, 2)
    net.weight.data = torch.from_numpy(np.random.default_rng().standard_normal((2, 2)).astype("float32"))
    return net


def graph() -> nn.Module:
    net = nn.Linear(2, 2)
    net.held = net.weight * 2
    return net


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (3, "list models"),
        (lambda width: Net(width), "this one needs width"),
        (nn.Linear, "in_features, out_features"),
        (lambda a, /: Net(a), "this one needs a"),
        (lambda: 7, "it returns 7"),
        (numpy_weights, "torch's generator"),
        (nn.LazyLinear(3), "call it once on a batch"),
        (lambda: nn.LazyLinear(3), "call it once on a batch"),
        (graph(), "deepcopy"),
    ],
)
def test_what_is_no_network_is_refused(given: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GivenNetwork(given, GIVEN).described((6,), 3)
    assert caught.value.key == "model"
    assert words in str(caught.value)


def test_settings_beside_a_module_are_refused() -> None:
    with pytest.raises(ConfigErrors, match=r"model\.width"):
        GivenNetwork(Net(), Component(name="given", width=8))


def test_a_module_cannot_be_drawn_anew() -> None:
    with pytest.raises(ConfigError, match="different initial weights"):
        GivenNetwork(Net(), GIVEN).make((6,), 3, seeded=True)
    assert isinstance(GivenNetwork(Net, GIVEN).make((6,), 3, seeded=True), Net)


def test_a_reference_names_functions_classes_and_classes_of_objects() -> None:
    assert [reference(one) for one in (both, Net, Net(), functools.partial(functools.partial(Net), 3))] == [
        f"{__name__}:both", *[f"{__name__}:Net"] * 3,
    ]  # fmt: skip
