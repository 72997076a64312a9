"""Heads and exits of LGViT: known answers and parameter counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedlab.errors import ConfigError, DataError
from fedlab.methods.lgvit.networks import (
    Backbone,
    Exit,
    Exits,
    GlobalAggregation,
    LastClassifier,
    LocalPerception,
    run_all,
    subsampled,
)
from fedlab.methods.lgvit.settings import LGViTSettings
from fedlab.models.checkpoints import load_pretrained
from tests.methods.lgvit.conftest import Lab

Make = Callable[..., Lab]
SMALL: dict[str, Any] = {"width": 16, "heads": 2, "depth": 6, "exits": [2, 3, 4, 5], "aggregation_heads": 4}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def tokens(grid: tuple[int, int], width: int = 16, seed: int = 0, specials: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, specials + grid[0] * grid[1], width, generator=generator)


# §8, check 5


@pytest.mark.parametrize(("stride", "places"), [(1, range(14)), (2, range(0, 14, 2)), (3, (0, 3, 6, 9, 12))])
def test_the_grid_is_sub_sampled_and_not_averaged(stride: int, places: Any) -> None:
    patches = tokens((14, 14))
    expected = torch.stack([patches[:, 14 * row + column] for row in places for column in places], dim=1)
    assert torch.equal(subsampled(patches, (14, 14), stride), expected)
    assert subsampled(patches, (14, 14), stride).shape[1] == {1: 196, 2: 49, 3: 25}[stride]


def test_rows_and_columns_of_a_grid_that_is_no_square_are_not_confused() -> None:
    patches = tokens((3, 5))
    assert torch.equal(subsampled(patches, (3, 5), 2), patches[:, [0, 2, 4, 10, 12, 14]])


# §8, check 7


def test_parameter_counts_of_the_heads_at_width_768() -> None:
    with torch.device("meta"):
        assert count(LocalPerception(768, True)) == 1_193_472
        assert count(LocalPerception(768, False)) == 1_184_256
        assert count(GlobalAggregation(768, 8, 2)) == 2_360_064


# §8, check 6


@pytest.mark.parametrize("depthwise", [True, False])
def test_a_local_head_whose_last_normalization_is_zero_is_the_identity(depthwise: bool) -> None:
    head, patches = LocalPerception(16, depthwise), tokens((4, 6))
    last = [module for module in head.modules() if isinstance(module, nn.BatchNorm2d)][-1]
    nn.init.zeros_(last.weight)
    assert torch.equal(head(patches, (4, 6)), patches)
    nn.init.ones_(last.weight)
    assert not torch.allclose(head(patches, (4, 6)), patches, atol=0.1)


def test_only_the_depthwise_convolution_looks_at_neighbors() -> None:
    for depthwise, reach in ((True, 1), (False, 0)):
        head = LocalPerception(16, depthwise).eval()
        patches = tokens((5, 5))
        changed = patches.clone()
        changed[:, 12] += 1  # the middle one
        moved = (head(patches, (5, 5)) - head(changed, (5, 5))).abs().sum((0, 2)).unflatten(0, (5, 5)) > 1e-6
        expected = torch.zeros(5, 5, dtype=torch.bool)
        expected[2 - reach : 3 + reach, 2 - reach : 3 + reach] = True
        assert torch.equal(moved, expected)


def test_a_local_head_follows_the_formula() -> None:
    head = LocalPerception(8, True)
    first, _, norm1, _, depthwise, _, norm2, last, norm3, _ = head.stages
    patches = tokens((3, 4), 8)
    maps = patches.transpose(1, 2).reshape(3, 8, 3, 4)
    gelu = nn.functional.gelu
    expected = patches + norm3(last(norm2(gelu(depthwise(norm1(gelu(first(maps)))))))).flatten(2).transpose(1, 2)
    torch.testing.assert_close(head(patches, (3, 4)), expected)


def test_a_global_head_is_torchs_attention_without_residual_and_norm() -> None:
    head = GlobalAggregation(16, 4, 2)
    reference = nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(head.qkv.weight)
        nn.init.zeros_(reference.in_proj_bias)
        reference.out_proj.load_state_dict(head.out.state_dict())
    patches = tokens((5, 7))
    kept = subsampled(patches, (5, 7), 2)
    torch.testing.assert_close(head(patches, (5, 7)), reference(kept, kept, kept, need_weights=False)[0])
    assert head.qkv.bias is None


def test_an_exit_classifies_the_mean_of_its_features_plus_the_class_token() -> None:
    s = LGViTSettings(**SMALL)
    h = tokens((4, 4), specials=1)
    for kind in ("lph", "gah2"):
        exit = Exit(kind, s, 5)
        (linear,) = exit.classifiers
        seen = exit(h, (4, 4))
        torch.testing.assert_close(seen.features, exit.head(h[:, 1:], (4, 4)))
        torch.testing.assert_close(seen.logits, linear(seen.features.mean(1) + h[:, 0]))
    silent = Exit("lph_dw", s, 5)
    for p in silent.head.parameters():
        nn.init.zeros_(p)
    torch.testing.assert_close(silent(h, (4, 4)).logits, silent.classifiers[0](h[:, 1:].mean(1) + h[:, 0]))


def test_with_a_distillation_token_logits_are_the_mean_of_two_classifiers() -> None:
    s = LGViTSettings(**SMALL, distillation_token=True)
    h = tokens((4, 4), specials=2)
    exit, last = Exit("gah3", s, 5), LastClassifier(s, 5)
    first, second = exit.classifiers
    mean = exit.head(h[:, 2:], (4, 4)).mean(1)
    torch.testing.assert_close(exit(h, (4, 4)).logits, (first(mean + h[:, 0]) + second(mean + h[:, 1])) / 2)
    one, two = last.classifiers
    torch.testing.assert_close(last(h), (one(h[:, 0]) + two(h[:, 1])) / 2)


def test_exits_without_features_classify_the_normalized_class_token() -> None:
    s = LGViTSettings(**SMALL)
    h = tokens((4, 4), specials=1)
    linear = Exit("linear", s, 5)
    seen = linear(h, (4, 4))
    torch.testing.assert_close(seen.logits, linear.classifiers[0](nn.functional.layer_norm(h[:, 0], (16,), eps=1e-6)))
    assert seen.features.shape == (3, 0, 16)
    block = Exit("block", s, 5)
    normalized = nn.functional.layer_norm(block.head(h)[:, 0], (16,), eps=1e-6)
    torch.testing.assert_close(block(h, (4, 4)).logits, block.classifiers[0](normalized))


@pytest.mark.parametrize(
    ("exits", "kinds"),
    [
        ((4, 8), ("lph_dw", "gah2")),
        ((4, 6, 8, 10), ("lph_dw", "lph", "gah2", "gah3")),
        ((4, 5, 6, 7, 8, 9), ("lph_dw", "lph", "gah2", "gah2", "gah3", "gah3")),
        (tuple(range(4, 12)), ("lph_dw", "lph_dw", "lph", "lph", "gah2", "gah2", "gah3", "gah3")),
    ],
)
def test_the_papers_heads_by_the_number_of_exits(exits: tuple[int, ...], kinds: tuple[str, ...]) -> None:
    s = LGViTSettings(width=8, heads=2, exits=exits)
    found = Exits(s, 3)
    assert [found[str(layer)].kind for layer in exits] == list(kinds) == list(s.head_kinds)


# the whole network


def test_exits_see_tokens_without_normalization_and_the_last_classifier_sees_normalized_ones(lab: Make) -> None:
    small = lab()
    x, networks = small.batch()["image"], small.networks.eval()
    whole = run_all(networks, x, (2, 5))
    backbone: Any = networks["backbone"]
    hidden = backbone.embed(x)
    for layer, block in enumerate(backbone.blocks, start=1):
        hidden = block(hidden)
        if layer in (2, 5):
            expected = networks["heads"][str(layer)](hidden, (7, 7)).logits
            torch.testing.assert_close(whole.exits[layer == 5].logits, expected)
    torch.testing.assert_close(whole.last, hidden)
    torch.testing.assert_close(whole.final, networks["final"](backbone.norm(hidden)))


def test_a_distillation_token_stands_between_class_token_and_patches(lab: Make) -> None:
    small = lab(distillation_token=True)
    backbone: Any = small.networks["backbone"]
    x = small.batch()["image"]
    embedded = backbone.embed(x)
    assert embedded.shape == (6, 2 + 49, 16)
    expected = (backbone.distillation_token + backbone.distillation_position)[:, 0]
    torch.testing.assert_close(embedded[:, 1], expected.expand(6, -1))
    rest = torch.cat([embedded[:, :1], embedded[:, 2:]], dim=1)
    torch.testing.assert_close(rest, super(type(backbone), backbone).embed(x))


def test_a_distilled_checkpoint_gives_all_tokens_of_transformers_and_a_plain_one_is_refused(tmp_path: Path) -> None:
    from transformers import DeiTConfig, DeiTModel, ViTConfig, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
             "image_size": 12, "patch_size": 4, "layer_norm_eps": 1e-6}  # fmt: skip
    model = DeiTModel(DeiTConfig(**sizes), add_pooling_layer=False).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    model.save_pretrained(tmp_path / "deit")
    ViTModel(ViTConfig(**sizes), add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    s = LGViTSettings(
        patch=4, width=16, depth=2, heads=2, mlp_ratio=2, exits=[1], kinds=["lph"], distillation_token=True
    )
    backbone = Backbone(s, 3, (12, 12)).eval()
    load_pretrained(backbone, str(tmp_path / "deit"))
    images = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), model(images).last_hidden_state, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="DeiT checkpoint"):
        load_pretrained(backbone, str(tmp_path / "vit"))


def test_the_papers_networks_have_the_papers_sizes(paper_networks: Callable[..., nn.ModuleDict]) -> None:
    columns = {"image": ("uint8", (3, 224, 224)), "label": ("int64", ())}
    networks = paper_networks("lgvit", columns, [str(c) for c in range(100)], pretrained=None)
    assert count(networks["backbone"]) == 85_798_656
    heads = 2 * 1_193_472 + 2 * 1_184_256 + 4 * 2_360_064
    assert count(networks["heads"]) == heads + 8 * (768 * 100 + 100)
    assert count(networks["final"]) == 76_900


def test_images_that_cannot_be_cut_into_patches_and_data_without_labels_are_refused(lab: Make) -> None:
    with pytest.raises(DataError, match=r"multiples of method.patch = 4"):
        lab(patch=4)
