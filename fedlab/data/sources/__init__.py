"""Where samples come from: the registry of data sources and the calls that use it."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from fedlab.config import Component, Section, parse
from fedlab.data.classes import plausible
from fedlab.data.samples import Dataset
from fedlab.data.sources.given import GIVEN, Given, GivenSettings
from fedlab.errors import DataError
from fedlab.registry import Registry

SOURCES = Registry(
    "source",
    {
        "digits": "fedlab.data.sources.digits:Digits",
        "scenes": "fedlab.data.sources.scenes:SceneSource",
        "masks": "fedlab.data.sources.masks:Masks",
        "shifted_digits": "fedlab.data.sources.shifted_digits:ShiftedDigits",
        "handwritten": "fedlab.data.sources.handwritten:Handwritten",
        "noisy_digits": "fedlab.data.sources.noisy_digits:NoisyDigits",
        "hub": "fedlab.data.sources.hub:Hub",
        "folder": "fedlab.data.sources.folder:Folder",
        "shapecap": "fedlab.data.sources.shapecap:ShapeCap",
        "captions": "fedlab.data.sources.captions:Captions",
        "npz": "fedlab.data.sources.npz:Npz",
        "sounds": "fedlab.data.sources.sounds:Sounds",
        "audio_folder": "fedlab.data.sources.audio_folder:AudioFolder",
        "union": "fedlab.data.sources.union:Union",
        "sites": "fedlab.data.sources.sites:Sites",
        "pedestrians": "fedlab.data.sources.pedestrians:Pedestrians",
        "market": "fedlab.data.sources.market:Market",
        "materials": "fedlab.data.sources.materials:Materials",
        "shapes": "fedlab.data.sources.shapes:Shapes",
        "silhouettes": "fedlab.data.sources.silhouettes:Silhouettes",
        "faces": "fedlab.data.sources.faces:FaceSource",
        "faces_folder": "fedlab.data.sources.faces_folder:FacesFolder",
        "tiles": "fedlab.data.sources.tiles:TileSource",
        "points": "fedlab.data.sources.points:Points",
        "rectangles": "fedlab.data.sources.rectangles:RectangleSource",
        "edited_scenes": "fedlab.data.sources.edited_scenes:EditedScenes",
        "composed": "fedlab.data.sources.composed:Composed",
    },
    "fedlab.sources",
)


class Source(Protocol):
    """The interface of a data source. The first line of its docstring is its entry in `fedlab list sources`."""

    Settings: ClassVar[type[Section]]
    # held_out_classes: bool = True where the test samples are of other classes than the training samples on purpose
    # stand_in(wanted: fedlab.data.stand_in.Wanted) -> Dataset: random samples instead of those that are not here

    def __init__(self, settings: Any) -> None: ...

    def load(self, seed: int) -> Dataset:
        """Load the samples. `seed` is the run's; only sources whose data differ between runs use it."""
        ...

    def missing(self) -> str | None:
        """Which data is missing on this machine and how to get it; nothing is loaded or downloaded for this."""
        ...


def build_source(component: Component, key: str = "data.source") -> Source:
    """Make the source that a component names and validate its settings; no data is loaded.

    Args:
        component: name and settings.
        key: configuration key of the component, for error messages.

    Raises:
        ConfigError: no such source.
        ConfigErrors: wrong settings.
    """
    if component.name == GIVEN:  # recorded by runs, not to be chosen from a list
        return Given(parse(GivenSettings, component.settings, key))
    source_class, settings = SOURCES.configured(component, key)
    source: Source = source_class(settings)
    return source


def load_source(component: Component, seed: int) -> Dataset:
    """Load the data set that a component names.

    Args:
        component: name and settings of the source.
        seed: the run's seed.

    Raises:
        ConfigError: no such source.
        ConfigErrors: wrong settings.
        DataError: the data is missing, unreadable or cannot be used as asked.
    """
    return samples_of(build_source(component), component.name, seed)


def samples_of(source: Source, name: str, seed: int) -> Dataset:
    """Load the data set of a source.

    Args:
        source: as `build_source` made it.
        name: of the source, for error messages.
        seed: the run's seed.

    Raises:
        DataError: the data is missing, unreadable or cannot be used as asked.
    """
    dataset = source.load(seed)
    for split, samples in (("train", dataset.train), ("test", dataset.test)):
        if not len(samples):
            raise DataError("data.source", name, f"at least one {split} sample", "check the settings of the source")
    return plausible(dataset, getattr(source, "held_out_classes", False))
