"""Known answers of DCGLR's losses, and which gradients they give to whom."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.methods.dcglr.losses import infonce, npair
from fedlab.methods.dcglr.networks import Encoder
from fedlab.methods.dcglr.views import KINDS
from tests.methods.dcglr.conftest import Lab

Made = Callable[..., Lab]


def answer(monkeypatch: pytest.MonkeyPatch, lab: Lab, student: Callable[[int], Tensor], teacher: Tensor) -> list[Any]:
    """Let student and teacher answer logits of a view by its number; returns what they were shown."""
    shown: list[Any] = []

    def of_views(self: Encoder, kinds: list[Tensor], *, frozen: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        views = [view for kind in kinds for view in kind]
        mine = self is lab.networks["student"]
        shown.append((mine, [tuple(kind.shape) for kind in kinds], frozen))
        logits = [student(v) if mine else teacher for v in range(len(views))]
        return [F.normalize(row, dim=1) for row in logits], logits

    monkeypatch.setattr(Encoder, "of_views", of_views)
    return shown


def test_a_student_that_says_nothing_costs_the_logarithm_of_the_prototypes(
    lab: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = lab(prototypes=512, contrast_weight=0)
    answer(monkeypatch, one, lambda v: torch.full((6, 512), 0.3), torch.randn(6, 512))
    assert float(one.loss()["l_kd"]) == pytest.approx(6.238325, abs=1e-5)


def test_distillation_is_the_mean_over_all_pairs_of_different_views(lab: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    one = lab(contrast_weight=0, student_temperature=0.2, teacher_temperature=0.5)
    generator = torch.Generator().manual_seed(0)
    s = [torch.randn(6, 10, generator=generator) for _ in range(5)]
    t = [torch.randn(6, 10, generator=generator) for _ in range(2)]
    center = one.networks["center"].value.normal_(generator=generator)

    def of_views(self: Encoder, kinds: list[Tensor], *, frozen: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        found = s if self is one.networks["student"] else t
        return found, found

    monkeypatch.setattr(Encoder, "of_views", of_views)
    p = [((view - center) / 0.5).softmax(1) for view in t]
    terms = [-(p[q] * (s[v] / 0.2).log_softmax(1)).sum(1).mean() for q in range(2) for v in range(5) if v != q]
    assert len(terms) == 2 * 5 - 2
    assert float(one.loss()["l_kd"]) == pytest.approx(float(torch.stack(terms).mean()), rel=1e-5)


def test_the_teacher_sees_the_two_global_views_and_nothing_else(lab: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    one = lab(resolutions=[20, 16])
    shown = answer(monkeypatch, one, lambda v: torch.randn(6, 10), torch.randn(6, 10))
    batch = one.batch()
    one.loss(batch)
    sizes = [(2, 6, 36, 3), (3, 6, 20, 3), (2, 6, 20, 3), (2, 6, 16, 3)]
    assert [tuple(kind.shape) for kind in batch[KINDS]] == sizes
    assert shown == [(False, sizes[:1], False), (True, sizes, False)]


def test_views_of_one_size_run_together_in_their_own_order(lab: Made) -> None:
    one = lab()
    encoder = one.networks["student"].eval()
    kinds = one.batch()[KINDS]
    z, logits = encoder.of_views(kinds)
    assert len(z) == len(logits) == 5
    with torch.no_grad():
        for index, view in enumerate([*kinds[0], *kinds[1]]):
            alone = encoder(view)
            assert torch.allclose(z[index], alone.bottleneck, atol=1e-5)
            assert torch.allclose(logits[index], alone.logits, atol=1e-5)


def test_features_that_are_all_alike_cost_the_logarithm_of_the_batch() -> None:
    same = torch.ones(64, 8)
    assert float(infonce([same, same], [same, same], 0.1)) == pytest.approx(4.158883, abs=1e-5)


def test_orthogonal_negatives_cost_almost_nothing() -> None:
    z = torch.eye(64)
    assert float(infonce([z, z], [z, z], 0.1)) == pytest.approx(math.log(1 + 63 * math.exp(-10)), abs=1e-6)
    assert math.log(1 + 63 * math.exp(-10)) == pytest.approx(0.0028561, abs=1e-6)


def test_contrast_compares_each_view_with_the_teachers_other_view() -> None:
    eye, turned = torch.eye(4), torch.eye(4).roll(1, 0)
    # the first views of both agree with each other, and so do the second ones: crossed, every positive is wrong
    assert float(infonce([eye, turned], [turned, eye], 0.1)) < 0.001
    assert float(infonce([eye, turned], [eye, turned], 0.1)) == pytest.approx(10, abs=0.001)


def test_npair_without_anything_said_costs_the_logarithm_of_the_batch() -> None:
    p = torch.randn(16, 8).softmax(1)
    assert float(npair([p, p], [torch.zeros(16, 8)] * 3, 0.1)) == pytest.approx(math.log(16), abs=1e-5)


def test_npair_of_a_uniform_teacher_scores_every_shape_by_its_mean_logit() -> None:
    generator = torch.Generator().manual_seed(0)
    p, s = torch.full((5, 8), 1 / 8), torch.randn(5, 8, generator=generator)
    score = 64 * (s / 0.1).mean(1)
    expected = -score.log_softmax(0).mean()
    assert float(npair([p, p], [s], 0.1)) == pytest.approx(float(expected), rel=1e-5)


def test_npairs_anchors_are_the_teachers_targets() -> None:
    """Row b of the scores is that of p_b, so that the softmax is over the student's shapes."""
    p, s = torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0.01, 0.0], [0.0, 0.03]])
    rows = [[64 * 0.1, 0.0], [64 * 0.05, 64 * 0.15]]
    expected = sum(-torch.tensor(row).log_softmax(0)[b] for b, row in enumerate(rows)) / 2
    assert float(npair([p], [s], 0.1)) == pytest.approx(float(expected), rel=1e-5)


def test_forms_of_contrast_have_their_own_weights(lab: Made) -> None:
    losses = {}
    for form in ("infonce", "npair"):
        for weight in (None, 1.0):
            losses[form, weight] = float(lab(contrast=form, contrast_weight=weight).loss()["l_con"].detach())
    assert losses["infonce", None] == losses["infonce", 1.0]
    assert losses["npair", None] == pytest.approx(0.01 * losses["npair", 1.0], rel=1e-5)


def test_terms_of_weight_zero_are_not_there(lab: Made) -> None:
    assert set(lab().loss()) == {"l_kd", "l_con"}
    assert set(lab(distillation_weight=0).loss()) == {"l_con"}
    assert set(lab(contrast_weight=0).loss()) == {"l_kd"}
    assert float(lab(distillation_weight=3).loss()["l_kd"].detach()) == pytest.approx(
        3 * float(lab().loss()["l_kd"].detach()), rel=1e-5
    )


def test_contrast_teaches_the_network_below_the_prototypes(lab: Made) -> None:
    one = lab()
    found = one.gradients(one.loss()["l_con"])
    assert found
    assert not any(name.startswith(("teacher", "center")) or "prototypes" in name for name in found)
    assert any(name.startswith("student.backbone") and norm > 0 for name, norm in found.items())
    assert any(name.startswith("student.projection.mlp") and norm > 0 for name, norm in found.items())


@pytest.mark.parametrize("term", ["l_kd", "npair"])
def test_distillation_and_npair_teach_the_prototypes_too(lab: Made, term: str) -> None:
    one = lab(contrast="npair")
    found = one.gradients(one.loss()["l_con" if term == "npair" else term])
    assert not any(name.startswith("teacher") for name in found)
    assert found["student.projection.prototypes.weight"] > 0


def test_prototypes_rest_in_the_first_epochs(lab: Made) -> None:
    one = lab(freeze_prototypes_epochs=1, epochs=4)
    for at, frozen in ((0, True), (24, True), (25, False)):
        found = one.gradients(one.loss(step=one.step(at))["l_kd"])
        assert ("student.projection.prototypes.weight" not in found) == frozen, at


def test_logits_are_cosines(lab: Made) -> None:
    encoder = lab().networks["student"]
    projected = encoder(torch.randn(7, 40, 3))
    assert torch.allclose(projected.bottleneck.norm(dim=1), torch.ones(7), atol=1e-5)
    assert float(projected.logits.abs().max()) <= 1 + 1e-6
    assert torch.allclose(encoder.projection.prototypes.directions().norm(dim=1), torch.ones(10), atol=1e-5)


def test_gains_are_no_parameters_and_hidden_weights_start_small() -> None:
    from fedlab.methods.dcglr.settings import DCGLRSettings

    head = Encoder(DCGLRSettings()).projection
    assert {name for name, _ in head.named_parameters()} == {
        *(f"mlp.{layer}.{kind}" for layer in (0, 2, 4) for kind in ("weight", "bias")), "prototypes.weight",
    }  # fmt: skip
    assert [tuple(head.mlp[layer].weight.shape) for layer in (0, 2, 4)] == [(2048, 192), (2048, 2048), (256, 2048)]
    assert float(head.mlp[2].weight.std()) == pytest.approx(0.02, rel=0.05)
