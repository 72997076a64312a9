"""How what is found is compared with true masks, and what is measured without any."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedlab.methods.s2_uniseg import evaluation
from fedlab.methods.s2_uniseg.evaluation import agreement
from fedlab.methods.s2_uniseg.judging import Found, Judgement, _found, found_in, true_segments
from fedlab.methods.s2_uniseg.matching import regions_of
from fedlab.methods.s2_uniseg.networks import pyramid_of
from fedlab.methods.s2_uniseg.pictures import painted
from tests.methods.s2_uniseg.conftest import Lab, pictures

Made = Callable[..., Lab]
SIDE = 8


def scene() -> tuple[np.ndarray, np.ndarray]:
    """Two objects of class 1 and one of class 2 on ground of class 0."""
    instances, classes = np.zeros((SIDE, SIDE), np.int16), np.zeros((SIDE, SIDE), np.int64)
    for number, (top, left, kind) in enumerate(((0, 0, 1), (0, 5, 1), (5, 0, 2)), start=1):
        instances[top : top + 3, left : left + 3] = number
        classes[top : top + 3, left : left + 3] = kind
    return instances, classes


def found(instances: np.ndarray, codes: np.ndarray, **changes: Any) -> Found:
    """What finds every object and the background, with the pseudo-classes `codes`."""
    numbers = np.unique(instances)
    masks = instances[None] == numbers[:, None, None]
    clusters = np.array([codes[mask][0] for mask in masks])
    every = np.unique(codes)
    made = {
        "instances": masks, "scores": np.linspace(0.6, 0.9, len(masks)),
        "segments": np.searchsorted(numbers, instances), "clusters": clusters,
        "semantics": codes[None] == every[:, None, None], "codes": codes, "pooled": masks,
    }  # fmt: skip
    return Found(**{**made, **changes})


def judged(lab: Made, seen: Found, instances: Any, classes: Any, count: int = 3) -> dict[str, float]:
    metric = Judgement(lab().method.settings, count)
    metric.update(seen, instances, classes)
    return metric.compute()


def test_a_perfect_segmentation_is_perfect_whatever_its_pseudo_classes_are_called(lab: Made) -> None:
    instances, classes = scene()
    measured = judged(lab, found(instances, np.array([7, 2, 5])[classes]), instances, classes)
    background = measured.pop("ap"), measured.pop("ap50")
    assert measured == {
        "ar": 1, "region_recall": 1, "uniap_region_recall": 1, "uniap_ar": 1, "miou": 1, "miou_present": 1,
        "pixel_accuracy": 1, "pq": 1, "sq": 1, "rq": 1, "joined": 1,
    }  # fmt: skip
    assert background == (1, 1), "the background has the lowest score"


def test_objects_without_classes_have_class_agnostic_figures_alone(lab: Made) -> None:
    instances, _ = scene()
    measured = judged(lab, found(instances, instances.astype(int) % 3), instances, None, 0)
    assert set(measured) == {
        "ap", "ap50", "ar", "region_recall", "uniap_region_recall", "uniap_ar", "pq", "sq", "rq",
    }  # fmt: skip
    # the segment on the background is on pixels of which nothing is known
    assert measured["pq"] == 1


def test_classes_without_objects_have_semantic_figures_alone(lab: Made) -> None:
    _, classes = scene()
    measured = judged(lab, found(scene()[0], classes), None, classes)
    assert measured == {"miou": 1, "miou_present": 1, "pixel_accuracy": 1}


def test_equal_objects_are_joined_by_one_semantic_mask_or_not(lab: Made) -> None:
    """A mask of one of the two has an IoU of ½ with both, and does not join them; neither does a mask of everything."""
    instances, classes = scene()
    one, most, half = instances == 1, classes == 1, classes == 1
    most = most & ~((instances == 2) & (np.arange(SIDE) > 6))
    half = half & ~((instances == 2) & (np.arange(SIDE) > 5))
    for mask, joined in ((classes == 1, 1), (most, 1), (half, 0), (one, 0), (np.ones_like(one), 0)):
        seen = found(instances, classes, semantics=mask[None])
        assert judged(lab, seen, instances, classes)["joined"] == joined
    apart = found(instances, classes, semantics=np.stack([instances == 1, instances == 2]))
    assert judged(lab, apart, instances, classes)["joined"] == 0


def test_void_pixels_count_nowhere(lab: Made) -> None:
    instances, classes = scene()
    seen = found(instances, classes)
    instances[5:, 5:], classes[5:, 5:] = -1, -1
    measured = judged(lab, seen, instances, classes)
    assert measured["region_recall"] == measured["pq"] == measured["pixel_accuracy"] == 1


def test_merged_judgements_are_those_of_all_images(lab: Made) -> None:
    rng, s = np.random.default_rng(0), lab().method.settings
    whole, parts = Judgement(s, 3), [Judgement(s, 3), Judgement(s, 3)]
    for number in range(6):
        instances, classes = (np.roll(values, number, axis=1) for values in scene())
        codes = np.where(rng.random(classes.shape) < 0.3, rng.integers(0, 10, classes.shape), classes)
        guessed = np.roll(instances, int(rng.integers(0, 2)), axis=0)
        for metric in (whole, parts[number % 2]):
            metric.update(found(guessed, codes), instances, classes)
    parts[0].merge(parts[1].state())
    assert parts[0].compute() == whole.compute()
    assert all(value.dtype == np.int64 for value in whole.state().values())


def test_true_segments_are_objects_and_stuff() -> None:
    instances, classes = scene()
    classes[instances == 3] = -1
    segments, kinds = true_segments(instances, classes)
    assert kinds.tolist() == [1, 1, 0]
    assert [int((segments == number).sum()) for number in (-1, 0, 1, 2)] == [9, 9, 9, 37]
    segments, kinds = true_segments(np.where(instances == 2, -1, instances), None)
    assert kinds.tolist() == [0, 0]
    assert [int((segments == number).sum()) for number in (-1, 0, 1)] == [46, 9, 9]


# from masks of queries to findings


def test_findings_of_known_masks(lab: Made) -> None:
    """Query 0 is small, 1 and 2 overlap, 3 shows nothing; 4 to 6 are [SEM]."""
    s = lab().method.settings
    masks = torch.zeros(7, SIDE, SIDE)
    masks[0, 0, :3], masks[1, 2:4], masks[2, 4:7] = 0.9, 0.95, 0.6
    masks[1, 4] = 0.55  # less than query 2 claims, but a query with a higher score
    masks[4], masks[5, 4:] = 0.3, 0.7
    codes = torch.tensor([0, 0, 0, 0, 9, 3, 1])
    seen = _found(s, masks, masks, codes, torch.zeros(0, SIDE, SIDE, dtype=torch.bool))
    assert seen.scores.tolist() == pytest.approx([(2 * 0.95 + 0.55) / 3, 0.6])
    assert seen.instances.sum(axis=(1, 2)).tolist() == [24, 24]
    assert seen.segments[:, 0].tolist() == [-1, -1, 0, 0, 0, 1, 1, -1]
    assert seen.codes[:, 0].tolist() == [9] * 4 + [3] * 4
    assert seen.clusters.tolist() == [9, 3]
    assert seen.semantics.sum(axis=(1, 2)).tolist() == [0, 32, 0]
    nothing = _found(s, masks * 0, masks * 0, codes, torch.zeros(0, SIDE, SIDE, dtype=torch.bool))
    assert (len(nothing.instances), len(nothing.clusters), nothing.segments.max()) == (0, 0, -1)


def test_the_teachers_encoder_and_the_students_decoder_are_deployed(lab: Made) -> None:
    one, size = lab(), (64, 64)
    one.networks.eval()
    images = pictures(2)
    before = found_in(one.method.settings, one.networks, images, size)
    assert before[0].codes.shape == size
    with torch.no_grad():
        for layer in one.networks["student"].adapter.out:  # type: ignore[union-attr]  # it is an Adapter
            layer.bias.add_(1)
    same = found_in(one.method.settings, one.networks, images, size)
    assert all(np.array_equal(a, b) for x, y in zip(before, same, strict=True) for a, b in zip(x, y, strict=True))
    with torch.no_grad():
        one.networks["student"].queries.add_(1)  # type: ignore[operator, union-attr]  # it is a Student
    other = found_in(one.method.settings, one.networks, images, size)
    assert not np.array_equal(other[0].semantics, before[0].semantics) or not np.array_equal(
        other[0].codes, before[0].codes
    )


def test_pooled_masks_are_the_instances_of_each_image(lab: Made) -> None:
    one, images = lab(), pictures(3)
    one.networks.eval()
    regions = regions_of(one.method.settings, pyramid_of(one.networks, "teacher", images))
    seen = found_in(one.method.settings, one.networks, images, (32, 32))
    for image, found_ in enumerate(seen):
        chosen = regions.masks[(regions.images == image) & ~regions.semantic]
        assert np.array_equal(found_.pooled[:, ::2, ::2], chosen.numpy())


# without true masks


def test_codes_that_say_nothing_have_no_delta_h(lab: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    one = lab()
    for given, informative in ((torch.zeros(10), False), (None, True)):
        if given is not None:
            monkeypatch.setattr(type(one.networks["student"]), "logits",
                                lambda self, queries, row=given: row.expand(*queries.shape[:-1], 10))  # fmt: skip
        dices, pairs, matching, crossed, others = agreement(
            one.method.settings, one.networks, pictures(4), torch.Generator().manual_seed(0)
        ).sums
        assert pairs > 0
        assert others > 0
        assert 0 <= dices <= pairs
        assert (abs(crossed / others - matching / pairs) > 1e-6) == informative
        monkeypatch.undo()


def test_delta_h_of_codes_that_know_their_image(lab: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets and codes are one-hot by image: matched pairs cost about 0, others 1 / τ_s."""
    one = lab(student_temperature=0.1, prototypes=4, teacher_temperature=[0.01, 0.01])
    owners: list[torch.Tensor] = []
    pooled, pair = evaluation.regions_of, evaluation.matched

    def noted(*arguments: Any) -> Any:
        owners.append(pooled(*arguments).images)
        return pooled(*arguments)

    monkeypatch.setattr(evaluation, "regions_of", noted)
    monkeypatch.setattr(evaluation, "matched", lambda *a: (owners.append(pair(*a).views % 4), pair(*a))[1])
    monkeypatch.setattr(type(one.networks["teacher"]), "codes", lambda self, x: torch.eye(4)[owners[0]])
    monkeypatch.setattr(type(one.networks["student"]), "logits", lambda self, q: torch.eye(4)[owners[1]])
    _, pairs, matching, crossed, others = agreement(
        one.method.settings, one.networks, pictures(4), torch.Generator().manual_seed(0)
    ).sums
    assert matching / pairs == pytest.approx(0, abs=1e-3)
    assert crossed / others == pytest.approx(10, abs=0.1)


def test_sums_of_agreement_become_means_and_a_share_of_the_largest_entropy(lab: Made) -> None:
    s = lab(prototypes=8).method.settings
    sums = {**Judgement(s, 0).state(), "agreement": np.array([3.0, 4.0, 4 * np.log(8), 10.0, 2.0])}
    task: Any = SimpleNamespace(num_classes=0, columns={})
    measured = evaluation.values(s, sums, task)
    assert measured == pytest.approx({"pseudo_dice": 0.75, "matched_h": 1.0, "delta_h": 5 - np.log(8)})


@pytest.mark.parametrize("collapsed", [False, True])
def test_collapse_reaches_the_runs_alarms(lab: Made, monkeypatch: pytest.MonkeyPatch, collapsed: bool) -> None:
    one, heard = lab(), list[str]()
    logits = torch.zeros(8, 10) if collapsed else torch.eye(10)[:8]
    made = evaluation.Agreement(np.zeros(5), logits, torch.arange(8) % 2 == 0)
    monkeypatch.setattr(evaluation, "_measured", lambda ctx, s: ({"ap": 0.5}, [made]))
    monkeypatch.setattr(evaluation, "_time", lambda ctx, s: None)

    class Context:
        data, private, networks, alarm = {"test": {}}, {"start_ap": torch.tensor(0.2)}, one.networks, heard.append

    found_ = one.method.server_evaluate(Context())  # type: ignore[arg-type]  # what the hook uses of a context
    assert found_["collapse_alarm"] == collapsed
    assert heard == [evaluation.COLLAPSE] * collapsed
    assert found_["ap_gain"] == pytest.approx(0.3)
    assert found_["target_entropy_instance"] == pytest.approx(1.0 if collapsed else 0.0, abs=1e-4)


def test_smaller_masks_are_painted_over_larger_ones() -> None:
    masks = np.zeros((2, 1, 4), bool)
    masks[0, 0, 1:3], masks[1, 0, :3] = True, True
    assert painted(masks).tolist() == [[0, 1, 1, -1]]
    assert painted(masks[:0]).tolist() == [[-1] * 4]
