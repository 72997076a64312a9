"""Generated pictures of one object, and queries that ask for an edit of it, such as "but blue" or "but mirrored"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from fedlab.config import Positive, Section, UnfitValue
from fedlab.data.generated.edits import (
    ATTRIBUTES,
    COLORS,
    WORDS,
    Edit,
    all_objects,
    draw_pictures,
    edited,
    encoded,
    modifier,
    named_edits,
    relative_edits,
    words_of,
)
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources.made import MadeSource, seed_of
from fedlab.seeding import numpy_generator

Natural = Literal["color", "shape", "place", "missing_color"]
_AXIS = {"color": 0, "shape": 1, "place": 2}


class EditedScenesSettings(Section):
    """Settings of the edited_scenes source."""

    train: Positive = Field(
        default=3000, description="number of training pictures, which are divided among the clients"
    )
    test: Positive = Field(default=480, description="number of test pictures, which are divided among the clients")
    gallery: Positive = Field(default=5, description="number of pictures of each of the 48 objects in the gallery")
    references: Positive = Field(
        default=3, description="number of pictures of each object from which queries start, at most gallery"
    )
    edits: Literal["all", "named", "relative"] = Field(
        default="all",
        description="edits that queries ask for: named: of one attribute to a value, such as 'but blue'; relative: to "
        "its opposite, 'but mirrored' and 'but inverted'; all: both",
    )
    natural: Natural = Field(
        default="missing_color",
        description="what clients differ in, as domain and owner: the color, the shape or the place of the object, or "
        "the one color that an owner has no pictures of",
    )
    data_seed: int | None = Field(default=0, ge=0, description="seed of all pictures; null: the run's seed")

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.references > self.gallery:
            raise UnfitValue(
                "references", self.references, f"at most the {self.gallery} pictures of an object in the gallery"
            )
        return self


class EditedScenes(MadeSource[EditedScenesSettings]):
    """Pictures of one object in 4 colors, 3 shapes and 4 places, and queries such as "but blue" (offline).

    Clients hold pictures without captions; their label, which no method needs, is the color. The server holds
    ``gallery`` and ``queries`` in the form of `fedlab.data.files.composed`: from each reference picture, one query for
    every edit: 8 that name a new color, shape or place, and 2 for the opposite color or place. A picture of the edited
    object is right. The reference itself is not ranked, but other pictures of its object are, so that a query has to
    leave it. Column ``oracle`` of the queries has the true words of the reference, then those of the edit.
    """

    Settings = EditedScenesSettings

    def load(self, seed: int) -> Dataset:
        s, drawn = self.settings, seed_of(self.settings.data_seed, seed)
        train, test = (self._pictures(split, count, drawn) for split, count in (("train", s.train), ("test", s.test)))
        return Dataset("edited_scenes", train, test, self._retrieval(drawn), WORDS)

    def _pictures(self, split: str, count: int, seed: int) -> Samples:
        rng, every = numpy_generator(seed, "edited_scenes", split), all_objects()
        attributes = every[rng.permutation(np.arange(count) % len(every))]
        natural, color = self.settings.natural, attributes[:, 0]
        if natural == "missing_color":
            owner = (color + rng.integers(1, len(COLORS), count)) % len(COLORS)
            names = tuple(f"no {name}" for name in COLORS)
        else:
            owner, names = attributes[:, _AXIS[natural]], ATTRIBUTES[_AXIS[natural]]
        columns = {"image": draw_pictures(attributes, rng), "label": color, "domain": owner, "group": owner}
        return Samples(columns, COLORS, names, names)

    def _edits(self, attributes: Sequence[int]) -> list[Edit]:
        asked, named, relative = self.settings.edits, list(named_edits(attributes)), list(relative_edits())
        return {"all": named + relative, "named": named, "relative": relative}[asked]

    def _retrieval(self, seed: int) -> dict[str, Samples]:
        s, every = self.settings, all_objects()
        of_object = {tuple(found): number for number, found in enumerate(every.tolist())}
        pictures = np.arange(len(every) * s.gallery).reshape(len(every), s.gallery)
        asked = [
            (number, reference, edit)
            for number, found in enumerate(every.tolist())
            for reference in pictures[number, : s.references].tolist()
            for edit in self._edits(found)
        ]
        sources = np.array([number for number, _, _ in asked])
        targets = np.array([of_object[edited(every[number].tolist(), edit)] for number, _, edit in asked])
        rng = numpy_generator(seed, "edited_scenes", "gallery")
        queries = {
            "reference": np.array([reference for _, reference, _ in asked]),
            "text": encoded([modifier(edit) for _, _, edit in asked])[:, None],
            "oracle": encoded([(*words_of(every[number].tolist()), *modifier(edit)) for number, _, edit in asked]),
            "targets": pictures[targets],
            "removed": np.array([[reference] for _, reference, _ in asked]),
            "label": every[sources, 0],
        }
        return {
            "gallery": Samples({"image": draw_pictures(np.repeat(every, s.gallery, axis=0), rng)}),
            "queries": Samples(queries, COLORS),
        }
