"""Ten families of surfaces as point clouds, and sensors that see them in different ways."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedlab.data.clouds import unit_ball

FAMILIES = (
    "sphere", "cube", "tube", "cone", "torus", "helix", "saddle", "cross", "two balls", "half sphere",
)  # fmt: skip
SENSORS = ("clean", "scan", "uneven", "noisy", "y up")
NOISE = 0.02
_SCALE = (0.7, 1.3)
_DENSE = 4  # points drawn for each point that an uneven or scanning sensor keeps


def draw_shapes(
    labels: np.ndarray, sensors: np.ndarray, points: int, rng: np.random.Generator, rotate: bool = True
) -> np.ndarray:
    """Clouds (n, points, 3) float32 of random members of the families.

    Each cloud lies on a surface of its family, is stretched along each axis by a factor from U(0.7, 1.3), rotated,
    brought into the unit ball, and gets Gaussian noise of standard deviation 0.02.

    Args:
        labels: (n,) indices into `FAMILIES`.
        sensors: (n,) indices into `SENSORS`.
        points: points of a cloud.
        rng: makes all draws.
        rotate: whether shapes are rotated, uniformly over all rotations. Otherwise their third axis points up.
    """
    clouds = np.empty((len(labels), points, 3), np.float32)
    for row, (label, sensor) in enumerate(zip(labels.tolist(), sensors.tolist(), strict=True)):
        surface = _MAKERS[FAMILIES[label]](_DENSE * points, rng) * rng.uniform(*_SCALE, 3)
        if rotate:
            surface = surface @ _rotation(rng).T
        clouds[row] = _seen(unit_ball(surface), SENSORS[sensor], points, rng)
    return clouds


def _seen(surface: np.ndarray, sensor: str, points: int, rng: np.random.Generator) -> np.ndarray:
    """What a sensor sees of a surface that was drawn more densely, (points, 3).

    ``clean`` sees it evenly. ``scan`` has a hole of a quarter of the surface, and an eighth of its points lie on the
    ground below the shape. ``uneven`` sees one side up to twenty times as densely as the other. ``noisy`` has noise of
    0.06. ``y up`` stores the second axis as the one that points up.
    """
    noise = NOISE
    match sensor:
        case "scan":
            ground = points // 8
            center = surface[rng.integers(len(surface))]
            far = np.argsort(np.linalg.norm(surface - center, axis=1))[len(surface) // 4 :]
            kept = surface[rng.choice(far, points - ground, replace=False)]
            floor = np.column_stack([rng.uniform(-1, 1, (ground, 2)), np.full(ground, surface[:, 2].min())])
            seen = unit_ball(np.concatenate([kept, floor]))
        case "uneven":
            density = np.exp(1.5 * surface @ _directions(1, rng)[0])
            seen = surface[rng.choice(len(surface), points, replace=False, p=density / density.sum())]
        case _:
            seen = surface[rng.choice(len(surface), points, replace=False)]
            noise = 0.06 if sensor == "noisy" else NOISE
    noisy: np.ndarray = seen + rng.normal(0, noise, seen.shape)
    return noisy[:, [0, 2, 1]] if sensor == "y up" else noisy


def _rotation(rng: np.random.Generator) -> np.ndarray:
    """A uniform rotation (3, 3): the orthogonal factor of a Gaussian matrix, with a positive determinant."""
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    q = q * np.sign(np.diag(r))
    if np.linalg.det(q) < 0:
        q[:, 0] = -q[:, 0]
    return q


def _directions(count: int, rng: np.random.Generator) -> np.ndarray:
    x = rng.standard_normal((count, 3))
    directions: np.ndarray = x / np.linalg.norm(x, axis=1, keepdims=True)
    return directions


def _sphere(count: int, rng: np.random.Generator) -> np.ndarray:
    return _directions(count, rng)


def _cube(count: int, rng: np.random.Generator) -> np.ndarray:
    """The surface: one coordinate is −1 or 1, the others are anywhere between."""
    points = rng.uniform(-1, 1, (count, 3))
    axis = rng.integers(3, size=count)
    points[np.arange(count), axis] = rng.choice([-1.0, 1.0], count)
    return points


def _tube(count: int, rng: np.random.Generator) -> np.ndarray:
    """An open cylinder of radius 0.6 and height 2."""
    angle = rng.uniform(0, 2 * np.pi, count)
    return np.column_stack([0.6 * np.cos(angle), 0.6 * np.sin(angle), rng.uniform(-1, 1, count)])


def _cone(count: int, rng: np.random.Generator) -> np.ndarray:
    """The mantle of a cone of radius 0.9 and height 2, evenly over its area."""
    angle, part = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.random(count))
    return np.column_stack([0.9 * part * np.cos(angle), 0.9 * part * np.sin(angle), 1 - 2 * part])


def _torus(count: int, rng: np.random.Generator) -> np.ndarray:
    """Radii 1 and 0.35."""
    around, across = rng.uniform(0, 2 * np.pi, (2, count))
    radius = 1 + 0.35 * np.cos(across)
    return np.column_stack([radius * np.cos(around), radius * np.sin(around), 0.35 * np.sin(across)])


def _helix(count: int, rng: np.random.Generator) -> np.ndarray:
    """A wire of two turns and radius 0.7, 0.1 thick."""
    part = rng.random(count)
    angle = 4 * np.pi * part
    wire = np.column_stack([0.7 * np.cos(angle), 0.7 * np.sin(angle), 2 * part - 1])
    thick: np.ndarray = wire + 0.05 * _directions(count, rng)
    return thick


def _saddle(count: int, rng: np.random.Generator) -> np.ndarray:
    x, y = rng.uniform(-1, 1, (2, count))
    return np.column_stack([x, y, 0.7 * (x * x - y * y)])


def _cross(count: int, rng: np.random.Generator) -> np.ndarray:
    """Three bars along the axes, 0.2 thick."""
    points = rng.uniform(-0.1, 0.1, (count, 3))
    points[np.arange(count), rng.integers(3, size=count)] = rng.uniform(-1, 1, count)
    return points


def _two_balls(count: int, rng: np.random.Generator) -> np.ndarray:
    """Two spheres of radius 0.45 whose centers are 1.2 apart."""
    offset = np.zeros((count, 3))
    offset[:, 0] = rng.choice([-0.6, 0.6], count)
    balls: np.ndarray = 0.45 * _directions(count, rng) + offset
    return balls


def _half_sphere(count: int, rng: np.random.Generator) -> np.ndarray:
    points = _directions(count, rng)
    points[:, 2] = np.abs(points[:, 2])
    return points


_MAKERS: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = dict(
    zip(
        FAMILIES,
        (_sphere, _cube, _tube, _cone, _torus, _helix, _saddle, _cross, _two_balls, _half_sphere),
        strict=True,
    )
)
