from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fedlab.models.vit import Block, ViT, kept_tokens, resized_positions, sincos_positions


def small(**changes: Any) -> ViT:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"patch": 8, "width": 32, "depth": 3, "heads": 4}
    return ViT((64, 32), **{**settings, **changes})


def test_the_papers_backbone_has_85482240_parameters() -> None:
    with torch.device("meta"):
        vit = ViT((592, 128))
    assert sum(p.numel() for p in vit.parameters()) == 85_482_240
    assert vit(torch.empty(2, 1, 592, 128, device="meta")).shape == (2, 297, 768)


def test_tokens_are_the_class_token_and_the_patches_row_by_row() -> None:
    vit = small(depth=0).eval()
    x = torch.zeros(1, 1, 64, 32)
    changed = x.clone()
    changed[0, 0, 8:16, 24:32] = 1  # second row, last of four columns
    differs = (vit(x) != vit(changed)).any(-1)[0]
    assert differs.nonzero().flatten().tolist() == [1 + 4 + 3]


def test_every_token_sees_every_patch() -> None:
    vit = small().eval()
    x = torch.zeros(1, 1, 64, 32)
    changed = x.clone()
    changed[..., -1, -1] = 5
    assert (vit(x) != vit(changed)).any(-1).all()


def test_positions_are_resized_bilinearly_along_time_for_other_lengths() -> None:
    vit = small()
    assert vit(torch.zeros(2, 1, 152, 32)).shape == (2, 1 + 19 * 4, 32)
    with torch.no_grad():
        vit.positions[:, 1:] = torch.arange(8.0).repeat_interleave(4)[None, :, None]  # position = row
    resized = vit.positions_for((16, 4))[0, 1:, 0].reshape(16, 4)
    torch.testing.assert_close(resized[:, 0], (torch.arange(16.0) / 2 - 0.25).clamp(0, 7))
    torch.testing.assert_close(resized[:, 0], resized[:, 3])
    assert torch.equal(vit.positions_for((16, 4))[:, :1], vit.positions[:, :1])
    assert vit.positions_for((8, 4)) is vit.positions


def test_stochastic_depth_grows_linearly_and_acts_in_training_only() -> None:
    vit = small(drop_path=0.4)
    assert [block.drop_path for block in vit.blocks] == pytest.approx([0, 0.2, 0.4])
    x = torch.randn(8, 1, 64, 32)
    assert not torch.equal(vit(x), vit(x))
    assert torch.equal(vit.eval()(x), vit(x))


def test_a_skipped_residual_is_skipped_for_a_whole_sample_and_kept_in_the_mean() -> None:
    block = small(drop_path=0.5).blocks[-1].train()
    kept = block._kept(torch.ones(4000, 2, 3))
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(kept.amin((1, 2)), kept.amax((1, 2)))
    assert float(kept.mean()) == pytest.approx(1, abs=0.05)


@torch.no_grad()
@pytest.mark.parametrize(("given", "expected"), [({}, 0.02), ({"init_std": 0.08}, 0.08)])
def test_initial_weights(given: dict[str, float], expected: float) -> None:
    vit = small(width=256, heads=4, **given)
    block = vit.blocks[0]
    for linear in (block.qkv, block.out, block.mlp[0], block.mlp[2]):
        assert float(linear.weight.std()) == pytest.approx(expected, rel=0.05)
    assert float(vit.positions.std()) == pytest.approx(0.02, rel=0.1)
    assert float(vit.class_token.std()) == pytest.approx(0.02, rel=0.3)
    assert not vit.blocks[0].qkv.bias.any()
    assert float(vit.patches.weight.abs().max()) == pytest.approx(1 / 8, rel=0.05)  # library default: U(±1/√64)


# parts of the forward pass


def test_forward_is_the_norm_of_all_blocks_after_the_embedding() -> None:
    vit, x = small().eval(), torch.randn(2, 1, 64, 32)
    tokens = vit.embed(x)
    assert torch.equal(vit(x), vit.norm(vit.run(tokens)))
    assert torch.equal(vit.run(vit.run(tokens, slice(0, 2)), slice(2, 3)), vit.run(tokens))
    assert torch.equal(vit.run(tokens, slice(0, 0)), tokens)


def test_hidden_tokens_are_those_after_each_block_without_the_norm() -> None:
    vit, x = small().eval(), torch.randn(2, 1, 64, 32)
    every = vit.hidden(x)
    assert len(every) == 3
    assert torch.equal(vit(x), vit.norm(every[-1]))
    assert torch.equal(every[0], vit.blocks[0](vit.embed(x)))
    embedded, second = vit.hidden(x, (0, 2))
    assert torch.equal(embedded, vit.embed(x))
    assert torch.equal(second, every[1])


def test_positions_are_added_before_patches_are_selected() -> None:
    vit, x = small(), torch.randn(2, 1, 64, 32)
    keep = torch.tensor([[5, 0, 31], [7, 8, 9]])
    whole, part = vit.embed(x), vit.embed(x, keep)
    assert part.shape == (2, 4, 32)
    assert torch.equal(part[:, 0], whole[:, 0])
    for row in range(2):
        assert torch.equal(part[row, 1:], whole[row, 1 + keep[row]])
    assert torch.equal(part, kept_tokens(whole, keep))
    assert torch.equal(vit.hidden(x, (0,), keep)[0], part)


def test_tokens_that_stay_in_any_order_compute_the_same() -> None:
    vit, x = small().eval(), torch.randn(1, 1, 64, 32)
    keep = torch.arange(32)[None]
    torch.testing.assert_close(vit(x, keep), vit(x))
    shuffled = torch.randperm(32)[None]
    torch.testing.assert_close(vit(x, shuffled)[:, 0], vit(x)[:, 0])


def test_masked_patches_lose_their_content_and_keep_their_positions() -> None:
    vit, x = small(mask_token=True, depth=0), torch.randn(2, 1, 64, 32)
    masked = torch.zeros(2, 8, 4, dtype=torch.bool)
    masked[1, 2, 3] = True
    whole, found = vit.embed(x), vit.embed(x, masked=masked)
    changed = (whole != found).any(-1)
    assert changed.nonzero().tolist() == [[1, 1 + 2 * 4 + 3]]
    assert vit.mask_token is not None
    torch.testing.assert_close(found[1, 12], vit.mask_token[0, 0] + vit.positions[0, 12])
    vit(x, masked=masked.flatten(1)).sum().backward()
    assert vit.mask_token.grad is not None
    assert "mask_token" in vit.state_dict()
    with pytest.raises(ValueError, match="without a mask token"):
        small().embed(x, masked=masked)


def test_queries_keys_and_values_give_the_attention() -> None:
    block = small().blocks[0]
    assert isinstance(block, Block)
    tokens = torch.randn(2, 5, 32)
    query, key, value = block.queries_keys_values(tokens)
    assert query.shape == key.shape == value.shape == (2, 4, 5, 8)
    weights = (query @ key.transpose(2, 3) / math.sqrt(8)).softmax(-1)
    torch.testing.assert_close(weights.mean(1), block.attention_weights(tokens))
    mixed = block.out((weights @ value).transpose(1, 2).flatten(2))
    halfway = tokens + mixed
    torch.testing.assert_close(block(tokens), halfway + block.mlp(block.norm2(halfway)), rtol=1e-4, atol=1e-5)


# settings


def test_the_defaults_have_no_further_state_and_draw_the_same_weights() -> None:
    plain, more = small(), small(mask_token=True, layer_scale=1.0)
    added = set(more.state_dict()) - set(plain.state_dict())
    assert added == {"mask_token"} | {f"blocks.{i}.scale{j}" for i in range(3) for j in (1, 2)}
    assert all(torch.equal(value, more.state_dict()[name]) for name, value in plain.state_dict().items())
    x = torch.randn(2, 1, 64, 32)
    torch.testing.assert_close(plain.eval()(x), more.eval()(x))


def test_layer_scale_weighs_every_channel_of_a_residual() -> None:
    vit, x = small(layer_scale=0.0), torch.randn(2, 1, 64, 32)
    assert torch.equal(vit.run(vit.embed(x)), vit.embed(x))
    block = small(layer_scale=1e-5).blocks[0]
    assert block.scale1.shape == (32,)
    assert float(block.scale2[3]) == pytest.approx(1e-5)
    tokens = torch.randn(1, 4, 32)
    with torch.no_grad():
        block.scale1.fill_(1.0)
        block.scale2.zero_()
        only = block(tokens)
        block.scale1[7] = 0
        assert torch.equal((block(tokens) != only).any(0).any(0).nonzero().flatten(), torch.tensor([7]))


def test_stochastic_depth_may_have_one_rate() -> None:
    vit = small(drop_path=0.4, drop_path_rule="constant")
    assert [block.drop_path for block in vit.blocks] == [0.4] * 3


def test_sine_and_cosine_positions_are_fixed_and_not_part_of_the_state() -> None:
    vit = small(positions="sincos")
    assert "positions" not in vit.state_dict()
    assert "positions" not in dict(vit.named_parameters())
    assert torch.equal(vit.positions, sincos_positions((8, 4), 32))
    assert vit(torch.zeros(1, 1, 64, 32)).shape == (1, 33, 32)
    assert vit(torch.zeros(1, 1, 32, 32)).shape == (1, 17, 32)
    assert torch.equal(vit.double().positions.float(), sincos_positions((8, 4), 32))


def test_sine_and_cosine_positions_have_known_values() -> None:
    """Width 8: two frequencies, 1 and 1/100; columns first, sines before cosines."""
    found = sincos_positions((3, 4), 8)
    assert found.shape == (1, 13, 8)
    assert not found[0, 0].any()
    row, column = 2, 3
    angles = [column, column / 100, column, column / 100, row, row / 100, row, row / 100]
    waves = [math.sin, math.sin, math.cos, math.cos] * 2
    expected = [wave(angle) for wave, angle in zip(waves, angles, strict=True)]
    assert found[0, 1 + row * 4 + column].tolist() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="divisible by 4"):
        sincos_positions((3, 4), 10)


def test_positions_may_be_resized_bicubically() -> None:
    vit = small(resize="bicubic")
    expected = resized_positions(vit.positions[:, 1:], (8, 4), (5, 7), "bicubic")
    assert torch.equal(vit.positions_for((5, 7))[:, 1:], expected)
    assert not torch.allclose(expected, resized_positions(vit.positions[:, 1:], (8, 4), (5, 7)))


def test_the_small_backbone_of_masked_contrast_has_21665664_parameters() -> None:
    """ViT-S/16 for 3 × 224 × 224: 295,296 + 384 + 75,648 + 12 · 1,774,464 + 768."""
    with torch.device("meta"):
        vit = ViT((224, 224), channels=3, width=384, heads=6)
    assert sum(p.numel() for p in vit.parameters()) == 21_665_664
