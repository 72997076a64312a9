"""Faces of simple shapes with exact region maps, whose regions are linked by the person's colors; and fakes of them.

A person's skin tone decides the color of lips and nose, and a hue that of hair, brows and irises. So what one region
looks like can be told from the others, and a fake, whose eyes or mouth have the colors of somebody else, can be
recognized by nothing but a mismatch of its regions.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from fedlab.data.regions import (
    BACKGROUND,
    HAIR,
    INNER_MOUTH,
    LEFT_BROW,
    LEFT_EYE,
    LOWER_LIP,
    NOSE,
    REGIONS,
    RIGHT_BROW,
    RIGHT_EYE,
    SKIN,
    UPPER_LIP,
)

Fake = Literal["eyes", "mouth"]
"""The part of a fake face that has the colors of another person."""

_DARK, _LIGHT = np.array([0.34, 0.20, 0.13]), np.array([0.96, 0.80, 0.70])
_BLOOD = np.array([0.70, 0.12, 0.18])
_EYE = 0.18  # half width of an eye
_IRIS = 0.6  # half width of an iris, as a share of the eye's


class Look(NamedTuple):
    """What is drawn once for each of n persons.

    Args:
        tone: skin tone, from 0 (dark) to 1 (light).
        hue: hue of hair, brows and irises, in [0, 1).
        shape: (n, 6) deviations of the proportions, in [−1, 1].
    """

    tone: np.ndarray
    hue: np.ndarray
    shape: np.ndarray


class Scene(NamedTuple):
    """How pictures of one domain are taken.

    Args:
        light: how much brighter the lit side of a face is than the middle.
        noise: standard deviation of the noise of a pixel.
        backdrop: color of the background, three numbers in [0, 1].
    """

    light: float
    noise: float
    backdrop: tuple[float, float, float]


class Faces(NamedTuple):
    """n pictures.

    Args:
        pixels: (n, 3, S, S) float32 in [0, 1].
        regions: (n, S, S) uint8, the classes of `fedlab.data.regions.REGIONS`.
    """

    pixels: np.ndarray
    regions: np.ndarray


def scene(number: int, of: int) -> Scene:
    """The scene of domain `number` of `of`: light and noise grow with the number, and the background differs."""
    share = number / max(1, of - 1)
    backdrop = tuple(float(value) for value in _colors(np.array([0.55 + 0.61 * number]), 0.35, 0.75 - 0.4 * share)[0])
    return Scene(0.15 + 0.45 * share, 0.02 + 0.06 * share, (backdrop[0], backdrop[1], backdrop[2]))


def draw_looks(count: int, rng: np.random.Generator) -> Look:
    """Draw persons."""
    return Look(rng.random(count), rng.random(count), rng.uniform(-1, 1, (count, 6)))


def draw_faces(
    looks: Look,
    size: int,
    taken: Scene,
    rng: np.random.Generator,
    *,
    fake: Fake | None = None,
    donors: Look | None = None,
) -> Faces:
    """Draw one picture of each person. Place, light and noise differ from picture to picture.

    Args:
        looks: n persons.
        size: S, height and width.
        taken: the domain's light, noise and background.
        rng: the generator.
        fake: part of the face that has the colors of the donors, blended softly into its surroundings.
        donors: n other persons; needed with `fake`.

    Raises:
        ValueError: `fake` without donors.
    """
    count = len(looks.tone)
    shift = rng.uniform(-0.06, 0.06, (count, 2))
    regions, irises = _painted(looks.shape, shift, size)
    albedo = _albedo(looks, regions, irises, taken)
    if fake is not None:
        if donors is None:
            raise ValueError("a fake needs donors")
        blend = _blend(regions, fake)[..., None]
        albedo = (1 - blend) * albedo + blend * _albedo(donors, regions, irises, taken)
    angle = rng.uniform(0, 2 * np.pi, count)[:, None, None]
    down, across = _axes(size)
    shade = 1 + taken.light * (np.cos(angle) * across + np.sin(angle) * down)
    pixels = albedo * shade[..., None] + taken.noise * rng.standard_normal(albedo.shape)
    return Faces(np.clip(pixels, 0, 1).transpose(0, 3, 1, 2).astype(np.float32), regions)


def _axes(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns from −1 to 1, (1, S, 1) and (1, 1, S)."""
    line = (np.arange(size) + 0.5) / size * 2 - 1
    return line[None, :, None], line[None, None, :]


def _painted(shape: np.ndarray, shift: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Region maps (n, S, S), and where the irises are, (n, S, S) truth values."""
    down, across = _axes(size)
    down, across = down - shift[:, 0, None, None], across - shift[:, 1, None, None]
    wide, tall, apart, open_, long, mouth = (shape[:, index, None, None] for index in range(6))
    painted = np.full((len(shape), size, size), BACKGROUND, np.uint8)
    irises = np.zeros(painted.shape, bool)

    def oval(region: int, y: np.ndarray, x: np.ndarray, high: np.ndarray, broad: np.ndarray) -> np.ndarray:
        inside: np.ndarray = ((down - y) / high) ** 2 + ((across - x) / broad) ** 2 <= 1
        painted[inside] = region
        return inside

    broad, high = 0.58 + 0.06 * wide, 0.74 + 0.05 * tall
    oval(HAIR, -0.14 + 0 * wide, 0 * wide, high + 0.08, broad + 0.16)
    oval(SKIN, 0.12 + 0 * wide, 0 * wide, high, broad)
    eyes, gap = -0.14 + 0.02 * tall, 0.29 + 0.02 * apart
    for brow, eye, side in ((RIGHT_BROW, RIGHT_EYE, -1), (LEFT_BROW, LEFT_EYE, 1)):
        oval(brow, eyes - 0.25, side * gap, 0.085 + 0 * wide, 0.18 + 0.01 * wide)
        seen = oval(eye, eyes, side * gap, 0.13 + 0.015 * open_, _EYE + 0.01 * wide)
        irises |= seen & (np.abs(across - side * gap) <= _IRIS * _EYE)
    oval(NOSE, 0.16 + 0.02 * long, 0 * wide, 0.19 + 0.03 * long, 0.11 + 0.015 * wide)
    lips, half = 0.53 + 0.03 * long, 0.26 + 0.04 * mouth
    oval(UPPER_LIP, lips - 0.045, 0 * wide, 0.07 + 0 * wide, half)
    oval(LOWER_LIP, lips + 0.055, 0 * wide, 0.085 + 0 * wide, 0.9 * half)
    oval(INNER_MOUTH, lips, 0 * wide, 0.032 + 0 * wide, 0.7 * half)
    return painted, irises


def _albedo(looks: Look, regions: np.ndarray, irises: np.ndarray, taken: Scene) -> np.ndarray:
    """Colors without light and noise, (n, S, S, 3)."""
    tone = looks.tone[:, None]
    skin = (1 - tone) * _DARK + tone * _LIGHT
    hair = _colors(looks.hue, 0.65, 0.5)
    palette = np.zeros((len(skin), len(REGIONS), 3))
    palette[:, BACKGROUND] = taken.backdrop
    palette[:, SKIN] = skin
    palette[:, HAIR] = hair
    palette[:, [RIGHT_BROW, LEFT_BROW]] = 0.75 * hair[:, None]
    palette[:, [RIGHT_EYE, LEFT_EYE]] = 0.92
    palette[:, NOSE] = 0.84 * skin
    palette[:, [UPPER_LIP, LOWER_LIP]] = (0.55 * skin + 0.45 * _BLOOD)[:, None]
    palette[:, INNER_MOUTH] = 0.3 * skin
    painted: np.ndarray = palette[np.arange(len(skin))[:, None, None], regions]
    iris = _colors(looks.hue, 0.8, 0.65)[:, None, None]
    return np.where(irises[..., None], iris, painted)


def _blend(regions: np.ndarray, fake: Fake) -> np.ndarray:
    """How much of the other person is seen, (n, S, S) in [0, 1]: 1 inside the part, falling off around it."""
    part = [RIGHT_BROW, LEFT_BROW, RIGHT_EYE, LEFT_EYE] if fake == "eyes" else [UPPER_LIP, INNER_MOUTH, LOWER_LIP]
    inside = np.isin(regions, part).astype(np.float64)
    around = inside
    for axis in (1, 2):
        padded = np.pad(around, [(0, 0), *((1, 1) if axis == place else (0, 0) for place in (1, 2))], mode="edge")
        size = around.shape[axis]
        around = np.mean([np.take(padded, np.arange(size) + step, axis) for step in range(3)], axis=0)
    blended: np.ndarray = np.maximum(inside, around)
    return blended


def _colors(hue: np.ndarray, saturation: float, value: float) -> np.ndarray:
    """RGB (n, 3) of hues (n,) with one saturation and value, as in HSV."""
    sixths = (hue[:, None] * 6 + np.array([5, 3, 1])) % 6
    colors: np.ndarray = value * (1 - saturation * np.clip(np.minimum(sixths, 4 - sixths), 0, 1))
    return colors
