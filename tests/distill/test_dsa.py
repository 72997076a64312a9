from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from fedlab.distill import dsa
from fedlab.distill.dsa import Draw

SHAPE = (3, 12, 10)
DRAWS = [
    Draw("color", (0.2, 1.7, 0.6)),
    Draw("crop", (2.0, -1.0)),
    Draw("crop", (0.0, 0.0)),
    Draw("cutout", (0.0, 4.0, 7.0, 10.0)),
    Draw("flip", (1.0,)),
    Draw("flip", (0.0,)),
    Draw("scale", (1.2, 0.85)),
    Draw("rotate", (math.radians(13),)),
]
ids = [f"{d.op}{i}" for i, d in enumerate(DRAWS)]


def images(count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plainly(image: np.ndarray, draw: Draw) -> np.ndarray:
    """One operation on one picture, written with indices."""
    _, height, width = image.shape
    out = np.zeros_like(image)
    if draw.op == "color":
        image = image + draw.values[0]
        gray = image.mean(axis=0)
        image = np.stack([(channel - gray) * draw.values[1] + gray for channel in image])
        return (image - image.mean()) * draw.values[2] + image.mean()
    if draw.op == "cutout":
        top, bottom, left, right = draw.values
        keep = [[not (top <= i < bottom and left <= j < right) for j in range(width)] for i in range(height)]
        return image * np.array(keep)
    angle = draw.values[0] if draw.op == "rotate" else 0.0
    sx, sy = draw.values if draw.op == "scale" else (1.0, 1.0)
    for i in range(height):
        for j in range(width):
            if draw.op == "crop":
                source = {(i + int(draw.values[0]), j + int(draw.values[1])): 1.0}
            elif draw.op == "flip":
                source = {(i, width - 1 - j if draw.values[0] else j): 1.0}
            else:
                x, y = (2 * j + 1) / width - 1, (2 * i + 1) / height - 1
                if draw.op == "scale":
                    x, y = sx * x, sy * y
                else:
                    x, y = math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y
                column, row = ((x + 1) * width - 1) / 2, ((y + 1) * height - 1) / 2
                source = {
                    (a, b): (1 - abs(row - a)) * (1 - abs(column - b))
                    for a in (math.floor(row), math.floor(row) + 1)
                    for b in (math.floor(column), math.floor(column) + 1)
                }
            for (a, b), weight in source.items():
                if 0 <= a < height and 0 <= b < width:
                    out[:, i, j] += weight * image[:, a, b]
    return out


@pytest.mark.parametrize("draw", DRAWS, ids=ids)
def test_every_operation_equals_a_plain_one(draw: Draw) -> None:
    batch = images()
    expected = np.stack([plainly(image, draw) for image in batch.numpy()])
    np.testing.assert_allclose(dsa.apply(batch, draw).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("draw", DRAWS, ids=ids)
def test_a_stored_draw_treats_real_and_virtual_images_alike(draw: Draw) -> None:
    real, virtual = images(5), images(3, seed=1)
    virtual[1] = real[4]
    assert torch.equal(dsa.apply(virtual, draw)[1], dsa.apply(real, draw)[4])
    together = dsa.apply(torch.cat([real, virtual]), draw)
    assert torch.equal(together, torch.cat([dsa.apply(real, draw), dsa.apply(virtual, draw)]))


@pytest.mark.parametrize("draw", DRAWS, ids=ids)
def test_gradients_flow_to_the_pixels(draw: Draw) -> None:
    small = torch.randn(2, 2, 6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: dsa.apply(x, draw), (small,))


@pytest.mark.parametrize("draw", DRAWS, ids=ids)
def test_inputs_are_left_alone(draw: Draw) -> None:
    batch = images()
    before = batch.clone()
    dsa.apply(batch, draw)
    assert torch.equal(batch, before)


def test_flipping_twice_is_the_identity() -> None:
    batch = images()
    flip = Draw("flip", (1.0,))
    assert torch.equal(dsa.apply(dsa.apply(batch, flip), flip), batch)
    assert not torch.equal(dsa.apply(batch, flip), batch)


def many(op: dsa.Op, side: int, count: int = 3000) -> list[tuple[float, ...]]:
    generator = torch.Generator().manual_seed(5)
    return [dsa.draw([op], (3, side, side), generator).values for _ in range(count)]


@pytest.mark.parametrize(
    ("op", "bounds"),
    [
        ("color", [(-0.5, 0.5), (0.0, 2.0), (0.5, 1.5)]),
        ("scale", [(1 / 1.2, 1.2)] * 2),
        ("rotate", [(-math.pi / 12, math.pi / 12)]),
    ],
)
def test_parameters_fill_their_ranges_evenly(op: dsa.Op, bounds: list[tuple[float, float]]) -> None:
    for values, (low, high) in zip(np.array(many(op, 28)).T, bounds, strict=True):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high >= values.max() > high - 0.01 * (high - low)
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))


@pytest.mark.parametrize(("side", "reach"), [(28, 4), (96, 12), (16, 2)])
def test_crop_moves_by_up_to_an_eighth(side: int, reach: int) -> None:
    for axis in range(2):
        counts = Counter(values[axis] for values in many("crop", side))
        assert sorted(counts) == list(range(-reach, reach + 1))
        assert min(counts.values()) > 0.7 * 3000 / (2 * reach + 1)


@pytest.mark.parametrize(("side", "size"), [(28, 14), (96, 48), (9, 5)])
def test_cutout_is_half_the_side_around_a_uniform_center(side: int, size: int) -> None:
    spans = [(int(top), int(bottom)) for top, bottom, _, _ in many("cutout", side)]
    assert max(b - t for t, b in spans) == size
    centers = {b - size // 2 - size % 2 if t == 0 else t + size // 2 for t, b in spans}
    assert centers == set(range(side + (size % 2 == 0)))
    assert all(0 <= t < b <= side for t, b in spans)


def test_flip_is_one_fair_coin_for_all() -> None:
    counts = Counter(many("flip", 28))
    assert set(counts) == {(0.0,), (1.0,)}
    assert counts[(1.0,)] == pytest.approx(1500, abs=120)


@pytest.mark.parametrize("ops", [dsa.OPS, ("color", "crop", "cutout", "scale", "rotate")])
def test_operations_are_equally_likely(ops: tuple[dsa.Op, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    counts = Counter(dsa.draw(ops, SHAPE, generator).op for _ in range(3000))
    assert set(counts) == set(ops)
    assert all(count == pytest.approx(3000 / len(ops), rel=0.15) for count in counts.values())


def test_draws_depend_on_their_generator_only() -> None:
    def draws() -> list[Draw]:
        generator = torch.Generator().manual_seed(3)
        return [dsa.draw(dsa.OPS, SHAPE, generator) for _ in range(20)]

    first = draws()
    torch.rand(7)
    before = torch.get_rng_state()
    assert draws() == first
    assert torch.equal(torch.get_rng_state(), before)


def test_each_class_has_its_own_draw_in_any_batch_order() -> None:
    batch, labels = images(8), torch.tensor([2, 0, 1, 2, 0, 5, 1, 0])
    draws = {0: DRAWS[0], 1: DRAWS[1], 2: DRAWS[6]}
    result = dsa.apply_per_class(batch, labels, draws)
    for i, label in enumerate(labels.tolist()):
        expected = dsa.apply(batch[i : i + 1], draws[label])[0] if label in draws else batch[i]
        torch.testing.assert_close(result[i], expected)
    order = torch.tensor([3, 7, 0, 5, 1, 2, 6, 4])
    torch.testing.assert_close(dsa.apply_per_class(batch[order], labels[order], draws), result[order])
    assert torch.equal(dsa.apply_per_class(batch, labels, {}), batch)


def test_per_class_gradients_reach_their_own_image() -> None:
    batch = images(4).requires_grad_()
    result = dsa.apply_per_class(batch, torch.tensor([1, 0, 1, 0]), {0: DRAWS[7], 1: DRAWS[4]})
    (gradient,) = torch.autograd.grad(result[2].sum(), batch)
    assert gradient[2].any()
    assert not gradient[[0, 1, 3]].any()
