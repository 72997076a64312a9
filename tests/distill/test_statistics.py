from __future__ import annotations

import math

import pytest
import torch

from fedlab.distill.statistics import average_statistics, class_statistics

TEN = torch.arange(10).repeat(3)


def test_statistics_of_flat_classes() -> None:
    images = torch.ones(30, 3, 4, 4)
    correct = class_statistics(images, TEN, 10)
    assert torch.equal(correct.mean, torch.ones(10, 3))
    assert not correct.std.any()
    released = class_statistics(images, TEN, 10, legacy=True)
    torch.testing.assert_close(released.mean, torch.full((10, 3), 0.1))
    torch.testing.assert_close(released.std, torch.full((10, 3), 0.3))


@pytest.mark.parametrize(("classes", "value"), [(10, 1.0), (4, -2.0), (2, 0.5)])
def test_released_statistics_are_scaled_by_the_class_share(classes: int, value: float) -> None:
    labels = torch.arange(classes).repeat(2)
    released = class_statistics(torch.full((2 * classes, 1, 2, 2), value), labels, classes, legacy=True)
    torch.testing.assert_close(released.mean, torch.full((classes, 1), value / classes))
    torch.testing.assert_close(
        released.std, torch.full((classes, 1), abs(value) * math.sqrt(classes - 1) / classes), rtol=1e-6, atol=1e-7
    )


def test_statistics_are_moments_over_all_pixels_of_a_class_and_channel() -> None:
    images, labels = torch.randn(40, 3, 5, 4) * 2 + 1, torch.arange(40) % 4
    found = class_statistics(images, labels, 5)
    assert found.present.tolist() == [True] * 4 + [False]
    for c in range(4):
        pixels = images[labels == c].transpose(0, 1).flatten(1).double()
        torch.testing.assert_close(found.mean[c], pixels.mean(1).float())
        torch.testing.assert_close(found.std[c], pixels.std(1, correction=0).float())
    released = class_statistics(images, labels, 5, legacy=True)
    torch.testing.assert_close(released.mean[:4], found.mean[:4] / 4)
    second = (found.std[:4].square() + found.mean[:4].square()) / 4
    torch.testing.assert_close(released.std[:4], (second - released.mean[:4].square()).sqrt())


def test_one_class_and_one_image_are_no_special_case() -> None:
    single = class_statistics(torch.full((1, 1, 2, 2), 0.1), torch.tensor([2]), 3, legacy=True)
    assert single.present.tolist() == [False, False, True]
    assert float(single.mean[2, 0]) == pytest.approx(0.1)
    assert float(single.std[2, 0]) == 0
    empty = class_statistics(torch.zeros(0, 1, 2, 2), torch.zeros(0, dtype=torch.int64), 3)
    assert not empty.present.any()
    assert torch.isfinite(empty.std).all()


def test_a_client_without_a_class_does_not_count_for_it() -> None:
    a = class_statistics(torch.full((2, 1, 2, 2), 4.0), torch.tensor([0, 1]), 3)
    b = class_statistics(torch.full((1, 1, 2, 2), 8.0), torch.tensor([1]), 3)
    both = average_statistics([a, b])
    assert both.mean.flatten().tolist() == [4.0, 6.0, 0.0]
    assert both.present.tolist() == [True, True, False]


def test_deviations_are_averaged_as_such_and_clients_count_alike() -> None:
    few = torch.tensor([-1.0, 1.0]).reshape(1, 1, 1, 2)
    many = torch.tensor([-3.0, 3.0]).reshape(1, 1, 1, 2).repeat(9, 1, 1, 1)
    clients = [class_statistics(x, torch.zeros(len(x), dtype=torch.int64), 1) for x in (few, many)]
    assert float(average_statistics(clients).std) == 2.0  # pooled variance would be 8.2
