"""Generated point clouds of ten families of surfaces, seen by one or more sensors."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from fedlab.config import Positive, Section
from fedlab.data.clouds import COLUMN
from fedlab.data.generated.shapes import FAMILIES, SENSORS, draw_shapes
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources.made import MadeSource
from fedlab.seeding import numpy_generator

Sensor = Literal["clean", "scan", "uneven", "noisy", "y up"]


def _distinct(sensors: tuple[Sensor, ...]) -> tuple[Sensor, ...]:
    if not sensors or len(set(sensors)) < len(sensors):
        raise ValueError("at least one sensor, each at most once")
    return sensors


class ShapesSettings(Section):
    """Settings of the shapes source."""

    train: Positive = Field(default=1200, description="number of training shapes, which are divided among the clients")
    test: Positive = Field(default=600, description="number of test shapes, which the server holds as well")
    probe: int = Field(default=400, ge=0, description="number of labeled shapes in the server's sample set 'probe'")
    points: int = Field(default=256, ge=16, le=8192, description="number of points of a shape")
    rotate: bool = Field(default=True, description="whether each shape is rotated at random; false: z points up")
    sensors: Annotated[tuple[Sensor, ...], AfterValidator(_distinct)] = Field(
        default=("clean",),
        description="domains among which the shapes are divided evenly: clean; scan (a hole, and points of the "
        "ground); uneven (density differs from side to side); noisy; y up (another axis points up; for rotate: false)",
    )
    data_seed: int = Field(
        default=0, ge=0, description="seed by which the shapes are drawn; independent of the run's seed"
    )


class Shapes(MadeSource[ShapesSettings]):
    """Generated point clouds: ten families of surfaces, stretched and rotated, seen by up to five sensors (offline).

    Columns: ``points`` (N, 3) float32, ``label``, ``domain`` (the sensor). The server holds ``probe`` and ``test``.
    """

    Settings = ShapesSettings

    def load(self, seed: int) -> Dataset:
        s = self.settings
        train, test = self._samples("train", s.train), self._samples("test", s.test)
        held = {"probe": self._samples("probe", s.probe)} if s.probe else {}
        return Dataset("shapes", train, test, {**held, "test": test})

    def _samples(self, split: str, count: int) -> Samples:
        s = self.settings
        rng = numpy_generator(s.data_seed, "shapes", split)
        labels, sensors = (rng.permutation(np.arange(count) % k) for k in (len(FAMILIES), len(s.sensors)))
        seen = np.array([SENSORS.index(name) for name in s.sensors])[sensors]
        clouds = draw_shapes(labels, seen, s.points, rng, s.rotate)
        return Samples({COLUMN: clouds, "label": labels, "domain": sensors}, FAMILIES, s.sensors)
