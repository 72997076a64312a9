"""Intersection over union from counts that merge."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlab.metrics import Segmentation


def of(predictions: list[int], labels: list[int], num_classes: int = 2) -> Segmentation:
    metric = Segmentation(num_classes)
    metric.update(torch.tensor([[predictions]]), torch.tensor([[labels]]))
    return metric


def test_an_unlabeled_position_counts_nowhere() -> None:
    for guess in (0, 1):
        metric = of([0, 0, 1, guess], [0, 1, 1, -1])
        assert metric.class_iou().tolist() == [0.5, 0.5]
        assert metric.compute() == {"miou": 0.5, "miou_present": 0.5, "pixel_accuracy": pytest.approx(2 / 3)}


def test_an_absent_class_counts_0_or_is_skipped() -> None:
    values = of([0, 0, 1], [0, 1, 1], num_classes=4).compute()
    assert values["miou"] == pytest.approx((0.5 + 0.5) / 4)
    assert values["miou_present"] == pytest.approx(0.5)


def test_a_class_that_is_only_predicted_is_not_absent() -> None:
    assert of([0, 2], [0, 0], num_classes=3).compute()["miou_present"] == pytest.approx((0.5 + 0) / 2)


def test_none_of_the_classes_is_a_miss_and_no_false_hit() -> None:
    metric = of([0, 2, 1, 7], [0, 1, 1, 0])
    assert metric.state()["confusion"].tolist() == [[1, 0, 1], [0, 1, 1]]
    assert metric.class_iou().tolist() == [0.5, 0.5]


def test_merged_counts_are_those_of_all_positions_and_no_mean_of_clients() -> None:
    one, other = of([0, 0, 0, 1], [0, 0, 0, 0]), of([1, 1, 0], [1, 1, 1])
    merged, again = Segmentation(2), Segmentation(2)
    for metric, order in ((merged, (one, other)), (again, (other, one))):
        for part in order:
            metric.merge(part.state())
    whole = of([0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1])
    assert merged.compute() == again.compute() == whole.compute()
    mean = np.mean([part.compute()["miou"] for part in (one, other)])
    assert merged.compute()["miou"] != pytest.approx(mean)


def test_no_positions_no_values() -> None:
    assert Segmentation(3).compute() == {}
    assert of([0, 1], [-1, -1]).compute() == {}


def test_it_agrees_with_torchmetrics() -> None:
    from torchmetrics.classification import MulticlassJaccardIndex

    generator = torch.Generator().manual_seed(0)
    predictions, labels = (torch.randint(0, 5, (3, 8, 8), generator=generator) for _ in range(2))
    labels[0, :3] = -1
    metric = Segmentation(5)
    metric.update(predictions, labels)
    theirs = MulticlassJaccardIndex(5, average="none", ignore_index=-1)(predictions, labels)
    np.testing.assert_allclose(metric.class_iou(), theirs.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("predictions", "labels"), [([0, 1], [0, 2]), ([-1, 1], [0, 1])], ids=["label too high", "negative prediction"]
)
def test_numbers_out_of_range_are_refused(predictions: list[int], labels: list[int]) -> None:
    with pytest.raises(ValueError, match="expected 0 to 1"):
        of(predictions, labels)


def test_other_shapes_and_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected alike"):
        Segmentation(2).update(torch.zeros(1, 2, 2, dtype=torch.int64), torch.zeros(1, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="expected \\(2, 3\\)"):
        Segmentation(2).merge(Segmentation(3).state())
