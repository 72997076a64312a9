"""The known answers of §8, and what each loss must not do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fedlab.distill.multiview import cross_view_loss
from fedlab.distill.prototypes import Center, sharpened
from fedlab.distill.spread import koleo
from fedlab.methods.gpfm.losses import cls_loss, code_gap, masked_patch_loss, patch_loss, resized, spread_loss
from fedlab.methods.gpfm.networks import distillation_heads, imitated
from fedlab.methods.gpfm.settings import GPFMSettings
from fedlab.metrics.ranking import average_ranks


@pytest.mark.parametrize(("factor", "value"), [(0.0, 0.95), (1.0, 0.0), (2.0, 0.05), (4.0, 0.25), (-1.0, 1.95)])
def test_patch_loss_of_constant_grids_of_different_sizes(factor: float, value: float) -> None:
    wanted = resized(torch.ones(2, 196, 5), (14, 14), (16, 16))
    assert wanted.shape == (2, 256, 5)
    assert float(patch_loss(torch.full((2, 256, 5), factor), wanted)) == pytest.approx(value, abs=1e-5)


def test_a_grid_is_resized_row_by_row() -> None:
    """A grid that grows along its rows alone grows along rows after it was resized."""
    ramp = torch.arange(4.0).repeat_interleave(4)[None, :, None]
    grown = resized(ramp, (4, 4), (8, 8))[0, :, 0].reshape(8, 8)
    assert torch.allclose(grown, grown[:, :1].expand(8, 8), atol=1e-5)
    assert bool((grown[1:, 0] > grown[:-1, 0] - 0.2).all())
    assert float(grown[-1, 0] - grown[0, 0]) > 2.5
    assert resized(ramp, (4, 4), (4, 4)) is ramp


def test_cls_loss_knows_directions_only() -> None:
    x, y = torch.eye(4)[:2], torch.eye(4)[2:]
    assert [float(cls_loss(x, other)) for other in (x, y, -x)] == pytest.approx([0, 1, 2])
    assert float(cls_loss(7 * x, 0.1 * x)) == pytest.approx(0, abs=1e-6)
    assert float(cls_loss(7 * x, x, "kl")) > 0.1
    assert float(cls_loss(x, x, "kl")) == pytest.approx(0, abs=1e-6)
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    p = b.softmax(-1)
    assert float(cls_loss(a, b, "kl")) == pytest.approx(float((p * (p.log() - a.log_softmax(-1))).sum()))


def test_zero_logits_cost_the_logarithm_of_the_number_of_prototypes() -> None:
    size = 32
    for local in (0, 1, 8):
        targets = [torch.rand(6, size).softmax(-1) for _ in range(2)]
        logits = [torch.zeros(6, size)] * (2 + local)
        assert float(cross_view_loss(targets, logits, 0.1)) == pytest.approx(math.log(size), rel=1e-5)
    mask = torch.zeros(4, 9, dtype=torch.bool)
    mask[0, :3] = mask[2, 4] = True
    targets = torch.rand(4, size).softmax(-1)
    assert float(masked_patch_loss(targets, torch.zeros(4, size), mask, 0.1)) == pytest.approx(0.5 * math.log(size))


def test_every_masked_image_weighs_the_same_whatever_the_size_of_its_mask() -> None:
    mask = torch.tensor([[True, True, True, False], [False] * 4, [True, False, False, False]])
    targets = torch.eye(5)[[0, 0, 0, 1]]
    logits = torch.zeros(4, 5)
    logits[3] = torch.tensor([0.0, 9.0, 0.0, 0.0, 0.0])  # only the patch of the third image is right
    wrong, right = math.log(5), float(-torch.log_softmax(logits[3], -1)[1])
    assert float(masked_patch_loss(targets, logits, mask, 1.0)) == pytest.approx((wrong + 0 + right) / 3)
    empty = masked_patch_loss(targets[:0], logits[:0], torch.zeros(3, 4, dtype=torch.bool), 1.0)
    assert float(empty) == 0


def test_koleo_spreads_within_each_block_of_crops() -> None:
    points = torch.tensor([[1.0, 0], [-3, 0], [0, 2], [0, -5]])
    assert float(koleo(points)) == pytest.approx(-math.log(math.sqrt(2)), abs=1e-4)
    same = float(koleo(torch.tensor([[1.0, 0], [2, 0]])))
    assert math.isfinite(same)
    assert same > 14
    # the two crops of each tile are equal: across blocks every nearest neighbor would be at distance 0
    assert float(spread_loss(torch.cat([points, points]))) == pytest.approx(-2 * math.log(math.sqrt(2)), abs=1e-4)


def test_a_crop_teaches_the_other_one() -> None:
    first, second = torch.eye(4)[[0, 0]], torch.eye(4)[[1, 1]]
    own, other = [30 * first, 30 * second], [30 * second, 30 * first]
    assert float(cross_view_loss([first, second], own, 1.0)) > 25
    assert float(cross_view_loss([first, second], other, 1.0)) == pytest.approx(0, abs=1e-5)


def test_targets_use_the_center_known_before_the_step() -> None:
    center, mean = Center(3), torch.tensor([1.0, 2.0, 3.0])
    logits = torch.tensor([[0.5, 0.0, 0.0]])
    assert torch.allclose(sharpened(logits, center.value, 1.0), logits.softmax(-1))
    center.update(mean)
    assert torch.allclose(center.value, 0.1 * mean)
    assert torch.allclose(sharpened(logits, center.value, 1.0), (logits - 0.1 * mean).softmax(-1))


def test_a_distillation_head_is_linear_and_its_outputs_are_cosines() -> None:
    settings = GPFMSettings(
        experts={"uni": {"dim": 7}, "conch": {"dim": 5}},
        width=16,
        expert_width=8,
        init_std=1.0,  # type: ignore[dict-item]  # as YAML has them
    )
    heads = distillation_heads(settings)
    assert sum(isinstance(layer, nn.Linear) for layer in heads["uni"].modules()) == 1
    made: Tensor = imitated(heads, "uni", 100 * torch.randn(3, 4, 16))
    assert made.shape == (3, 4, 7)
    assert float(made.abs().max()) <= 1 + 1e-6
    assert imitated(heads, "conch", torch.randn(3, 16)).shape == (3, 5)


def test_a_code_that_says_nothing_of_the_sample_has_no_gap() -> None:
    targets = torch.eye(4)
    assert code_gap(targets, 9 * torch.eye(4), 1.0) == pytest.approx(9, abs=1e-5)
    assert code_gap(targets, torch.randn(1, 4).expand(4, 4), 1.0) == pytest.approx(0, abs=1e-5)
    assert code_gap(targets[:1].expand(4, 4), torch.randn(4, 4), 1.0) == pytest.approx(0, abs=1e-5)


def test_average_ranks_share_ties() -> None:
    assert average_ranks([[0.9, 0.7], [0.8, 0.6], [0.8, 0.9]]).tolist() == [1.5, 2.75, 1.75]
