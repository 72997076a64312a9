"""The losses of LGViT: known answers, and which networks learn from them in which stage."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.distill.soft_labels import soft_label_kl
from fedlab.methods.lgvit.losses import (
    channel_distance,
    hete_loss,
    homo_loss,
    joint_terms,
    prediction_loss,
    taught,
)
from fedlab.methods.lgvit.networks import Seen, run_all, subsampled
from tests.methods.lgvit.conftest import Lab

Make = Callable[..., Lab]
PAPER = range(4, 12)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seen(kind: Any, features: Tensor) -> Seen:
    return Seen(kind, torch.zeros(len(features), 3), features)


# §8, check 1


def test_equal_losses_give_their_value_and_weights_are_the_layers_over_72() -> None:
    value = torch.tensor(1.7)
    assert float(sum(joint_terms([value] * 8, PAPER, value, 12).values())) == pytest.approx(1.7)
    for place, layer in enumerate(PAPER):
        alone = [torch.tensor(float(number == place)) for number in range(8)]
        assert float(joint_terms(alone, PAPER, torch.tensor(0.0), 12)["joint_exits"]) == pytest.approx(layer / 72)
    last = joint_terms([torch.tensor(0.0)] * 8, PAPER, torch.tensor(1.0), 12)
    assert float(last["joint_final"]) == pytest.approx(12 / 72)
    small = joint_terms([torch.tensor(0.0)], (2,), torch.tensor(1.0), 6)  # the authors' code has 12 for every depth
    assert float(small["joint_final"]) == pytest.approx(6 / 8)


def test_a_client_with_few_exits_divides_by_the_layers_of_those_that_it_has() -> None:
    terms = joint_terms([torch.tensor(1.0), torch.tensor(0.0)], (4, 8), torch.tensor(0.0), 12)
    assert float(terms["joint_exits"]) == pytest.approx(4 / 24)
    assert joint_terms([], (), torch.tensor(2.0), 12).keys() == {"joint_final"}


# §8, check 2


def test_even_steps_train_no_exit_and_odd_steps_train_all_of_them_and_the_backbone(lab: Make) -> None:
    small = lab()
    for index in range(4):
        small.networks.zero_grad(set_to_none=True)
        terms = small.terms("joint", index)
        assert terms.keys() == ({"joint_exits", "joint_final"} if index % 2 else {"ce_final"})
        sum(terms.values(), torch.zeros(())).backward()
        for name, p in small.networks["heads"].named_parameters():
            assert (p.grad is not None and bool(p.grad.any())) == (index % 2 == 1), name
        assert all(p.grad is not None for p in small.networks["backbone"].parameters())


def test_exits_shape_the_layers_before_them_in_odd_steps(lab: Make) -> None:
    small = lab()
    small.terms("joint", 1)["joint_exits"].backward()
    blocks: Any = small.networks["backbone"].blocks
    reached = [block.qkv.weight.grad is not None for block in blocks]
    assert reached == [True] * 5 + [False]  # the last exit is after layer 5


def test_the_parity_goes_on_from_round_to_round(lab: Make) -> None:
    """With three steps in a round, the second round begins with an odd step."""
    small = lab()
    small.terms("joint")
    for index in range(3):
        found = small.method.loss(small.networks, small.batch(), small.step("joint", index, stage_round=2))
        assert ("ce_final" in found) == (index % 2 == 1)


def test_stage_0_trains_backbone_and_last_classifier_only(lab: Make) -> None:
    small = lab()
    for index in range(2):
        terms = small.terms("finetune", index)
        assert terms.keys() == {"ce_final"}
    assert not any(p.requires_grad for p in small.networks["heads"].parameters())


# §8, check 3


def test_kd_divides_by_samples_and_classes() -> None:
    teacher, student = torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]])
    assert float(prediction_loss(student, teacher, 2.0)) == pytest.approx(math.log(4 / 3), rel=1e-5)
    assert float(prediction_loss(student, teacher, 2.0)) == pytest.approx(0.287682, abs=1e-6)
    assert float(prediction_loss(student.repeat(5, 1), teacher.repeat(5, 1), 2.0)) == pytest.approx(0.287682, abs=1e-6)
    assert float(prediction_loss(student, student, 2.0)) == pytest.approx(0, abs=1e-7)


# §8, check 4


def test_the_distance_of_channels_does_not_see_a_constant_of_a_token() -> None:
    y = random(2, 7, 5)
    assert float(channel_distance(y + random(2, 7, 1, seed=1), y)) == pytest.approx(0, abs=1e-5)
    assert float(channel_distance(y + random(2, 7, 5, seed=1), y)) > 1


def test_the_distance_of_channels_is_a_sum_over_tokens_and_a_mean_over_samples() -> None:
    uniform, sure = torch.zeros(1, 1, 2), torch.tensor([[[math.log(3), 0.0]]])
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)  # KL((1/2, 1/2) ‖ (3/4, 1/4)), targets first
    assert float(channel_distance(sure, uniform)) == pytest.approx(expected, rel=1e-5)
    many = channel_distance(sure.expand(4, 6, 2), uniform.expand(4, 6, 2))
    assert float(many) == pytest.approx(6 * expected, rel=1e-5)


def test_the_last_layer_teaches_the_first_and_last_head_of_each_family_at_the_heads_own_tokens() -> None:
    grid, last = (7, 7), random(2, 49, 5)
    kinds = ("lph_dw", "lph", "lph", "gah2", "gah2", "gah3")
    sizes = (49, 49, 49, 16, 16, 9)
    drawn = [random(2, size, 5, seed=1 + size) + place for place, size in enumerate(sizes)]
    exits = [seen(kind, features * (1 + size)) for kind, features, size in zip(kinds, drawn, range(6), strict=True)]
    expected = sum(
        channel_distance(exits[place].features, subsampled(last, grid, stride))
        for place, stride in ((0, 1), (2, 1), (3, 2), (5, 3))
    )
    torch.testing.assert_close(hete_loss(exits, last, grid), expected)
    assert [one.kind for one in taught(exits)] == ["lph_dw", "lph", "gah2", "gah3"]
    single = [exits[0], exits[3]]
    assert len(list(taught(single))) == 2  # the only head of a family is taught once
    assert float(hete_loss([seen("linear", random(2, 0, 5))], last, grid)) == 0


def test_heads_of_one_family_are_compared_with_their_last_one() -> None:
    local = [seen("lph", random(2, 9, 4, seed=i)) for i in range(3)]
    expected = sum(F.mse_loss(one.features, local[-1].features) for one in local[:-1])
    torch.testing.assert_close(homo_loss(local), expected)
    assert float(homo_loss([local[0], local[0]])) == 0
    assert float(homo_loss(local[:1])) == 0


def test_global_heads_are_compared_by_products_of_channels_whatever_their_tokens() -> None:
    wide, narrow = random(2, 16, 4), random(2, 9, 4, seed=1)
    grams = [torch.stack([part.T @ part for part in features]) for features in (wide, narrow)]
    found = homo_loss([seen("gah2", wide), seen("gah3", narrow)])
    torch.testing.assert_close(found, F.mse_loss(grams[0], grams[1]))
    shuffled = wide[:, torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    assert float(homo_loss([seen("gah2", wide), seen("gah2", shuffled)])) == pytest.approx(0, abs=1e-6)
    # families are not compared with each other
    assert float(homo_loss([seen("lph", wide), seen("gah2", wide)])) == 0


@pytest.mark.parametrize("detach", [False, True])
def test_the_teaching_head_gets_a_gradient_unless_it_is_detached(detach: bool) -> None:
    student, teacher = random(2, 9, 4).requires_grad_(), random(2, 9, 4, seed=1).requires_grad_()
    homo_loss([seen("lph", student), seen("lph", teacher)], detach).backward()
    assert student.grad is not None
    assert (teacher.grad is None) == detach


# stage 2 as a whole


def test_stage_2_is_the_weighted_sum_of_its_terms(lab: Make) -> None:
    small = lab(alpha=0.4, temperature=3.0, lambda_hete=0.2, lambda_homo=0.7)
    batch = small.batch()
    terms = small.terms("distill", batch=batch)
    small.networks["backbone"].eval()
    whole = run_all(small.networks, batch["image"], (2, 3, 4, 5))
    ce = sum(F.cross_entropy(one.logits, batch["label"]) for one in whole.exits)
    kd = sum(prediction_loss(one.logits, whole.final, 3.0) for one in whole.exits)
    patches = whole.last[:, 1:]
    expected = {
        "ce_exits": 0.6 * ce,
        "l_kd": 0.4 * kd,
        "l_hete": 0.2 * hete_loss(whole.exits, patches, (7, 7)),
        "l_homo": 0.7 * homo_loss(whole.exits),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)
    small.networks.zero_grad(set_to_none=True)
    sum(terms.values(), torch.zeros(())).backward()
    assert all(p.grad is not None for p in small.networks["heads"].parameters())
    assert all(p.grad is None for role in ("backbone", "final") for p in small.networks[role].parameters())


def after_stage_2(lab: Make, **settings: Any) -> tuple[float, float]:
    """Mean distance of taught heads from the last layer and mean KL divergence of exits from its predictions, both on
    held-out samples, after some steps of stage 2 on labels that mean nothing."""
    small = lab(**settings)
    small.terms("distill")
    optimizer = torch.optim.AdamW(small.networks["heads"].parameters(), lr=0.01)
    for index in range(25):
        optimizer.zero_grad()
        batch = small.batch(16, seed=index)
        terms = small.method.loss(small.networks, batch, small.step("distill", index))
        sum(terms.values(), torch.zeros(())).backward()
        optimizer.step()
    held = small.batch(64, seed=1000)["image"]
    with torch.no_grad():
        whole = run_all(small.networks.eval(), held, (2, 3, 4, 5))
    distance = hete_loss(whole.exits, whole.last[:, 1:], (7, 7))
    return float(distance), float(sum(soft_label_kl(one.logits, whole.final, 1.0) for one in whole.exits))


def test_on_held_out_samples_features_and_predictions_of_exits_come_nearer_to_those_of_the_last_layer(
    lab: Make,
) -> None:
    distance, divergence = after_stage_2(lab, alpha=0.9)
    assert distance < 0.8 * after_stage_2(lab, alpha=0.9, lambda_hete=0)[0]
    assert divergence < 0.8 * after_stage_2(lab, alpha=0)[1]


def test_terms_of_weight_0_are_gone(lab: Make) -> None:
    assert lab(alpha=0, lambda_hete=0, lambda_homo=0).terms("distill").keys() == {"ce_exits"}


def test_the_teacher_is_normalized_unless_it_is_to_be_as_in_the_authors_code(lab: Make) -> None:
    batch = lab().batch()
    found = {}
    for norm in (True, False):
        small = lab(teacher_norm=norm)
        terms = small.terms("distill", batch=batch)
        whole = run_all(small.networks, batch["image"], (2, 3, 4, 5))
        teacher = whole.final if norm else small.networks["final"](whole.last)
        expected = 0.3 * sum(prediction_loss(one.logits, teacher, 2.0) for one in whole.exits)
        torch.testing.assert_close(terms["l_kd"], expected)
        found[norm] = float(terms["l_kd"].detach())
    assert found[True] != pytest.approx(found[False], rel=0.01)


def test_exits_that_a_client_lacks_are_in_no_loss(lab: Make) -> None:
    small = lab()
    for stage, index in (("joint", 1), ("distill", 0)):
        small.networks.zero_grad(set_to_none=True)
        sum(small.terms(stage, index, exits=(3, 5)).values(), torch.zeros(())).backward()
        for name, p in small.networks["heads"].named_parameters():
            assert (p.grad is not None) == name.startswith(("3.", "5.")), (stage, name)
