"""Generated shapes: every family lies where its formula says, and every sensor sees what it should."""

from __future__ import annotations

import numpy as np
import pytest

from fedlab.data.generated import shapes
from fedlab.data.generated.shapes import FAMILIES, SENSORS, draw_shapes


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def surface(name: str, count: int = 4000) -> np.ndarray:
    return shapes._MAKERS[name](count, np.random.default_rng(1))


def test_each_family_lies_on_its_surface() -> None:
    def radius(x: np.ndarray, *axes: int) -> np.ndarray:
        return np.asarray(np.linalg.norm(x[:, list(axes)], axis=1))

    x = {name: surface(name) for name in FAMILIES}
    assert np.allclose(radius(x["sphere"], 0, 1, 2), 1)
    assert np.allclose(np.abs(x["cube"]).max(axis=1), 1)
    assert np.allclose(radius(x["tube"], 0, 1), 0.6)
    assert np.allclose(radius(x["cone"], 0, 1), 0.9 * (1 - x["cone"][:, 2]) / 2)
    assert np.allclose((radius(x["torus"], 0, 1) - 1) ** 2 + x["torus"][:, 2] ** 2, 0.35**2)
    turn = 2 * np.pi * (x["helix"][:, 2] + 1)
    wire = np.column_stack([0.7 * np.cos(turn), 0.7 * np.sin(turn)])
    assert np.linalg.norm(x["helix"][:, :2] - wire, axis=1).max() < 0.05 + 0.7 * 2 * np.pi * 0.05
    assert np.allclose(x["saddle"][:, 2], 0.7 * (x["saddle"][:, 0] ** 2 - x["saddle"][:, 1] ** 2))
    assert (np.sort(np.abs(x["cross"]), axis=1)[:, 1] <= 0.1).all()
    near = x["two balls"] - np.sign(x["two balls"][:, :1]) * [0.6, 0, 0]
    assert np.allclose(np.linalg.norm(near, axis=1), 0.45)
    assert np.allclose(radius(x["half sphere"], 0, 1, 2), 1)
    assert (x["half sphere"][:, 2] >= 0).all()


def test_surfaces_are_covered_evenly() -> None:
    assert np.allclose(surface("sphere").mean(0), 0, atol=0.05)
    cube = surface("cube")
    faces = np.abs(cube).argmax(axis=1) * 2 + (cube[np.arange(len(cube)), np.abs(cube).argmax(axis=1)] > 0)
    assert np.allclose(np.bincount(faces) / len(cube), 1 / 6, atol=0.03)
    # half of a cone's mantle is farther from the tip than 1 / √2 of its height
    assert np.mean(surface("cone")[:, 2] < 1 - np.sqrt(2)) == pytest.approx(0.5, abs=0.03)


def test_clouds_lie_in_the_unit_ball_but_for_their_noise(rng: np.random.Generator) -> None:
    clouds = draw_shapes(np.arange(10), np.zeros(10, int), 256, rng)
    assert clouds.shape == (10, 256, 3)
    assert clouds.dtype == np.float32
    reach = np.linalg.norm(clouds, axis=2).max(axis=1)
    assert (reach > 0.8).all()
    assert (reach < 1 + 5 * shapes.NOISE).all()


def test_noise_has_its_deviation(rng: np.random.Generator) -> None:
    spread = shapes._seen(np.zeros((800, 3)), "clean", 200, rng)
    assert spread.std() == pytest.approx(0.02, rel=0.1)
    assert shapes._seen(np.zeros((800, 3)), "noisy", 200, rng).std() == pytest.approx(0.06, rel=0.1)


def test_rotations_are_uniform_and_no_reflections(rng: np.random.Generator) -> None:
    turns = np.stack([shapes._rotation(rng) for _ in range(2000)])
    assert np.allclose(np.linalg.det(turns), 1)
    assert np.allclose(turns @ turns.transpose(0, 2, 1), np.eye(3), atol=1e-9)
    assert np.allclose(turns.mean(0), 0, atol=0.05)


def test_shapes_that_are_not_rotated_stand_upright(rng: np.random.Generator) -> None:
    """Most of a cone is near its base, so that its tip is farther from its middle than its base is."""
    cones = np.full(20, FAMILIES.index("cone"))
    for name, axis in (("clean", 2), ("y up", 1)):
        height = draw_shapes(cones, np.full(20, SENSORS.index(name)), 256, rng, rotate=False)[..., axis]
        assert (height.max(axis=1) > -1.3 * height.min(axis=1)).all(), name
    turned = draw_shapes(cones, np.zeros(20, int), 256, rng)[..., 2]
    assert not (turned.max(axis=1) > -1.3 * turned.min(axis=1)).all()


def test_a_scan_has_a_hole_and_points_of_the_ground(rng: np.random.Generator) -> None:
    sphere = surface("sphere")
    seen = shapes._seen(sphere, "scan", 512, rng)
    whole = shapes._seen(sphere, "clean", 512, rng)
    gap = max(np.linalg.norm(seen - direction, axis=1).min() for direction in shapes._directions(200, rng))
    assert gap > 2 * max(np.linalg.norm(whole - direction, axis=1).min() for direction in shapes._directions(200, rng))
    floor = np.histogram(seen[:, 2], bins=40)[0]
    assert floor.max() > 3 * np.histogram(whole[:, 2], bins=40)[0].mean()


def test_an_uneven_sensor_sees_one_side_more_densely(rng: np.random.Generator) -> None:
    middle = [np.linalg.norm(shapes._seen(surface("sphere"), name, 512, rng).mean(0)) for name in ("uneven", "clean")]
    assert middle[0] > 0.3
    assert middle[1] < 0.15


def test_equal_generators_draw_equal_shapes() -> None:
    labels, sensors = np.arange(10), np.arange(10) % len(SENSORS)
    first, again = (draw_shapes(labels, sensors, 64, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first, again)
