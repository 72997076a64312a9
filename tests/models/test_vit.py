from __future__ import annotations

from typing import Any

import pytest
import torch

from fedlab.models.vit import ViT


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
def test_initial_weights() -> None:
    vit = small(width=256, heads=4)
    assert float(vit.blocks[0].qkv.weight.std()) == pytest.approx(0.02, rel=0.05)
    assert float(vit.positions.std()) == pytest.approx(0.02, rel=0.1)
    assert float(vit.class_token.std()) == pytest.approx(0.02, rel=0.3)
    assert not vit.blocks[0].qkv.bias.any()
    assert float(vit.patches.weight.abs().max()) == pytest.approx(1 / 8, rel=0.05)  # library default: U(±1/√64)
