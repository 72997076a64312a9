"""Scenes of one or two colored shapes: their pictures, their captions, and whether a caption is true of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedlab.data.files.images import to_uint8
from fedlab.data.generated.negatives import NegativeRules, Words

SIZE = 32
SHAPES = ("square", "circle", "triangle", "cross")
COLORS = {
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
    "cyan": (0.0, 1.0, 1.0),
    "magenta": (1.0, 0.0, 1.0),
}
RELATIONS: tuple[Words, ...] = (("left", "of"), ("right", "of"), ("above",), ("below",))
OPPOSITE = {RELATIONS[i]: RELATIONS[j] for i, j in ((0, 1), (1, 0), (2, 3), (3, 2))}
BACKGROUNDS = {
    "dark": (0.0, 0.0, 0.0),
    "maroon": (0.3, 0.0, 0.1),
    "forest": (0.0, 0.25, 0.1),
    "navy": (0.05, 0.05, 0.35),
}
_COLOR_NAMES = tuple(COLORS)
# where the first object stands, from the middle, in quarters of the picture; the second is opposite
_PLACES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])


@dataclass(frozen=True)
class Scenes:
    """`n` scenes of up to two objects; with two of them, object 0 stands in `relation` to object 1.

    Args:
        colors: (n, objects) indices into `COLORS`.
        shapes: (n, objects) indices into `SHAPES`.
        relation: (n,) indices into `RELATIONS`; of a single object, the side of the picture where it stands.
        background: (n,) indices into `BACKGROUNDS`.
    """

    colors: np.ndarray
    shapes: np.ndarray
    relation: np.ndarray
    background: np.ndarray

    def __len__(self) -> int:
        return len(self.relation)

    def noun_phrase(self, scene: int, thing: int) -> Words:
        """``a red square``."""
        return "a", _COLOR_NAMES[self.colors[scene, thing]], SHAPES[self.shapes[scene, thing]]

    def caption(self, scene: int) -> Words:
        """``a red square left of a blue circle``, or ``a red square left`` of a single object."""
        relation = RELATIONS[self.relation[scene]]
        if self.colors.shape[1] == 1:
            return *self.noun_phrase(scene, 0), relation[0]
        return *self.noun_phrase(scene, 0), *relation, *self.noun_phrase(scene, 1)

    def is_true(self, scene: int, words: Sequence[str]) -> bool:
        """Whether a caption in the form of `caption` holds for a scene of two; of the words in another order, never."""
        relation = RELATIONS[self.relation[scene]]
        first, second = self.noun_phrase(scene, 0), self.noun_phrase(scene, 1)
        return tuple(words) in ((*first, *relation, *second), (*second, *OPPOSITE[relation], *first))

    def render(self, rng: np.random.Generator) -> np.ndarray:
        """Pictures (n, 3, 32, 32) uint8: objects of 9 to 12 pixels, moved by up to 2, on a dark and noisy ground."""
        n = len(self)
        ground = np.array(list(BACKGROUNDS.values()), np.float32)[self.background][:, :, None, None]
        images = ground + 0.15 * rng.random((n, 3, SIZE, SIZE), dtype=np.float32)
        for thing in range(self.colors.shape[1]):
            place = _PLACES[self.relation] * (1 - 2 * thing)
            center = SIZE / 2 + SIZE / 4 * place + rng.uniform(-2, 2, (n, 2))
            inside = _inside(self.shapes[:, thing], center, rng.uniform(9, 12, n) / 2)
            light = rng.uniform(0.8, 1, (n, 1)) * np.array(list(COLORS.values()))[self.colors[:, thing]]
            images = np.where(inside[:, None], light[:, :, None, None].astype(np.float32), images)
        return to_uint8(images)


def _inside(shapes: np.ndarray, center: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Pixels (n, 32, 32) covered by shapes of half-width `radius` (n,) around `center` (n, 2) as (x, y)."""
    middle = np.arange(SIZE) + 0.5
    x = (middle[None, None, :] - center[:, 0, None, None]) / radius[:, None, None]
    y = (middle[None, :, None] - center[:, 1, None, None]) / radius[:, None, None]
    box = np.maximum(np.abs(x), np.abs(y)) <= 1
    kinds = [box, x**2 + y**2 <= 1, box & (np.abs(x) <= (y + 1) / 2), box & (np.minimum(np.abs(x), np.abs(y)) <= 1 / 3)]
    return np.choose(shapes[:, None, None], kinds)


def draw_pairs(count: int, colors: Sequence[str], rng: np.random.Generator, backgrounds: int = 1) -> Scenes:
    """Scenes of two objects that differ in color and in shape, all combinations alike likely."""
    palette = np.array([_COLOR_NAMES.index(name) for name in colors])
    chosen = rng.permuted(np.tile(np.arange(len(palette)), (count, 1)), axis=1)[:, :2]
    shapes = rng.permuted(np.tile(np.arange(len(SHAPES)), (count, 1)), axis=1)[:, :2]
    relation, background = rng.integers(len(RELATIONS), size=count), rng.integers(backgrounds, size=count)
    return Scenes(palette[chosen], shapes, relation, background)


def draw_singles(count: int, colors: Sequence[str], rng: np.random.Generator, backgrounds: int = 1) -> Scenes:
    """Scenes of one object on one side of the picture, on one of so many backgrounds."""
    palette = np.array([_COLOR_NAMES.index(name) for name in colors])
    chosen, shapes = palette[rng.integers(len(palette), size=(count, 1))], rng.integers(len(SHAPES), size=(count, 1))
    relation = rng.integers(len(RELATIONS), size=count)
    background = rng.integers(backgrounds, size=count) if backgrounds > 1 else np.zeros(count, np.int64)
    return Scenes(chosen, shapes, relation, background)


def rules(colors: Sequence[str]) -> NegativeRules:
    """The rules for false captions of scenes in these colors."""
    return NegativeRules(colors, SHAPES, OPPOSITE)
