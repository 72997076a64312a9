"""Which patches are dropped, and that the student really works on fewer tokens."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedlab.methods.hybrid_distill.lessons import lesson
from fedlab.methods.hybrid_distill.masks import drops, lowest, present, redundancy, surviving
from fedlab.models.vit import Block
from tests.methods.hybrid_distill.conftest import Lab, settings

Made = Callable[..., Lab]


def by_norm(values: Tensor) -> Any:
    return lambda block, kept: values if kept is None else values.gather(1, kept)


def test_the_patch_that_is_like_no_other_is_kept_and_the_first_of_those_that_are_alike() -> None:
    a, b = torch.tensor([1.0, 0, 0]), torch.tensor([0, 2.0, 0])
    r = redundancy(torch.stack([a, 5 * a, a, b])[None])
    assert r[0].tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 0])
    assert lowest(r, 2).tolist() == [[0, 3]]
    assert redundancy(a[None, None]).tolist() == [[0.0]]


def test_survivors_are_in_the_order_of_the_image() -> None:
    assert lowest(torch.tensor([[0.3, 0.9, 0.1, 0.2]]), 3).tolist() == [[0, 2, 3]]


@pytest.mark.parametrize(("patches", "counts"), [(196, [137, 96, 67]), (36, [25, 18, 13]), (1, [1, 1, 1])])
def test_the_number_of_survivors(patches: int, counts: list[int]) -> None:
    assert surviving(patches, 0.7, 3) == counts
    assert surviving(patches, 1.0, 3) == [patches] * 3


def test_each_stage_chooses_among_the_survivors_of_the_stage_before() -> None:
    values = torch.rand(4, 36, generator=torch.Generator().manual_seed(0))
    found = drops([0, 1, 2], [25, 18, 13], by_norm(values))
    for drop, count in zip(found, (25, 18, 13), strict=True):
        assert torch.equal(drop.kept, lowest(values, count)), "one score: the stages are those of a single choice"
        assert torch.equal(drop.kept, drop.kept.sort(dim=1).values)
    for earlier, later in itertools.pairwise(found):
        assert torch.equal(earlier.kept.gather(1, later.chosen), later.kept), "positions are among the survivors"
    assert present(found, 0) is found[0].kept
    assert present(found, 1) is found[1].kept
    assert present(found, 3) is found[2].kept
    assert present([], 3) is None
    assert present(found[1:], 0) is None


def test_scores_that_change_from_stage_to_stage_see_only_the_survivors() -> None:
    asked = []

    def scores(block: int, kept: Tensor | None) -> Tensor:
        asked.append((block, None if kept is None else tuple(kept.shape)))
        return torch.arange(6.0).expand(1, 6) if kept is None else -kept.float()

    found = drops([0, 2], [4, 2], scores)
    assert asked == [(0, None), (2, (1, 4))]
    assert found[0].kept.tolist() == [[0, 1, 2, 3]]
    assert found[1].kept.tolist() == [[2, 3]]
    assert found[1].chosen.tolist() == [[2, 3]]


def test_upfront_drops_the_same_patches_before_the_first_block() -> None:
    values = torch.rand(4, 36, generator=torch.Generator().manual_seed(0))
    (once,) = drops([0, 1, 2], [25, 18, 13], by_norm(values), "upfront")
    assert once.block == 0
    assert torch.equal(once.kept, drops([0, 1, 2], [25, 18, 13], by_norm(values))[-1].kept)
    assert torch.equal(once.chosen, once.kept)


def test_stages_follow_the_students_depth_and_the_judging_teachers() -> None:
    assert settings().drops_before == (0, 4, 8)
    assert settings(student={"depth": 4}).drops_before == (0, 1, 2)
    deep = settings(student={"depth": 6}, feature_teacher={"depth": 12}, relation_teacher={"depth": 3})
    assert [deep.scored(block) for block in deep.drops_before] == [0, 4, 8]
    other = deep.model_copy(update={"score_from": "relation_teacher"})
    assert [other.scored(block) for block in other.drops_before] == [0, 1, 2]
    assert settings(mask="none").drops_before == ()


# in the student


def test_the_student_works_on_the_survivors_alone(lab: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    one = lab(student={"depth": 4})
    seen: list[int] = []
    forward = Block.forward

    def counted(self: Block, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        if any(self is block for block in one.networks["student"].blocks):
            seen.append(tokens.shape[1])
        return forward(self, tokens, mask)

    monkeypatch.setattr(Block, "forward", counted)
    one.loss()
    assert seen == [1 + 25, 1 + 18, 1 + 13, 1 + 13]
    assert one.logged["token_share"] == sum(seen) / (4 * 37)
    assert one.logged["token_share"] <= 0.55


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({}, 26 + 19),
        ({"mask": "random"}, 26 + 19),
        ({"drop_schedule": "upfront"}, 19 + 19),
        ({"drop_blocks": (1,), "keep": 0.5}, 37 + 19),
        ({"keep": 1.0}, 37 + 37),
        ({"mask": "none"}, 37 + 37),
    ],
)
def test_the_share_of_tokens_is_counted(lab: Made, settings: dict[str, Any], tokens: int) -> None:
    one = lab(**settings)
    one.loss()
    assert one.logged["token_share"] == tokens / (2 * 37)


def test_dropping_nothing_is_not_dropping(lab: Made) -> None:
    whole, kept = lab(mask="none").loss(), lab(keep=1.0).loss()
    assert all(torch.equal(value, kept[name]) for name, value in whole.items())


def test_positions_are_added_before_patches_are_dropped(lab: Made) -> None:
    one = lab()
    x, student = one.batch()["image"], one.networks["student"]
    shown = lesson(one.method.settings, one.networks, x, one.batch()["order"], features=False, relations=False)
    made = student.passed(x, shown.drops, [0])
    whole, kept = student.embed(x), shown.drops[0].kept
    assert torch.equal(made.entering[0][:, 0], whole[:, 0]), "the class token is never dropped"
    assert torch.equal(made.entering[0][1, 1:], whole[1, 1:][kept[1]])


def test_redundancy_is_the_frozen_teachers_and_not_the_students(lab: Made) -> None:
    one = lab()
    before = kept_by(one)
    with torch.no_grad():
        for p in [*one.networks["student"].parameters(), *one.networks["relation_teacher"].parameters()]:
            p.normal_()
    assert torch.equal(kept_by(one), before)
    with torch.no_grad():
        one.networks["feature_teacher"].positions.normal_()
    assert not torch.equal(kept_by(one), before)


def test_the_other_teacher_can_judge(lab: Made) -> None:
    one = lab(score_from="relation_teacher")
    before = kept_by(one)
    with torch.no_grad():
        one.networks["feature_teacher"].positions.normal_()
    assert torch.equal(kept_by(one), before)


def test_the_teachers_tokens_that_enter_the_block_are_judged(lab: Made) -> None:
    one = lab()
    x, teacher = one.batch()["image"], one.networks["feature_teacher"]
    first, second = lesson(
        one.method.settings, one.networks, x, one.batch()["order"], features=False, relations=False
    ).drops
    tokens = teacher.hidden(x, [0, 1])
    assert torch.equal(first.kept, lowest(redundancy(tokens[0][:, 1:]), 25))
    left = torch.stack([tokens[1][i, 1:][first.kept[i]] for i in range(len(x))])
    assert torch.equal(second.chosen, lowest(redundancy(left), 18))


def test_random_patches_follow_the_batchs_numbers(lab: Made) -> None:
    one = lab(mask="random")
    assert torch.equal(kept_by(one), lowest(one.batch()["order"], 18))


def kept_by(one: Lab) -> Tensor:
    batch = one.batch()
    shown = lesson(one.method.settings, one.networks, batch["image"], batch["order"], features=False, relations=False)
    return shown.drops[-1].kept
