from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlab.metrics.panoptic import PanopticQuality

ONE = np.zeros(1, np.int64)


def lines(*numbers: int) -> np.ndarray:
    return np.array([numbers])


def zeros(count: int) -> np.ndarray:
    return np.zeros(count, np.int64)


def test_one_match_one_false_and_one_missed_segment() -> None:
    """IoU 0.8: 8 of 10 pixels; RQ = 1 / (1 + ½ + ½), PQ = 0.4."""
    metric = PanopticQuality(1, 1)
    found, true = lines(*[0] * 8, *[-1] * 2, *[1] * 4, *[-1] * 4), lines(*[0] * 10, *[-1] * 0, *[1] * 0, *[1] * 8)
    # the second found segment covers 4 of the second true one's 8 pixels: IoU ½ is no match
    metric.update(found, zeros(2), true, zeros(2))
    assert metric.compute(ONE) == {"pq": pytest.approx(0.4), "sq": pytest.approx(0.8), "rq": pytest.approx(0.5)}


def test_segments_on_void_are_not_counted_and_void_pixels_belong_to_none() -> None:
    metric = PanopticQuality(1, 1)
    metric.update(lines(0, 0, 0, 0, 1, 1, 1, 2), zeros(3), lines(0, 0, 0, -1, -1, -1, 0, 0), zeros(1))
    # segment 0 covers 3 of 5 known pixels; 1 lies mostly on void; 2 is a false one
    found = metric.compute(ONE)
    assert found["sq"] == pytest.approx(3 / 5)
    assert found["rq"] == pytest.approx(2 / (2 + 1))


def test_classes_are_decided_after_counting() -> None:
    metric = PanopticQuality(3, 2)
    metric.update(lines(0, 0, 1, 1, 2, 2), np.array([2, 0, 1]), lines(0, 0, 1, 1, 2, 2), np.array([0, 1, 1]))
    right = metric.compute(np.array([1, -1, 0]))
    # class 0: one match. Class 1: one match, one missed; the segment of the cluster without a class is not counted
    assert right["pq"] == pytest.approx((1 + 2 / 3) / 2)
    assert metric.compute(np.array([0, -1, 1]))["pq"] == 0


def test_merged_counts_are_those_of_all_images_and_of_torchmetrics() -> None:
    from torchmetrics.detection import PanopticQuality as Reference

    rng, reference = np.random.default_rng(0), Reference(things={0, 1, 2}, stuffs=set(), return_sq_and_rq=True)
    whole, parts = PanopticQuality(3, 3), [PanopticQuality(3, 3), PanopticQuality(3, 3)]
    for number in range(12):
        truths = rng.integers(0, 4, (4, 4)).repeat(4, 0).repeat(4, 1)
        segments = np.where(rng.random((16, 16)) < 0.25, rng.integers(0, 4, (16, 16)), truths)
        classes = rng.integers(0, 3, 4)
        clusters = np.where(rng.random(4) < 0.2, rng.integers(0, 3, 4), classes)
        for metric in (whole, parts[number % 2]):
            metric.update(segments, clusters, truths, classes)
        pair = [np.stack([kinds[numbers], numbers], -1) for kinds, numbers in ((clusters, segments), (classes, truths))]
        reference.update(*(torch.from_numpy(values)[None] for values in pair))
    parts[0].merge(parts[1].state())
    found = whole.compute(np.arange(3))
    assert parts[0].compute(np.arange(3)) == found
    assert 0 < found["pq"] < 1
    assert [found[name] for name in ("pq", "sq", "rq")] == pytest.approx(reference.compute().tolist(), abs=1e-6)


def test_without_segments_there_are_no_figures() -> None:
    assert PanopticQuality(1, 1).compute(ONE) == {}
