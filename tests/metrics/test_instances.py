from __future__ import annotations

import numpy as np
import pytest

from fedlab.metrics.instances import IOUS, MaskAP, MaskRecall, ious, objects_of


def image() -> np.ndarray:
    """Two objects of 8 pixels each, (4, 8)."""
    instances = np.zeros((4, 8), np.int16)
    instances[:2, :4], instances[2:, 4:] = 1, 2
    return instances


def part(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((4, 8), bool)
    mask[rows, columns] = True
    return mask


def judged(masks: list[np.ndarray], scores: list[float], instances: np.ndarray | None = None) -> dict[str, float]:
    metric, truth = MaskAP(), image() if instances is None else instances
    metric.update(np.array(masks, bool).reshape(-1, 4, 8), np.array(scores), truth)
    return metric.compute()


FIRST, SECOND = part(slice(0, 2), slice(0, 4)), part(slice(2, 4), slice(4, 8))
WRONG = part(slice(2, 4), slice(0, 4))


def test_ious_of_all_pairs() -> None:
    found = ious(np.stack([FIRST, part(slice(0, 4), slice(0, 4))]), objects_of(image()))
    assert found.tolist() == [[1, 0], [0.5, 0]]
    assert ious(np.zeros((1, 4, 8), bool), np.zeros((1, 4, 8), bool)).tolist() == [[0]]


def test_all_found_is_one_and_nothing_found_is_zero() -> None:
    assert judged([SECOND, FIRST], [0.6, 0.9]) == {"ap": 1, "ap50": 1, "ar": 1}
    assert judged([], []) == {"ap": 0, "ap50": 0, "ar": 0}
    assert judged([WRONG], [0.9]) == {"ap": 0, "ap50": 0, "ar": 0}


def test_half_of_the_objects_has_precision_up_to_half_the_recall() -> None:
    """Recalls 0, 0.01 … 0.50 of 101 have precision 1."""
    assert judged([FIRST], [0.9])["ap"] == pytest.approx(51 / 101)
    assert judged([FIRST], [0.9])["ar"] == pytest.approx(0.5)


def test_a_wrong_mask_costs_precision_only_if_its_score_is_higher() -> None:
    assert judged([FIRST, SECOND, WRONG], [0.9, 0.8, 0.1])["ap"] == pytest.approx(1)
    # precisions 0/1, 1/2, 2/3, of which the last is the largest at every recall
    assert judged([FIRST, SECOND, WRONG], [0.8, 0.7, 0.9])["ap"] == pytest.approx(2 / 3)


def test_precision_does_not_rise_with_recall() -> None:
    """Right, wrong, right: precision 1 up to recall ½, then 2/3."""
    assert judged([FIRST, WRONG, SECOND], [0.9, 0.8, 0.7])["ap"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_a_second_mask_of_an_object_is_wrong() -> None:
    assert judged([FIRST, FIRST, SECOND], [0.9, 0.8, 0.7])["ap"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_each_iou_has_its_own_hits() -> None:
    """6 of 8 pixels: IoU 0.75, which reaches 6 of the 10 thresholds."""
    found = judged([part(slice(0, 2), slice(0, 3)), SECOND], [0.9, 0.8])
    assert found["ap50"] == pytest.approx(1)
    assert found["ar"] == pytest.approx((6 * 1 + 4 * 0.5) / 10)
    # the wrong mask has the higher score where it is wrong
    assert found["ap"] == pytest.approx((6 * 1 + 4 * 0.5 * 51 / 101) / 10)
    assert [round(float(value), 2) for value in IOUS] == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]


def test_the_best_object_is_taken_and_not_the_first() -> None:
    instances = np.zeros((4, 8), np.int16)
    instances[:, :4], instances[:, 4:] = 1, 2
    wide = part(slice(0, 4), slice(1, 8))  # IoU 12 / 32 with the first and 16 / 28 with the second
    assert judged([wide, part(slice(0, 4), slice(0, 4))], [0.9, 0.8], instances)["ap50"] == pytest.approx(1)


def test_void_pixels_belong_to_no_mask() -> None:
    instances = image()
    instances[2:, :4] = -1
    assert judged([FIRST | WRONG, SECOND, WRONG], [0.9, 0.8, 0.95], instances)["ap"] == pytest.approx(1)


def test_only_the_masks_with_the_highest_scores_count() -> None:
    for masks, found in (([FIRST, SECOND], 0.5), ([FIRST, WRONG], 0)):
        metric = MaskAP(most=1)
        metric.update(np.stack(masks), np.array([0.5, 0.9]), image())
        assert metric.compute()["ar"] == pytest.approx(found)


def test_the_mask_with_the_highest_score_chooses_first() -> None:
    """Three quarters of an object with the higher score take it from the whole, whatever their order."""
    part_of_it = part(slice(0, 2), slice(0, 3))
    for masks, scores in (([part_of_it, FIRST], [0.9, 0.5]), ([FIRST, part_of_it], [0.5, 0.9])):
        assert judged(masks, scores)["ap50"] == pytest.approx(51 / 101)
        # up to an IoU of 0.75 the first of the ranking is right, above that the second one
        assert judged(masks, scores)["ap"] == pytest.approx((6 * 51 + 4 * 51 * 0.5) / 101 / 10)


def test_merged_counts_are_those_of_all_images() -> None:
    rng = np.random.default_rng(0)
    whole, parts = MaskAP(), [MaskAP(), MaskAP()]
    for number in range(20):
        masks, scores = rng.random((5, 4, 8)) < 0.4, rng.random(5)
        masks[0] = FIRST
        for metric in (whole, parts[number % 2]):
            metric.update(masks, scores, image())
    parts[0].merge(parts[1].state())
    assert parts[0].compute() == whole.compute()
    assert 0 < whole.compute()["ap"] < 1
    assert {value.dtype for value in whole.state().values()} == {np.dtype("int64")}


def test_scores_of_different_images_are_ranked_together() -> None:
    metric = MaskAP()
    metric.update(np.stack([WRONG]), np.array([0.9]), image())
    metric.update(np.stack([FIRST, SECOND]), np.array([0.8, 0.7]), image())
    # of 4 objects: wrong, right, right
    assert metric.compute()["ap"] == pytest.approx(51 * (2 / 3) / 101)


def test_without_objects_there_are_no_figures() -> None:
    assert judged([FIRST], [0.9], np.zeros((4, 8), np.int16)) == {}
    assert MaskRecall().compute() == {}


def test_recall_of_unscored_masks_takes_the_best_for_every_region() -> None:
    metric, other = MaskRecall(), MaskRecall()
    metric.update(np.stack([part(slice(0, 2), slice(0, 3)), FIRST | WRONG]), objects_of(image()))
    assert metric.compute() == {"recall50": 0.5, "recall": pytest.approx(6 / 10 / 2)}
    other.update(np.stack([SECOND]), objects_of(image())[1:])
    other.merge(metric.state())
    assert other.compute() == {"recall50": pytest.approx(2 / 3), "recall": pytest.approx((0.6 + 1) / 3)}
