"""The losses of MMC against values worked out by hand, and what each of them reaches (§8)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.distill.gmml import reconstruction_loss
from fedlab.distill.multiview import patch_loss
from fedlab.distill.prototypes import sharpened
from fedlab.methods.mmc.losses import contrast_loss
from fedlab.methods.mmc.networks import Student
from fedlab.methods.mmc.views import corrupted
from tests.methods.mmc.conftest import Lab

Make = Callable[..., Lab]


def same(count: int) -> list[Tensor]:
    return [torch.ones(count, 5), torch.ones(count, 5)]


# L_con


def test_contrast_of_equal_features_is_twice_two_tau_ln_n() -> None:
    assert float(contrast_loss(same(64), same(64), 0.2)) == pytest.approx(3.327106, abs=1e-5)


def test_contrast_of_found_positives_among_orthogonal_negatives() -> None:
    own = [torch.eye(64), torch.eye(64)]
    assert float(contrast_loss(own, own, 0.2)) == pytest.approx(0.283051, abs=1e-6)


def test_contrast_of_swapped_pictures() -> None:
    own, swapped = [torch.eye(2)] * 2, [torch.eye(2).flip(0)] * 2
    assert float(contrast_loss(own, swapped, 0.2)) == pytest.approx(4.005372, abs=1e-5)


def test_a_view_is_contrasted_with_the_other_view_of_the_teacher() -> None:
    """The first view's query is the second view's key, and the other way round: nothing else is compared."""
    first, second = torch.eye(6)[:3], torch.eye(6)[3:]
    assert float(contrast_loss([first, second], [second, first], 0.2)) == pytest.approx(
        0.8 * math.log(1 + 2 * math.exp(-5))
    )
    assert float(contrast_loss([first, second], [first, second], 0.2)) == pytest.approx(0.8 * math.log(3))


def test_small_views_are_contrasted_with_both_views_of_the_teacher() -> None:
    keys = [torch.eye(4), torch.eye(4).flip(0)]
    queries = [torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]

    def entropy(q: int, k: int) -> Tensor:
        cosines = F.normalize(queries[q], dim=1) @ keys[k].T
        return F.cross_entropy(cosines / 0.2, torch.arange(4))

    pairs = [entropy(q, k) for q, k in ((0, 1), (1, 0), (2, 0), (2, 1))]
    assert float(contrast_loss(queries, keys, 0.2)) == pytest.approx(float(0.8 * sum(pairs) / 4), rel=1e-5)


@pytest.mark.parametrize("predictor", [[], [10, 8]])
def test_queries_of_the_student_are_contrasted_with_keys_of_the_teacher(lab: Make, predictor: list[int]) -> None:
    """The student's, of corrupted views and through its predictor, with the teacher's, of clean ones."""
    small = shaken(lab(predictor=predictor))
    batch = small.batch(4)
    student: Any = small.networks["student"]
    keys = small.networks["teacher"](batch["views"]).contrast.chunk(2)
    queries = student.queries(student(corrupted(batch)).contrast).chunk(2)
    expected = float(contrast_loss(queries, keys, 0.2).detach())
    assert float(small.terms(batch)["l_con"].detach()) == pytest.approx(expected, rel=1e-5)


def test_keys_of_the_contrast_get_no_gradient() -> None:
    queries, keys = (torch.randn(2, 4, 3, requires_grad=True) for _ in range(2))
    contrast_loss(list(queries), list(keys), 0.2).backward()
    assert queries.grad is not None
    assert keys.grad is None


# L_mim


@pytest.mark.parametrize(("error", "off"), [("l1", 2.0), ("squared", 4.0)])
def test_only_corrupted_pixels_count(error: Any, off: float) -> None:
    clean = torch.randn(2, 3, 8, 8)
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[0, :4] = True
    wrong_outside = torch.where(mask[:, None], clean, clean + 9)
    assert reconstruction_loss(wrong_outside, clean, mask, error) == 0
    assert float(reconstruction_loss(clean + 2, clean, mask, error)) == pytest.approx(off, rel=1e-5)
    assert reconstruction_loss(clean + 2, clean, torch.zeros_like(mask), error) == 0


# L_dis


@pytest.mark.parametrize(("prototypes", "expected"), [(64, 4.158883), (8192, 9.010913)])
def test_distillation_of_a_student_that_knows_nothing_is_ln_k(lab: Make, prototypes: int, expected: float) -> None:
    small = lab(prototypes=prototypes)
    with torch.no_grad():
        small.networks["student"].patch_head.mlp[-1].weight.zero_()
    assert float(small.terms()["l_dis"].detach()) == pytest.approx(expected, rel=1e-5)


def test_a_patch_is_taught_by_the_same_patch_of_the_same_view(lab: Make) -> None:
    """Written out over all patches, with the center and the temperature of the step."""
    small = lab()
    batch = small.batch(4)
    small.networks["centers"].patches.value.copy_(torch.linspace(-0.3, 0.3, 12))
    teacher, student = small.networks["teacher"](batch["views"]), small.networks["student"](corrupted(batch))
    total = 0.0
    for view in range(8):
        for patch in range(36):
            p = F.softmax((teacher.patches[view, patch] - torch.linspace(-0.3, 0.3, 12)) / 0.04, dim=0)
            total -= float((p * F.log_softmax(student.patches[view, patch] / 0.1, dim=0)).sum().detach())
    assert float(small.terms(batch)["l_dis"].detach()) == pytest.approx(total / (8 * 36), rel=1e-4)


def test_the_class_token_is_distilled_across_views_where_the_head_is_shared(lab: Make) -> None:
    plain, shared = shaken(lab()), shaken(lab(global_to_local="shared"))
    batch = plain.batch(4)
    teacher, student = shared.networks["teacher"](batch["views"]), shared.networks["student"](corrupted(batch))
    crossed = 0.0
    for row in range(8):
        p = F.softmax(teacher.classes[(row + 4) % 8] / 0.04, dim=0)
        crossed -= float((p * F.log_softmax(student.classes[row] / 0.1, dim=0)).sum().detach()) / 8
    expected = float(plain.terms(batch)["l_dis"].detach()) + crossed
    assert float(shared.terms(batch)["l_dis"].detach()) == pytest.approx(expected, rel=1e-4)


def test_the_class_token_may_teach_all_patches_of_its_view(lab: Make) -> None:
    small = lab(global_to_local="cls_to_patch")
    batch = small.batch(3)
    teacher, student = small.networks["teacher"](batch["views"]), small.networks["student"](corrupted(batch))
    p = F.softmax(teacher.classes / 0.04, dim=1)
    rows = -(p[:, None] * F.log_softmax(student.patches / 0.1, dim=2)).sum(2)
    assert float(small.terms(batch)["l_dis"].detach()) == pytest.approx(float(rows.mean().detach()), rel=1e-4)


def test_centers_follow_the_mean_over_all_patches_and_pictures(lab: Make) -> None:
    small = lab(global_to_local="shared", momentum=1.0)
    batch, step = small.batch(3), small.step()
    small.method.loss(small.networks, batch, step)
    encoded = step.scratch["encoded"]
    small.method.after_step(small.networks, step)
    centers = small.networks["centers"]
    torch.testing.assert_close(centers.patches.value, 0.1 * encoded.patches.mean((0, 1)))
    torch.testing.assert_close(centers.classes.value, 0.1 * encoded.classes.mean(0))


def shaken(made: Lab) -> Lab:
    """The same with weights so large that views differ in their class tokens."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in made.networks.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.5)
    return made


# where it starts


def test_all_layers_of_both_networks_start_with_the_deviation_that_was_asked_for(lab: Make) -> None:
    """With too small a deviation a narrow network hands on almost nothing of a patch to the others, or to its heads."""
    for given, expected in (({}, 0.02), ({"init_std": 0.08}, 0.08)):
        networks = lab(width=64, patch_widths=[64, 64], contrast_widths=[64, 64], predictor=[64, 64], **given).networks
        linear = [module for module in networks["student"].modules() if isinstance(module, nn.Linear)]
        assert len(linear) == 4 + 2 + 2 + 2 + 3  # of the block, of the heads, the predictor and the decoder
        for module in linear:
            assert float(module.weight.detach().std()) == pytest.approx(expected, rel=0.1)
        student = networks["student"].state_dict()
        assert all(torch.equal(value, student[name]) for name, value in networks["teacher"].state_dict().items())


# who learns from what


@pytest.mark.parametrize(
    ("weight", "part"),
    [
        ("reconstruction_weight", "decoder"),
        ("distillation_weight", "patch_head"),
        ("contrast_weight", "contrast_head"),
    ],
)
def test_a_loss_of_weight_0_is_gone_and_its_head_gets_no_gradient(lab: Make, weight: str, part: str) -> None:
    for setting, gone in ((0.0, True), (1.0, False)):
        small = lab(**{weight: setting})
        terms = small.terms()
        assert len(terms) == 3 - gone
        sum(terms.values(), torch.zeros(())).backward()
        student: Any = small.networks["student"]
        reached = [p.grad is not None and bool(p.grad.any()) for p in getattr(student, part).parameters()]
        assert any(reached) is not gone


def test_weights_multiply_their_terms(lab: Make) -> None:
    batch = lab().batch()
    plain = lab().terms(batch)
    twice = lab(reconstruction_weight=5, distillation_weight=2, contrast_weight=3).terms(batch)
    for name, factor in (("l_mim", 5), ("l_dis", 2), ("l_con", 3)):
        assert float(twice[name].detach()) == pytest.approx(factor * float(plain[name].detach()), rel=1e-5)


def test_the_teacher_gets_no_gradient_and_stays_with_a_momentum_of_1(lab: Make) -> None:
    small = lab(momentum=1.0)
    before = {name: value.clone() for name, value in small.networks["teacher"].named_parameters()}
    step = small.step()
    sum(small.method.loss(small.networks, small.batch(), step).values(), torch.zeros(())).backward()
    assert all(p.grad is None for p in small.networks["teacher"].parameters())
    with torch.no_grad():
        for p in small.networks["student"].parameters():
            p.add_(1)
    small.method.after_step(small.networks, step)
    assert all(torch.equal(before[name], value) for name, value in small.networks["teacher"].named_parameters())
    moved = lab(momentum=0.5)
    with torch.no_grad():
        for p in moved.networks["student"].parameters():
            p.add_(1)
    step = moved.step(encoded=small.networks["teacher"](small.batch()["views"]))
    moved.method.after_step(moved.networks, step)
    shift = [value - before[name] for name, value in moved.networks["teacher"].named_parameters()]
    assert all(torch.allclose(part, torch.full_like(part, 0.5), atol=1e-5) for part in shift)


def test_the_teacher_sees_clean_views_and_the_student_corrupted_ones(
    lab: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, seen = lab(), dict[str, Tensor]()
    for role in ("teacher", "student"):
        small.networks[role].register_forward_pre_hook(
            lambda module, args, role=role: seen.update({role: args[0].clone()})
        )
    batch = small.batch()
    small.terms(batch)
    assert torch.equal(seen["teacher"], batch["views"])
    changed = (seen["student"] != batch["views"]).any(1)
    assert torch.equal(changed & batch["mask"], changed)
    assert changed.float().mean() > 0.2


def test_the_contrast_takes_class_tokens_of_both_networks(lab: Make) -> None:
    small = lab()
    for role in ("teacher", "student"):
        network: Any = small.networks[role]
        seen: list[Tensor] = []
        network.contrast_head.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0].detach()))
        made = network(small.batch()["views"])
        assert torch.equal(seen[0], made.tokens[:, 0])


def test_a_predictor_changes_the_students_side_only(lab: Make) -> None:
    small = lab(predictor=[10, 8])
    student = small.networks["student"]
    assert isinstance(student, Student)
    features = torch.randn(6, 8)
    assert student.queries(features).shape == (6, 8)
    assert not torch.equal(student.queries(features), features)
    assert not [name for name, _ in small.networks["teacher"].named_parameters() if "predictor" in name]
    assert torch.equal(lab().networks["student"].queries(features), features)


def test_targets_are_sharpened_with_the_temperature_of_the_epoch(lab: Make) -> None:
    small = lab(temperature_epochs=3)  # 8 steps are 4 epochs: τ_t = 0.04, 0.055, 0.07, 0.07
    batch = small.batch()
    teacher, student = small.networks["teacher"](batch["views"]), small.networks["student"](corrupted(batch))
    for index, temperature in ((0, 0.04), (2, 0.055), (4, 0.07), (7, 0.07)):
        p = sharpened(teacher.patches, torch.zeros(12), temperature)
        expected = float(patch_loss(p, student.patches, 0.1).detach())
        assert float(small.terms(batch, index)["l_dis"].detach()) == pytest.approx(expected, rel=1e-5)
