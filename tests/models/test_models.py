from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from fedlab.config import Component
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.models import MODELS, build_model, check_model, seeded_init
from fedlab.models.base import norm_layer


def make(name: str, shape: tuple[int, ...] = (3, 28, 28), classes: int = 10, **settings: Any) -> Any:
    return build_model(Component(name=name, **settings), shape, classes)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "classes", "count", "features"),
    [
        ("convnet", (3, 28, 28), 10, 311_050, 128 * 3 * 3),
        ("convnet", (3, 96, 96), 2, 336_386, 128 * 12 * 12),
        ("resnet18", (3, 28, 28), 10, 11_173_962, 512),
        ("resnet18", (3, 96, 96), 2, 13_529_666, 4608),
        ("resnet", (3, 224, 224), 1000, 11_689_512, 512),
        ("simple_cnn", (1, 28, 28), 10, 1_199_882, 128),
        ("simple_cnn", (3, 32, 32), 10, 1_626_442, 128),
        ("logistic", (3, 28, 28), 10, 23_530, 2352),
        ("mlp", (1, 28, 28), 10, 199_210, 200),
        ("mlp", (30,), 2, 46_802, 200),
    ],
)
def test_sizes_of_the_papers(name: str, shape: tuple[int, ...], classes: int, count: int, features: int) -> None:
    model = make(name, shape, classes).eval()
    assert parameters(model) == count
    x = torch.randn(2, *shape)
    found = model.features(x)
    assert found.shape == (2, features)
    assert model.feature_dim == features
    assert model(x).shape == (2, classes)
    assert torch.equal(model(x), model.head(found))


@pytest.mark.parametrize(
    ("name", "smallest"),
    [("convnet", 8), ("resnet", 8), ("resnet18", 25), ("simple_cnn", 6), ("convnet-gray", 4), ("convnet-2", 4)],
)
def test_the_smallest_image_works_and_a_smaller_one_is_refused(name: str, smallest: int) -> None:
    kind, _, variant = name.partition("-")
    channels, settings = (1 if variant == "gray" else 3), ({"depth": 2} if variant == "2" else {})
    for height, width in itertools.permutations((smallest, smallest + 5)):
        model = make(kind, (channels, height, width), **settings).eval()
        assert model(torch.randn(1, channels, height, width)).shape == (1, 10)
    with pytest.raises(ConfigError, match=f"at least {smallest}x{smallest}"):
        make(kind, (channels, smallest - 1, smallest + 20), **settings)


@pytest.mark.parametrize("name", sorted(MODELS.builtin))
def test_data_a_model_cannot_take_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="labels"):
        make(name, classes=0)
    if name not in ("logistic", "mlp"):
        with pytest.raises(ConfigError, match="images"):
            make(name, (2352,))


def test_one_channel_is_padded_by_three() -> None:
    gray, color = make("convnet", (1, 28, 28)), make("convnet", (3, 28, 28))
    assert gray.body[0].padding == (3, 3)
    assert gray.body[4].padding == color.body[0].padding == (1, 1)
    assert gray.feature_dim == 128 * 4 * 4
    assert gray.features(torch.randn(1, 1, 28, 28)).shape == (1, 128 * 4 * 4)


def test_convnet_has_the_order_of_the_literature() -> None:
    kinds = [type(layer) for layer in make("convnet", width=8, depth=2).body]
    assert kinds == [nn.Conv2d, nn.GroupNorm, nn.ReLU, nn.AvgPool2d] * 2


def test_instance_norm_is_group_norm_with_one_channel_a_group() -> None:
    ours, torchs = norm_layer("instance", 6), nn.InstanceNorm2d(6, affine=True)
    assert isinstance(ours, nn.GroupNorm)
    assert ours.num_groups == 6
    torch.nn.init.normal_(ours.weight)
    torch.nn.init.normal_(ours.bias)
    torchs.load_state_dict(ours.state_dict())
    a = torch.randn(4, 6, 5, 7, dtype=torch.float64, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    left, right = ours.double()(a), torchs.double()(b)
    torch.testing.assert_close(left, right)
    weights = torch.randn_like(left)
    gradients = [
        torch.autograd.grad((y.sin() * weights).sum(), x, create_graph=True)[0] for x, y in ((a, left), (b, right))
    ]
    torch.testing.assert_close(*gradients)
    second = [torch.autograd.grad(g.square().sum(), x)[0] for x, g in zip((a, b), gradients, strict=True)]
    torch.testing.assert_close(*second)


@pytest.mark.parametrize(("depth", "count"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160)])
def test_standard_resnets_have_the_published_sizes(depth: int, count: int) -> None:
    with torch.device("meta"):
        assert parameters(make("resnet", (3, 224, 224), 1000, depth=depth)) == count


def test_the_small_stem_keeps_the_resolution() -> None:
    large, small = make("resnet", (1, 32, 32), width=4), make("resnet", (1, 32, 32), width=4, stem="small")
    x = torch.randn(2, 1, 32, 32)
    assert small.body.embedder(x).shape == (2, 4, 32, 32)
    assert large.body.embedder(x).shape == (2, 4, 8, 8)
    assert small(x).shape == (2, 10)
    assert all(not isinstance(layer, nn.MaxPool2d) for layer in small.modules())


def test_convnet_takes_a_width_for_each_block_another_pooling_and_plain_padding() -> None:
    model = make("convnet", (1, 16, 16), width=[24, 48, 40], pooling="max", same_padding=True)
    assert [layer.out_channels for layer in model.body if isinstance(layer, nn.Conv2d)] == [24, 48, 40]
    assert [type(layer) for layer in model.body[3::4]] == [nn.MaxPool2d] * 3
    assert model.features(torch.randn(1, 1, 16, 16)).shape == (1, 40 * 2 * 2)
    assert make("convnet", (1, 16, 16), width=[24, 48, 40]).feature_dim == 40 * 2 * 2  # 20 → 10 → 5 → 2
    assert make("convnet", (1, 14, 14), width=8, depth=1).feature_dim == 8 * 9 * 9
    assert make("convnet", (1, 14, 14), width=8, depth=1, same_padding=True).feature_dim == 8 * 7 * 7
    with pytest.raises(ConfigErrors, match="as many widths as blocks"):
        check_model(Component(name="convnet", width=[8, 8]))


@pytest.mark.parametrize("name", ["convnet", "resnet18"])
@pytest.mark.parametrize("norm", ["instance", "batch", "group", "none"])
def test_every_normalization_can_be_built(name: str, norm: str) -> None:
    model = make(name, norm=norm)
    kinds = {"instance": nn.GroupNorm, "batch": nn.BatchNorm2d, "group": nn.GroupNorm, "none": nn.Identity}
    assert any(isinstance(layer, kinds[norm]) for layer in model.modules())
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()) == (norm == "batch")


@pytest.mark.parametrize("name", ["convnet", "resnet18", "resnet", "logistic", "mlp"])
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    model = make(name).eval()
    x = torch.randn(3, 3, 28, 28)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(MODELS.builtin))
def test_initial_weights_depend_on_the_seed_alone(name: str) -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        with seeded_init(seed):
            return list(make(name).state_dict().values())

    first = weights(1)
    torch.rand(3)
    before = torch.get_rng_state()
    again = weights(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, weights(2), strict=True))


def test_wrong_settings_name_the_key() -> None:
    with pytest.raises(ConfigErrors, match=r"model\.width"):
        check_model(Component(name="convnet", width=0))
    with pytest.raises(ConfigErrors, match="divisible by four"):
        check_model(Component(name="convnet", width=6, norm="group"))
    with pytest.raises(ConfigErrors, match="width"):
        check_model(Component(name="convnet", widht=8))
    with pytest.raises(ConfigError, match="convnet"):
        check_model(Component(name="convnett"))
    with pytest.raises(ConfigError, match="Settings"):
        check_model(Component(name="torch.nn:Linear"))


def test_an_mlp_has_the_layers_that_are_asked_for() -> None:
    model = make("mlp", (5,), 3, hidden=[7, 4], dropout=0.5)
    kinds = [type(layer) for layer in model.body]
    assert kinds == [nn.Linear, nn.ReLU, nn.Dropout] * 2
    assert [layer.out_features for layer in model.body if isinstance(layer, nn.Linear)] == [7, 4]
    with pytest.raises(ConfigErrors, match="hidden"):
        check_model(Component(name="mlp", hidden=[]))


def test_an_mlp_without_its_nonlinearity_would_be_a_linear_map() -> None:
    model = make("mlp", (5,), 3, hidden=[16]).eval()
    x = torch.randn(4, 5)
    assert not torch.allclose(model(x) + model(-x), 2 * model(torch.zeros(1, 5)), atol=1e-4)


def test_a_model_of_the_registry_is_refused_where_no_column_says_what_a_sample_is() -> None:
    with pytest.raises(ConfigError, match="image or features"):
        build_model(Component(name="convnet"), (), 3)
