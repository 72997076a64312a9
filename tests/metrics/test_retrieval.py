"""CMC and mAP with the camera rule."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from fedlab.metrics.chance import chance_precision
from fedlab.metrics.retrieval import Retrieval, ranking, search


def at(*angles: float) -> Tensor:
    """Unit vectors: the smaller the angle, the nearer to angle 0. Of different lengths, which must not matter."""
    radians = torch.tensor(angles)
    return torch.stack([radians.cos(), radians.sin()], dim=1) * torch.arange(1, len(angles) + 1)[:, None]


def evaluated(gallery: list[tuple[int, int]], query: tuple[int, int] = (1, 1)) -> Retrieval:
    """One query against a gallery of (identity, camera), nearest first."""
    metric = Retrieval()
    ids, cameras = (torch.tensor(part) for part in zip(*gallery, strict=True))
    features = at(*(0.1 * (place + 1) for place in range(len(gallery))))
    metric.update(at(0.0), torch.tensor(query[:1]), torch.tensor(query[1:]), features, ids, cameras)
    return metric


def test_the_known_answer() -> None:
    found = evaluated([(1, 1), (2, 2), (1, 2), (3, 1), (1, 3), (2, 3), (2, 4), (3, 2)]).compute()
    chance = found.pop("mAP_chance")
    assert found == {
        "mAP": 0.5,
        "rank1": 0.0,
        "rank5": 1.0,
    }  # of five wrong images none can keep a right one from rank 10
    assert chance == pytest.approx(np.mean([precision(places, 7) for places in combinations(range(1, 8), 2)]), abs=1e-6)


def precision(places: tuple[int, ...], images: int) -> float:
    """Average precision of right images at these places."""
    assert max(places) <= images
    return float(np.mean([(index + 1) / place for index, place in enumerate(places)]))


@pytest.mark.parametrize(("right", "images"), [(1, 1), (1, 4), (2, 2), (2, 5), (3, 9), (8, 9)])
def test_chance_is_the_mean_over_all_orders(right: int, images: int) -> None:
    every = [precision(places, images) for places in combinations(range(1, images + 1), right)]
    assert chance_precision(right, images) == pytest.approx(np.mean(every), abs=1e-12)


def test_a_query_that_cannot_fail_is_skipped() -> None:
    metric = evaluated([(1, 2), (1, 3), (1, 1)])
    assert metric.compute() == {}
    assert metric.state()["queries"] == 0


def test_ranks_that_cannot_fail_are_not_told() -> None:
    for wrong, told in ((1, {1}), (4, {1}), (5, {1, 5}), (10, {1, 5, 10})):
        found = evaluated([(1, 2), *[(2, 1)] * wrong]).compute()
        assert {int(name.removeprefix("rank")) for name in found if name.startswith("rank")} == told


def test_a_query_without_a_match_is_skipped_not_counted_as_0() -> None:
    metric = evaluated([(1, 1), (2, 2)])
    assert metric.compute() == {}
    metric.merge(evaluated([(1, 2), (2, 2)]).state())
    assert metric.compute()["mAP"] == 1.0


def test_others_of_the_same_camera_and_distractors_stay() -> None:
    assert evaluated([(2, 1), (0, 1), (1, 2)]).compute()["mAP"] == pytest.approx(1 / 3, abs=1e-6)


def test_features_are_compared_by_direction() -> None:
    gallery = torch.tensor([[1.0, 1.0], [100.0, 0.0], [0.0, 0.1]])
    assert ranking(torch.tensor([[0.01, 0.0]]), gallery).tolist() == [[1, 0, 2]]


def test_equal_distances_keep_the_gallerys_order() -> None:
    assert ranking(torch.ones(1, 2), torch.ones(40, 2)).tolist() == [list(range(40))]


@pytest.mark.parametrize("parts", [1, 3, 10])
def test_any_grouping_of_queries_gives_the_same_bits(parts: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, gallery = torch.randn(30, 4, generator=generator), torch.randn(50, 4, generator=generator)
    ids, cameras = torch.randint(6, (80,), generator=generator), torch.randint(3, (80,), generator=generator)
    held = gallery, ids[30:], cameras[30:]
    whole, merged = Retrieval(), Retrieval()
    whole.update(query, ids[:30], cameras[:30], *held)
    pieces = [torch.arange(start, 30, parts) for start in range(parts)]
    for piece in reversed(pieces):
        part = Retrieval()
        part.update(query[piece], ids[:30][piece], cameras[:30][piece], *held)
        merged.merge(part.state())
    assert all(np.array_equal(whole.state()[name], value) for name, value in merged.state().items())


def test_nothing_asked_gives_no_values() -> None:
    metric = Retrieval()
    nobody = torch.empty(0, 4), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    metric.update(*nobody, *nobody)
    assert metric.compute() == {}


def test_every_test_image_asks_for_the_others_of_its_person() -> None:
    samples = {"feature": torch.eye(4)[[0, 0, 1, 2]], "label": torch.tensor([5, 5, 5, 9])}
    values = search(samples).compute()
    assert values["mAP"] == pytest.approx(1.0)
    assert values["rank1"] == 1.0
    cameras = {**samples, "camera": torch.tensor([0, 0, 1, 1])}
    assert search(cameras).compute()["rank1"] == pytest.approx(1.0)
    assert search({**samples, "camera": torch.zeros(4, dtype=torch.int64)}).compute() == {}
    assert search({}).compute() == {}


def test_without_cameras_every_image_of_query_and_gallery_is_taken_by_another() -> None:
    """With one camera for all, no query would find its own identity elsewhere."""
    query = {"feature": torch.eye(3)[[0, 1]], "label": torch.tensor([1, 2])}
    gallery = {"feature": torch.eye(3)[[0, 2, 1]], "label": torch.tensor([1, 3, 2])}
    assert search(query, gallery).compute()["mAP"] == 1.0
    same = [
        {**columns, "camera": torch.zeros(len(columns["label"]), dtype=torch.int64)} for columns in (query, gallery)
    ]
    assert search(*same).compute() == {}
