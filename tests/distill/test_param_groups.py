from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fedlab.distill.param_groups import decayed, layerwise
from fedlab.models.vit import ViT


def named(module: nn.Module, groups: list[dict[str, Any]]) -> list[set[str]]:
    names = {id(p): name for name, p in module.named_parameters()}
    return [{names[id(p)] for p in group["params"]} for group in groups]


def small() -> ViT:
    return ViT((8, 8), patch=4, width=8, depth=3, heads=2)


def test_matrices_decay_and_vectors_do_not() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    groups = decayed(module)
    assert named(module, groups) == [
        {"0.weight", "2.weight"},
        {"0.bias", "1.weight", "1.bias", "2.bias"},
    ]
    assert [group["decays"] for group in groups] == [True, False]
    assert "weight_decay" not in groups[0]
    assert groups[1]["weight_decay"] == 0.0


def test_a_bias_with_two_dimensions_does_not_decay() -> None:
    module = nn.Module()
    module.map_bias = nn.Parameter(torch.zeros(2, 2))
    module.weight = nn.Parameter(torch.zeros(2, 2))
    assert named(module, decayed(module)) == [{"weight"}, {"map_bias"}]


def test_tokens_and_positions_decay_unless_excluded() -> None:
    vit = small()
    assert {"class_token", "positions"} <= named(vit, decayed(vit))[0]
    assert {"class_token", "positions"} <= named(vit, decayed(vit, tokens=False))[1]


def test_fixed_parameters_are_in_no_group_and_empty_groups_are_left_out() -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    assert named(module, decayed(module)) == [{"weight"}]


def test_learning_rates_fall_towards_the_input() -> None:
    """d^(L + 1 − l) for block l of L = 3, d^4 below the blocks, 1 above them; the patch projection times 0.2."""
    vit = small()
    groups = layerwise(vit, 0.5, patch_factor=0.2)
    factors = {
        name: group["lr_factor"] for group, names in zip(groups, named(vit, groups), strict=True) for name in names
    }
    assert set(factors) == {name for name, _ in vit.named_parameters()}
    assert factors["class_token"] == factors["positions"] == 0.5**4
    assert factors["patches.weight"] == factors["patches.bias"] == pytest.approx(0.2 * 0.5**4)
    assert [factors[f"blocks.{index}.qkv.weight"] for index in range(3)] == [0.5**3, 0.5**2, 0.5]
    assert factors["norm.weight"] == 1.0


def test_within_a_layer_vectors_do_not_decay() -> None:
    vit = small()
    for group, names in zip(groups := layerwise(vit, 0.9), named(vit, groups), strict=True):
        vectors = {name.endswith("bias") or "norm" in name for name in names}
        assert vectors == {not group["decays"]}, names
        assert group.get("weight_decay", None) == (None if group["decays"] else 0.0)


def test_a_module_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no blocks"):
        layerwise(nn.Linear(2, 2), 0.9)
