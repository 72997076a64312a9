"""Pictures of one object and the edits that lead from one to another, for composed retrieval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fedlab.data.generated.negatives import Words
from fedlab.data.generated.scenes import COLORS as PAINTS
from fedlab.data.generated.scenes import RELATIONS, Scenes
from fedlab.data.generated.scenes import SHAPES as FORMS

COLORS, SHAPES = tuple(PAINTS)[:4], FORMS[:3]
PLACES = tuple(words[0] for words in RELATIONS)
ATTRIBUTES = (COLORS, SHAPES, PLACES)
"""The values of each attribute of an object."""
RELATIVE = {0: "inverted", 2: "mirrored"}
"""What an edit is called that changes an attribute to its opposite, whatever it is: red and green, blue and yellow,
left and right, above and below are opposites."""
WORDS = ("[PAD]", "[CLS]", "[SEP]", "a", "but", *COLORS, *SHAPES, *PLACES, *RELATIVE.values())
"""All words of the captions, in the order of their numbers, which are those of the small BLIP in `fedlab.models`."""
LENGTH = 8
"""Numbers in an encoded caption: ``[CLS] a red square left but blue [SEP]``."""
_NUMBER = {word: number for number, word in enumerate(WORDS)}
Edit = tuple[int, int | None]
"""Number of an attribute, and number of its new value; None stands for the opposite of its value."""


def all_objects() -> np.ndarray:
    """Attributes (48, 3) of every object that there is."""
    sizes = [len(values) for values in ATTRIBUTES]
    return np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), axis=-1).reshape(-1, len(sizes))


def named_edits(attributes: Sequence[int]) -> Iterator[Edit]:
    """Every edit that changes one attribute of an object to a value that it names, such as "but blue"."""
    for axis, values in enumerate(ATTRIBUTES):
        for value in range(len(values)):
            if value != attributes[axis]:
                yield axis, value


def relative_edits() -> Iterator[Edit]:
    """Every edit whose result depends on the object, such as "but mirrored"."""
    for axis in RELATIVE:
        yield axis, None


def edited(attributes: Sequence[int], edit: Edit) -> tuple[int, ...]:
    """The attributes after an edit."""
    changed, (axis, value) = [int(old) for old in attributes], edit
    changed[axis] = changed[axis] ^ 1 if value is None else value
    return tuple(changed)


def words_of(attributes: Sequence[int], article: bool = True) -> Words:
    """``a red square left``; attributes below 0 are left out."""
    said = [ATTRIBUTES[axis][value] for axis, value in enumerate(attributes) if value >= 0]
    return ("a", *said) if article else tuple(said)


def modifier(edit: Edit) -> Words:
    """``but blue``, or ``but mirrored``."""
    axis, value = edit
    return "but", RELATIVE[axis] if value is None else ATTRIBUTES[axis][value]


def encoded(captions: Sequence[Words]) -> np.ndarray:
    """Captions as numbers (n, `LENGTH`) int64: ``[CLS]``, the words, ``[SEP]``, padding."""
    ids = np.zeros((len(captions), LENGTH), np.int64)
    for row, words in enumerate(captions):
        found = [_NUMBER[word] for word in ("[CLS]", *words, "[SEP]")]
        ids[row, : len(found)] = found
    return ids


def draw_pictures(attributes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pictures (n, 3, 32, 32) uint8 of objects with attributes (n, 3), moved a little, on a dark and noisy ground."""
    colors, shapes, places = attributes.T
    return Scenes(colors[:, None], shapes[:, None], places, np.zeros(len(attributes), np.int64)).render(rng)
