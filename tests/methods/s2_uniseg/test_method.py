"""Known answers of S2-UniSeg's losses, matching, networks and schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.distill.mask_matching import mask_losses
from fedlab.distill.uniap import Regions
from fedlab.distill.views import Views
from fedlab.methods.s2_uniseg import method as module
from fedlab.methods.s2_uniseg.matching import Pairs, matched, regions_of
from fedlab.methods.s2_uniseg.networks import Centers, Cosines, Student, Teacher, pyramid_of, targets_of
from fedlab.methods.s2_uniseg.views import cropped_masks, normalized, training_views, whole_views
from tests.methods.s2_uniseg.conftest import VIT, Lab, pictures

Made = Callable[..., Lab]


def quadrants() -> Tensor:
    """The four quarters of a 16 × 16 grid."""
    masks = torch.zeros(4, 16, 16, dtype=torch.bool)
    for number, mask in enumerate(masks):
        top, left = 8 * (number // 2), 8 * (number % 2)
        mask[top : top + 8, left : left + 8] = True
    return masks


def regions(masks: Tensor, images: list[int], semantic: list[bool]) -> Regions:
    count = len(masks)
    kinds = torch.tensor(semantic)
    return Regions(masks, torch.ones(count, 12), torch.tensor(images), torch.zeros(count, dtype=torch.int64), kinds)


def logits_of(masks: Tensor) -> Tensor:
    return torch.where(masks, 20.0, -20.0)


# matching (§3.3, step 3)


def test_permuted_masks_are_matched_with_themselves_and_kinds_are_kept_apart(lab: Made) -> None:
    """Query 4 is [SEM] and shows exactly the instance 3, with which it must not be matched."""
    s, masks = lab().method.settings, quadrants()
    found = regions(torch.cat([masks, masks[:1]]), [0] * 5, [False] * 4 + [True])
    order = torch.tensor([2, 0, 3, 1])
    shown = torch.cat([masks[order], masks[3:], torch.zeros(2, 16, 16, dtype=torch.bool)])[None]
    pairs = matched(s, found, 1, whole_views(1, shown.float()), logits_of(shown))
    instances = [(q, r) for q, r in zip(pairs.queries.tolist(), pairs.regions.tolist(), strict=True) if q < 4]
    assert instances == list(enumerate(order.tolist()))
    (semantic,) = [(q, r) for q, r in zip(pairs.queries.tolist(), pairs.regions.tolist(), strict=True) if q >= 4]
    assert semantic[1] == 4
    assert torch.equal(pairs.masks[:4], masks[order])


def test_views_are_matched_with_the_regions_of_their_own_image(lab: Made) -> None:
    """Views 0 and 2 are of image 0, views 1 and 3 of image 1."""
    s = lab().method.settings
    found = regions(quadrants(), [0, 1, 1, 0], [False] * 4)
    pairs = matched(s, found, 2, whole_views(4, torch.zeros(1)), torch.zeros(4, 7, 16, 16))
    of = {view: {r for v, r in zip(pairs.views.tolist(), pairs.regions.tolist(), strict=True) if v == view}
          for view in range(4)}  # fmt: skip
    assert of == {0: {0, 3}, 1: {1, 2}, 2: {0, 3}, 3: {1, 2}}


def test_regions_outside_a_crop_are_left_out_and_others_are_cut_to_it(lab: Made) -> None:
    s = lab().method.settings
    found = regions(quadrants(), [0] * 4, [False] * 4)
    upper = Views(torch.tensor([[0.0, 0.25, 0.5, 0.5]]), torch.tensor([False]))
    pairs = matched(s, found, 1, upper, torch.zeros(1, 7, 8, 8))
    assert sorted(pairs.regions.tolist()) == [0, 1]
    left, right = (pairs.masks[pairs.regions.tolist().index(region)] for region in (0, 1))
    assert bool(left[:, :4].all())
    assert not bool(left[:, 4:].any())
    assert torch.equal(right, ~left)


def test_masks_are_cropped_as_images_are(lab: Made) -> None:
    """A picture that shows its own mask: the crop of the picture and that of the mask agree, mirrored or not."""
    s = lab(views={"flip": True, "size": 64}).method.settings
    masks = F.interpolate((pictures(6)[:, :1] > 0.1).float(), size=(16, 16), mode="nearest")[:, 0] > 0.5
    images = masks.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].float().expand(-1, 3, -1, -1)
    batch = training_views(s, {"image": images}, torch.Generator().manual_seed(0))
    views = Views(batch["boxes"], batch["flips"])
    assert set(batch["flips"].tolist()) == {True, False}
    for view in range(12):
        cut = cropped_masks(masks[view % 6][None], views, view, (64, 64))[0]
        assert float((cut != (batch["crops"][view, 0] > 0.5)).float().mean()) < 0.02


def test_without_semantic_pooling_both_kinds_are_instances(lab: Made) -> None:
    one, plain = lab(), lab(semantic_pooling=False)
    whole = normalized(one.method.settings, pictures(2))
    usual, twice = (regions_of(x.method.settings, pyramid_of(x.networks, "teacher", whole)) for x in (one, plain))
    instances = usual.masks[~usual.semantic]
    assert torch.equal(twice.masks[~twice.semantic], instances)
    assert torch.equal(twice.masks[twice.semantic], instances)


def test_larger_maps_are_pooled_at_a_smaller_size(lab: Made) -> None:
    one = lab(pooling={"side": 8})
    found = regions_of(one.method.settings, pyramid_of(one.networks, "teacher", pictures(2)))
    assert found.masks.shape[1:] == (8, 8)


# losses


def known(monkeypatch: pytest.MonkeyPatch, one: Lab, t: Tensor, s: Tensor, pairs: Pairs, semantic: list[bool]) -> None:
    """Let the networks answer given logits, and the matching given pairs."""
    found = regions(torch.ones(len(t), 16, 16, dtype=torch.bool), [0] * len(t), semantic)
    monkeypatch.setattr(module, "regions_of", lambda settings, pyramid: found)
    monkeypatch.setattr(module, "matched", lambda *arguments: pairs)
    monkeypatch.setattr(Teacher, "codes", lambda self, features: t)
    monkeypatch.setattr(Student, "logits", lambda self, queries, *, frozen=False: s)


def pairs_of(*rows: int) -> Pairs:
    count = len(rows)
    zeros = torch.zeros(count, dtype=torch.int64)
    return Pairs(zeros, torch.arange(count), torch.tensor(rows), torch.ones(count, 8, 8, dtype=torch.bool))


def test_a_student_that_says_nothing_costs_the_logarithm_of_the_prototypes(
    lab: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = lab(prototypes=512)
    known(monkeypatch, one, torch.randn(3, 512), torch.full((3, 512), 0.3), pairs_of(0, 1, 2), [False, False, True])
    assert float(one.loss()["l_q"].detach()) == pytest.approx(6.238325, abs=1e-5)


def test_a_student_that_agrees_costs_the_entropy_and_gets_no_gradient(
    lab: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = lab(student_temperature=0.07, temperature_warmup=0.0)
    t = torch.randn(3, 10)
    s = t.clone().requires_grad_()
    known(monkeypatch, one, t, s, pairs_of(0, 1, 2), [False, True, True])
    loss = one.loss()["l_q"]
    p = (t / 0.07).softmax(1)
    assert float(loss.detach()) == pytest.approx(float(torch.special.entr(p).sum(1).mean()), rel=1e-4)
    (gradient,) = torch.autograd.grad(loss, s)
    assert float(gradient.abs().max()) < 1e-5


def test_query_distillation_pairs_rows_and_uses_the_center_of_their_kind(
    lab: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = lab(teacher_temperature=[0.5, 0.5], student_temperature=0.2, query_weight=2.0)
    t, s = torch.randn(3, 10), torch.randn(3, 10)
    centers: Any = one.networks["centers"]
    for center in centers.kinds:
        center.value.normal_()
    known(monkeypatch, one, t, s, pairs_of(2, 0, 1), [False, True, False])
    c = [center.value for center in centers.kinds]
    rows = [(2, 0, c[0]), (0, 1, c[0]), (1, 2, c[1])]
    terms = [-(((t[i] - m) / 0.5).softmax(0) * (s[j] / 0.2).log_softmax(0)).sum() for i, j, m in rows]
    assert float(one.loss()["l_q"]) == pytest.approx(2 * float(torch.stack(terms).mean()), rel=1e-5)


def test_the_teachers_temperature_rises(lab: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    one, found = lab(temperature_warmup=0.5), list[float]()
    monkeypatch.setattr(module, "targets_of", lambda t, kinds, c, τ: found.append(τ) or targets_of(t, kinds, c, τ))
    for at in (0, 49, 99):
        one.loss(step=one.step(at))
    assert found == pytest.approx([0.04, 0.07, 0.07])


def test_masks_are_taught_after_every_layer(lab: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    one, batch = lab(mask_weight=3.0, dice_weight=2.0), None
    batch = one.batch()
    made = one.networks["student"].decode(pyramid_of(one.networks, "student", batch["crops"]))
    found: list[Pairs] = []
    monkeypatch.setattr(module, "matched", lambda *arguments: found.append(matched(*arguments)) or found[0])
    terms = one.loss(batch)
    pairs = found[0]
    assert len(made.masks) == 2
    layers = [mask_losses(masks[pairs.views, pairs.queries], pairs.masks) for masks in made.masks]
    assert float(terms["l_bce"].detach()) == pytest.approx(3 * sum(float(bce.detach()) for bce, _ in layers), rel=1e-5)
    assert float(terms["l_dice"].detach()) == pytest.approx(2 * sum(float(d.detach()) for _, d in layers), rel=1e-5)
    assert one.logged["pairs"] == len(pairs) / 8


def test_terms_of_weight_zero_are_not_there(lab: Made) -> None:
    assert set(lab().loss()) == {"l_q", "l_bce", "l_dice"}
    assert set(lab(query_weight=0).loss()) == {"l_bce", "l_dice"}
    assert set(lab(mask_weight=0, dice_weight=0).loss()) == {"l_q"}


def test_gradients_reach_all_of_the_student_and_nothing_of_the_teacher(lab: Made) -> None:
    for settings in ({}, {"backbone": VIT}):
        one = lab(**settings)
        torch.stack(list(one.loss(step=one.step(50)).values())).sum().backward()
        found = {name for name, p in one.networks.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert not {name for name in found if not name.startswith("student.")}
        for part in ("project", "head.mlp", "head.prototypes", "queries", "kinds", "adapter.out", "decoder.decoder"):
            assert any(name.startswith(f"student.{part}") for name in found), part
        assert any(name.startswith("student.backbone") for name in found) == bool(settings)


def test_prototypes_rest_at_the_start(lab: Made) -> None:
    one = lab(freeze_prototypes=0.25)
    prototypes: Any = one.networks["student"].head.prototypes  # type: ignore[union-attr]  # it is a Student
    for at, rests in ((0, True), (24, True), (25, False)):
        one.networks.zero_grad()
        one.loss(step=one.step(at))["l_q"].backward()
        assert (prototypes.weight.grad is None) == rests, at


def test_a_batch_without_regions_is_skipped(lab: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    one = lab(pooling={"min_size": 300})
    assert one.loss() == {}
    assert one.logged == {"regions": 0, "pairs": 0}


# networks


def test_at_the_start_features_are_those_of_the_backbone(lab: Made) -> None:
    images = pictures(2)
    frozen, trained = lab(), lab(backbone=VIT)
    with torch.no_grad():
        maps = frozen.networks["backbone"](images)
        assert torch.equal(pyramid_of(frozen.networks, "student", images)[0], maps)
        vit: Any = trained.networks["student"]
        found = pyramid_of(trained.networks, "teacher", images)
        wide = F.interpolate(vit.backbone(images), size=(16, 16), mode="bilinear", antialias=True)
        torch.testing.assert_close(found[0], wide)
    assert [tuple(m.shape[2:]) for m in found] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    assert vit.backbone(images).shape == (2, 12, 8, 8)


def test_student_and_teacher_start_equal_and_a_frozen_backbone_is_there_once(lab: Made) -> None:
    for settings in ({}, {"backbone": VIT}):
        one = lab(**settings)
        student, teacher = (one.networks[role].state_dict() for role in ("student", "teacher"))
        assert teacher.keys() < student.keys()
        assert all(torch.equal(value, student[name]) for name, value in teacher.items())
        assert any(name.startswith("backbone") for name in student) == bool(settings)
        assert ("backbone" in one.networks) != bool(settings)
        assert not any(name.startswith("decoder") for name in teacher)


def test_cosines_approximate_a_gaussian_of_the_distance_of_colors(lab: Made) -> None:
    torch.manual_seed(0)
    settings = lab(backbone={"width": 4096}).method.settings.backbone
    colors = torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.7, 0.5], [0.1, 0.9, 0.5]])
    images = colors[:, :, None, None].expand(-1, -1, 4, 4)
    found = Cosines(settings, 3)(images).flatten(1)
    expected = torch.exp(-(torch.cdist(colors, colors) ** 2) / (2 * 0.2**2))
    torch.testing.assert_close(found @ found.T, expected, atol=0.05, rtol=0)


def test_tokens_of_the_kinds_tell_queries_apart(lab: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    one, given = lab(), list[Tensor]()
    student: Any = one.networks["student"]
    decode = student.decoder.forward
    monkeypatch.setattr(student.decoder, "forward", lambda p, q, at: given.append(q) or decode(p, q, at))
    student.decode(pyramid_of(one.networks, "student", pictures(1)))
    added = given[0] - student.queries
    assert torch.allclose(added[:4], student.kinds[0].expand(4, -1), atol=1e-6)
    assert torch.allclose(added[4:], student.kinds[1].expand(3, -1), atol=1e-6)


# the teacher, centers, schedules


def trained(one: Lab, steps: int = 1) -> None:
    optimizer = torch.optim.AdamW(one.method.param_groups(one.networks, {}), lr=0.01)
    for at in range(steps):
        step = one.step(at)
        optimizer.zero_grad()
        torch.stack(list(one.loss(one.batch(seed=at), step).values())).sum().backward()
        optimizer.step()
        one.method.after_step(one.networks, step)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_momentum_of_one_keeps_the_teacher_and_of_zero_makes_it_the_student(lab: Made, momentum: float) -> None:
    one = lab(momentum=momentum, teacher_sync="average")
    before = {name: value.clone() for name, value in one.networks["teacher"].state_dict().items()}
    trained(one)
    student, teacher = (one.networks[role].state_dict() for role in ("student", "teacher"))
    assert not torch.equal(student["project.weight"], before["project.weight"])
    expected = before if momentum else student
    assert all(torch.equal(value, expected[name]) for name, value in teacher.items())


def test_the_servers_teacher_rests_on_clients(lab: Made) -> None:
    one = lab(momentum=0.0)
    before = {name: value.clone() for name, value in one.networks["teacher"].state_dict().items()}
    trained(one)
    assert all(torch.equal(value, before[name]) for name, value in one.networks["teacher"].state_dict().items())


def test_centers_follow_the_mean_of_all_regions_of_their_kind_after_the_loss(lab: Made) -> None:
    centers = Centers(lab(center_momentum=0.75).method.settings)
    logits, semantic = torch.randn(5, 10), torch.tensor([False, True, False, False, True])
    centers.update(logits, semantic)
    torch.testing.assert_close(
        centers.values, 0.25 * torch.stack([logits[~semantic].mean(0), logits[semantic].mean(0)])
    )
    before = centers.values.clone()
    centers.update(logits[:1], semantic[:1])
    assert torch.equal(centers.values[1], before[1]), "no region of the kind, no move"
    one = lab()
    step = one.step()
    one.loss(step=step)
    assert not bool(one.networks["centers"].values.any())  # type: ignore[union-attr, operator]  # it is a Centers
    one.method.after_step(one.networks, step)
    assert bool(one.networks["centers"].values.any())  # type: ignore[union-attr, operator]  # it is a Centers


@pytest.mark.parametrize(
    ("sync", "teacher", "centers"),
    [("server_ema", "server", "average"), ("average", "average", "average"), ("reset", "local", "average"),
     ("local", "local", "local")],
)  # fmt: skip
def test_what_travels(lab: Made, sync: str, teacher: str, centers: str) -> None:
    modes = {group.name: group.mode for group in lab(teacher_sync=sync).method.exchange({})}
    assert modes == {"student": "average", "teacher": teacher, "centers": centers, "backbone": "once"}
    assert "backbone" not in {group.name for group in lab(backbone=VIT).method.exchange({})}


def test_the_learning_rate_rises_and_falls_and_only_matrices_decay(lab: Made) -> None:
    one = lab(warmup=0.2)
    groups = one.method.param_groups(one.networks, {})
    assert [group["decays"] for group in groups] == [True, False]
    tokens = {id(p) for p in one.networks["student"].parameters()} & {id(one.networks["student"].queries)}
    assert tokens <= {id(p) for p in groups[1]["params"]}
    rates = [one.method.schedule(one.step(at), {"lr": 0.5, **groups[0]}) for at in range(100)]
    assert rates[0]["lr"] == 0
    assert rates[19]["lr"] == rates[20]["lr"] == 0.5
    assert rates[60]["lr"] == pytest.approx(1e-6 + (0.5 - 1e-6) / 2)
    assert [rates[at]["weight_decay"] for at in (0, 50)] == pytest.approx([0.04, 0.22])
    assert one.method.schedule(one.step(50), {"lr": 0.5, **groups[1]})["weight_decay"] == 0
