"""Generated scenes of two-part objects, for segmentation without training."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from fedlab.config import Positive, Section
from fedlab.data.generated.materials import MaterialScenes, draw_patterns, draw_scenes
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources.made import MadeSource, seed_of
from fedlab.seeding import numpy_generator

_RANGE = 10.0  # the pixels' standard deviations that fit between black and white
_FAINTEST, _NOISIEST = 0.5, 2.0


class MaterialsSettings(Section):
    """Settings of the materials source."""

    train: Positive = Field(default=2000, description="number of training scenes, which are divided among the clients")
    test: Positive = Field(default=300, description="number of test scenes, which are divided among the clients")
    validation: int = Field(default=150, ge=0, description="number of scenes in the server's sample set 'validation'")
    server_test: int = Field(default=150, ge=0, description="number of scenes in the server's sample set 'test'")
    materials: int = Field(default=6, ge=2, le=20, description="number of materials")
    noise: float = Field(
        default=0.25, ge=0, le=1, description="standard deviation of the noise, where that of a pattern is 1"
    )
    cameras: int = Field(
        default=1, ge=1, le=10, description="number of cameras, which are the domains: from the first to the last, "
        "contrast falls to a half and noise doubles",
    )  # fmt: skip
    data_seed: int | None = Field(
        default=0, ge=0, description="seed of the patterns and of the scenes; null: the run's seed"
    )


class Materials(MadeSource[MaterialsSettings]):
    """Generated gray scenes with instance masks: objects of materials with two patterns each (offline).

    Column ``instances`` is 1 on the object, ``parts`` says which pattern each patch shows, and ``label`` is the
    material of the object. The owner of a scene, for the partition step `natural`, is the material of its background.
    """

    Settings = MaterialsSettings

    def load(self, seed: int) -> Dataset:
        s = self.settings
        drawn = seed_of(s.data_seed, seed)
        held = {"validation": s.validation, "test": s.server_test}
        return Dataset(
            "materials",
            self._samples("train", s.train, drawn),
            self._samples("test", s.test, drawn),
            {name: self._samples(f"server {name}", count, drawn) for name, count in held.items() if count},
        )

    def _samples(self, split: str, count: int, seed: int) -> Samples:
        s = self.settings
        patterns = draw_patterns(s.materials, numpy_generator(seed, "materials", "patterns"))
        rng = numpy_generator(seed, "materials", split)
        scenes = draw_scenes(count, patterns, s.noise, rng)
        columns = {
            "image": self._seen(scenes, rng)[:, None],
            "instances": scenes.objects,
            "parts": scenes.parts,
            "label": scenes.material.astype(np.int64),
            "group": scenes.background.astype(np.int64),
        }
        names = tuple(f"material {number}" for number in range(1, s.materials + 1))
        owners = tuple(f"on {name}" for name in names)
        if s.cameras == 1:
            return Samples(columns, names, group_names=owners)
        columns["domain"] = self._camera(count)
        return Samples(columns, names, tuple(f"camera {number}" for number in range(1, s.cameras + 1)), owners)

    def _camera(self, count: int) -> np.ndarray:
        return np.arange(count) % self.settings.cameras

    def _seen(self, scenes: MaterialScenes, rng: np.random.Generator) -> np.ndarray:
        """Pixels in [0, 1], (n, 32, 32) float32, as the cameras see them."""
        pixels, s = scenes.pixels, self.settings
        if s.cameras > 1:
            share = (self._camera(len(pixels)) / (s.cameras - 1)).astype(np.float32)[:, None, None]
            contrast, noise = 1 + share * (_FAINTEST - 1), 1 + share * (_NOISIEST - 1)
            added = s.noise * np.sqrt(noise**2 - contrast**2)
            pixels = contrast * pixels + added * rng.standard_normal(pixels.shape, dtype=np.float32)
        seen: np.ndarray = np.clip(0.5 + pixels / _RANGE, 0, 1).astype(np.float32)
        return seen
