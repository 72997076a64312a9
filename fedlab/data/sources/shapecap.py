"""ShapeCap: captioned scenes of two colored shapes with typed false captions, generated offline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from fedlab.config import Positive, Section
from fedlab.data.files.captions import negative_columns, word_tokens
from fedlab.data.generated.negatives import KINDS, Words
from fedlab.data.generated.scenes import (
    BACKGROUNDS,
    COLORS,
    RELATIONS,
    SHAPES,
    Scenes,
    draw_pairs,
    draw_singles,
    rules,
)
from fedlab.data.samples import Dataset, Samples
from fedlab.errors import did_you_mean
from fedlab.seeding import numpy_generator

TOKENS = word_tokens(
    [" ".join(words) for words in (("a", "and"), COLORS, SHAPES, *RELATIONS)],
    length=9,  # a red square left of a blue circle, and the end
)
Natural = Literal["relation", "axis", "color", "shape", "background"]


def _some_colors(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in COLORS:
            raise ValueError(f"names of colors: {name!r} is not one; {did_you_mean(name, COLORS)}")
    if len(set(names)) < len(names) or not 1 <= len(names) <= len(COLORS) - 3:
        raise ValueError("one to three different colors: at least three are needed for scenes and false captions")
    return names


class ShapeCapSettings(Section):
    """Settings of the ShapeCap source."""

    train: Positive = Field(default=4000, description="number of training scenes, which are divided among the clients")
    test: Positive = Field(default=1000, description="number of test scenes, which are divided among the clients")
    composition: Positive = Field(default=1000, description="number of further test scenes that the server holds")
    pretrain: Positive = Field(
        default=5000,
        description="number of pairs for pretraining on the server; "
        "no caption requires to bind an attribute to an object",
    )
    zeroshot: Positive = Field(
        default=800, description="number of images of single objects in the unseen colors that the server holds"
    )
    unseen_colors: Annotated[tuple[str, ...], AfterValidator(_some_colors)] = Field(
        default=("cyan", "magenta"),
        description="colors that occur in the pairs for pretraining, but in no scene of the clients",
    )
    scramble: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the training captions whose false caption 'reshuffle' permutes all words",
    )
    objects: Literal[1, 2] = Field(
        default=2,
        description="number of objects in a scene of the clients; the captions of single objects, such as "
        "'a red square left', come without false ones",
    )
    natural: Natural = Field(
        default="relation",
        description="attribute that becomes label, domain and owner of a scene, so that clients can differ in it",
    )
    data_seed: int = Field(default=0, ge=0, description="seed of all scenes; independent of the run's seed")


class ShapeCap:
    """Captioned scenes of two colored shapes with typed false captions: DeGLA's acceptance data (offline).

    Clients hold scenes in the seen colors with captions such as "a red square left of a blue circle" and, for every
    kind of `fedlab.data.generated.negatives.KINDS`, one caption that is false of the scene. With ``objects: 1``, a
    scene is a single object without false captions, and so are all pairs of the server. The server holds
    ``pretrain`` (pairs whose captions can be matched without binding attributes to objects), ``composition`` (scenes
    like the clients'), ``zeroshot``
    (single objects of the unseen colors, labeled with one of all color-shape classes) and ``prompts`` (a caption for
    each class).
    """

    Settings = ShapeCapSettings

    def __init__(self, settings: ShapeCapSettings) -> None:
        self.settings = settings
        self.colors = tuple(color for color in COLORS if color not in settings.unseen_colors)

    def missing(self) -> str | None:
        return None

    def load(self, seed: int) -> Dataset:
        s = self.settings
        names = self._natural_names()
        splits = {}
        for split, count in (("train", s.train), ("test", s.test), ("composition", s.composition)):
            rng = self._rng(split)
            backgrounds = len(BACKGROUNDS) if s.natural == "background" else 1
            draw = draw_pairs if s.objects == 2 else draw_singles
            scenes = draw(count, self.colors, rng, backgrounds)
            owner = self._owner(scenes)
            columns = {
                "image": scenes.render(rng),
                **self._captions(scenes, rng, s.scramble if split == "train" else None),
            }
            columns |= {"label": owner, "domain": owner, "group": owner}
            splits[split] = Samples(columns, names, names, names)
        server = {"composition": splits["composition"], "pretrain": self._pretraining(), **self._zeroshot()}
        return Dataset("shapecap", splits["train"], splits["test"], server, TOKENS.vocabulary)

    def _captions(self, scenes: Scenes, rng: np.random.Generator, scramble: float | None) -> dict[str, np.ndarray]:
        """True and false captions; tests have every kind, training captions either ``reshuffle`` or ``order``."""
        captions = [scenes.caption(scene) for scene in range(len(scenes))]
        if self.settings.objects == 1:
            return {"text": _ids(captions)}
        scrambled = np.zeros(len(scenes)) if scramble is None else rng.random(len(scenes)) < scramble
        make = rules(self.colors).make
        negatives = []
        for words, permuted in zip(captions, scrambled, strict=True):
            left_out = set() if scramble is None else {"reshuffle" if permuted else "order"}
            false = {kind: make(kind, words, rng) for kind in KINDS if kind not in left_out}
            negatives.append({kind: (" ".join(changed),) for kind, changed in false.items() if changed is not None})
        return {"text": _ids(captions), **negative_columns(negatives, dict.fromkeys(KINDS, 1), TOKENS.encode)}

    def _pretraining(self) -> Samples:
        """60 % single objects, 20 % pairs described by their colors, 20 % by their shapes; all colors."""
        rng, s = self._rng("pretrain"), self.settings
        singles = draw_singles(round((0.6 if s.objects == 2 else 1) * s.pretrain), tuple(COLORS), rng)
        pairs = draw_pairs(s.pretrain - len(singles), tuple(COLORS), rng)
        captions = [singles.caption(scene) for scene in range(len(singles))]
        for scene in range(len(pairs)):
            (_, color, shape), (_, other_color, other_shape) = (pairs.noun_phrase(scene, thing) for thing in (0, 1))
            captions.append((color, "and", other_color) if scene % 2 else ("a", shape, "and", "a", other_shape))
        images = np.concatenate([singles.render(rng), pairs.render(rng)])
        return Samples({"image": images, "text": _ids(captions)})

    def _zeroshot(self) -> dict[str, Samples]:
        classes = [(color, shape) for color in COLORS for shape in SHAPES]
        names = tuple(" ".join(words) for words in classes)
        rng = self._rng("zeroshot")
        singles = draw_singles(self.settings.zeroshot, self.settings.unseen_colors, rng)
        labels = singles.colors[:, 0] * len(SHAPES) + singles.shapes[:, 0]
        prompts = {"text": _ids([("a", *words) for words in classes]), "label": np.arange(len(classes))}
        return {
            "zeroshot": Samples({"image": singles.render(rng), "label": labels}, names),
            "prompts": Samples(prompts, names),
        }

    def _owner(self, scenes: Scenes) -> np.ndarray:
        owners = {
            "relation": scenes.relation,
            "axis": scenes.relation // 2,
            "color": np.array([self.colors.index(name) for name in np.array(tuple(COLORS))[scenes.colors[:, 0]]]),
            "shape": scenes.shapes[:, 0],
            "background": scenes.background,
        }
        return owners[self.settings.natural].astype(np.int64)

    def _natural_names(self) -> tuple[str, ...]:
        return {
            "relation": tuple(" ".join(words) for words in RELATIONS),
            "axis": ("horizontal", "vertical"),
            "color": self.colors,
            "shape": SHAPES,
            "background": tuple(BACKGROUNDS),
        }[self.settings.natural]

    def _rng(self, *purpose: str) -> np.random.Generator:
        return numpy_generator(self.settings.data_seed, "shapecap", *purpose)


def _ids(captions: Sequence[Words]) -> np.ndarray:
    return TOKENS.encode([" ".join(words) for words in captions])
