"""Images with segmentation masks from two parallel folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from fedlab.config import Positive, Section
from fedlab.data.classes import test_part
from fedlab.data.files.images import UNREAD, PictureReader, is_picture, resize
from fedlab.data.files.listing import Listing
from fedlab.data.files.masks import (
    UNLABELED,
    ClassTable,
    classes_of_instances,
    dominant_class,
    read_classes,
    read_instances,
    read_mask,
    split_instances,
)
from fedlab.data.files.reading import Gathered, read_each
from fedlab.data.files.spelling import one_form
from fedlab.data.samples import Dataset, Samples
from fedlab.data.stand_in import Draws, Wanted, united
from fedlab.errors import DataError
from fedlab.seeding import numpy_generator
from fedlab.storage.paths import InputPath
from fedlab.tracking.left_out import LeftOut

_SPLITS = ("train", "test")
_KEY = "data.source.path"
_Arrays = tuple[list[np.ndarray], list[np.ndarray]]
# a mask holds indices, which a format that smears pixels would change
_LOSSLESS = (".png", ".bmp", ".gif", ".pbm", ".pgm", ".ppm", ".tif", ".tiff")
_OBJECTS, _BLOCK = 9, 8  # of a random mask: numbers of objects with the background, side of one in mask pixels


class MasksSettings(Section):
    """Settings of the masks source."""

    path: InputPath = Field(
        description="root folder: images/ and masks/, or train/ and test/ with these; sub-folders of images/ are "
        "domains; server/<name>/ with these are sample sets the server holds; classes.txt names the classes"
    )
    contents: Literal["classes", "instances"] = Field(
        default="classes",
        description="what the values of a mask are. classes: classes of the pixels, which become the column mask. "
        "instances: numbers of the objects in that picture, 0 is background; they become the column instances. A color "
        "(r, g, b) is the number r + 256 g + 65536 b, as in COCO's panoptic format. Images without a mask are then "
        "used too, as pictures of which no object is known",
    )
    size: tuple[Positive, Positive] | None = Field(
        default=None,
        description="height and width to which images are resized; default: not resized, all must have the same size",
    )
    stride: Positive = Field(
        default=4, description="image pixels per mask pixel; masks are downsampled by nearest neighbor"
    )
    ignore: tuple[int, ...] = Field(
        default=(255,),
        description="mask values that mean unlabeled; of instances: that belong to no object or background",
    )
    values: tuple[int, ...] = Field(
        default=(),
        description="mask values of the classes in their order, if they are not 0, 1, 2 …; [0, 255] means two classes",
    )
    background: str | None = Field(
        default=None, description="class that is ignored when an image is labeled by the class that covers most of it"
    )
    class_divisor: int | None = Field(
        default=None,
        ge=2,
        description="of instances whose masks say the classes too: a value of at least this number, such as 1000 in "
        "Cityscapes' instanceIds, is class · this number + number of the object, and a smaller one is the class of "
        "pixels without an object. The classes become the column mask",
    )
    image_suffix: str = Field(
        default="",
        description="ending of the images' names that is removed before images and masks are matched by name",
    )
    mask_suffix: str = Field(
        default="", description="the same for the masks' names, such as _gtFine_labelTrainIds of Cityscapes"
    )
    test_fraction: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="share of each domain that becomes test samples, if there are no folders train/ and test/",
    )
    data_seed: int = Field(
        default=0, ge=0, description="seed by which the test samples are drawn; independent of the run's seed"
    )


@dataclass(frozen=True)
class _Pair:
    image: Path
    mask: Path | None  # None: a picture whose instances nobody has marked
    domain: str


@dataclass
class _Reading:
    """The files that one call of `load` reads, and those that it leaves out."""

    listing: Listing
    pictures: PictureReader
    broken: Gathered
    unlabeled: int = 0
    pixels: int = 0

    def left_out(self, why: str) -> tuple[LeftOut, ...]:
        ignored = (LeftOut("mask pixels", self.unlabeled, why, self.pixels),) if self.unlabeled else ()
        return (*self.listing.left_out, *self.pictures.left_out, *ignored)


class Masks:
    """Your own images and masks (PNG of class indices, of colors that classes.txt lists, or of instances' numbers)."""

    Settings = MasksSettings

    def __init__(self, settings: MasksSettings) -> None:
        if settings.class_divisor and settings.contents == "classes":
            fix = "leave it out, or set data.source.contents: instances"
            raise DataError("data.source.class_divisor", settings.class_divisor, "masks of instances", fix)
        self.settings = settings
        self.root = Path(settings.path).expanduser()

    def missing(self) -> str | None:
        return None if self.root.is_dir() else f"no folder {self.root}; set {_KEY} to the folder of images/ and masks/"

    def load(self, seed: int) -> Dataset:
        if self.missing():
            raise DataError(_KEY, self.settings.path, "a folder with images/ and masks/", "check the path")
        at = _Reading(Listing(_KEY, self.root), PictureReader(_KEY), Gathered("pairs of image and mask"))
        splits = self._splits(at)
        held = self.root / "server"
        sets = {one_form(f.name): self._pairs(f, at) for f in (at.listing.folders(held) if held.is_dir() else ())}
        for split, pairs in splits.items():
            if not pairs:
                fix = "raise data.source.test_fraction, or add images"
                raise DataError(_KEY, str(self.root), f"{split} images", fix)
        everything = [*splits["train"], *splits["test"], *(pair for pairs in sets.values() for pair in pairs)]
        table = self._table(everything) if self.settings.contents == "classes" else self._no_classes()
        domains = _domains([*splits["train"], *splits["test"]])
        read, held_read = (
            {name: self._read(pairs, table, at) for name, pairs in parts.items()} for parts in (splits, sets)
        )
        at.broken.settle()
        if self.settings.class_divisor:
            masks = [mask for _, part in (*read.values(), *held_read.values()) for mask in part]
            table = classes_of_instances(self.root / "classes.txt", masks, self.settings.class_divisor)
        samples = {split: self._samples(pairs, read[split], table, domains, at) for split, pairs in splits.items()}
        if self.settings.contents == "classes":
            self._check_labels(samples)
        else:
            self._check_objects(samples)
        shapes = {split: part["image"].shape[1:] for split, part in samples.items()}
        if shapes["train"] != shapes["test"]:
            raise DataError(_KEY, shapes, "images of one size", "set data.source.size: [height, width]")
        server = {
            name: self._samples(pairs, held_read[name], table, _domains(pairs), at) for name, pairs in sets.items()
        }
        why = "their color is none that classes.txt lists" if table.colors else self._ignored()
        parts, warnings = (samples["train"], samples["test"], server), at.listing.warnings
        return Dataset(self.root.name, *parts, left_out=at.left_out(why), warnings=warnings)

    def stand_in(self, wanted: Wanted) -> Dataset:
        """Random images and masks instead of those that are not here."""
        s = self.settings
        if s.size is None:
            fix = "set data.source.size: [height, width]"
            raise DataError("data.source.size", None, "a size, because the images that would say it are not here", fix)
        height, width = s.size
        small = (-(-height // s.stride), -(-width // s.stride))
        classes = () if s.contents == "instances" and not s.class_divisor else wanted.class_names

        def columns(split: str) -> dict[str, np.ndarray]:
            draws = Draws(wanted, split)
            image = draws.pictures(3, height, width)
            owner = draws.dealt(wanted.domains)
            # blocks of pixels, because single ones would be objects of no size
            blocks = draws.whole(len(classes) or _OBJECTS, *(-(-side // _BLOCK) for side in small))
            mask = blocks.repeat(_BLOCK, 1).repeat(_BLOCK, 2)[:, : small[0], : small[1]]
            made = {"image": image, "domain": owner, "group": owner}
            if s.contents == "instances":
                made["instances"] = mask.astype(np.int32)
            return {**made, **({"mask": mask, "label": dominant_class(mask, len(classes))} if classes else {})}

        return united(self.root.name, wanted, {split: columns(split) for split in (*_SPLITS, *wanted.held)}, classes)

    def _ignored(self) -> str:
        return f"data.source.ignore says of their value that they are unlabeled: {_listed(self.settings.ignore)}"

    def _check_labels(self, samples: Mapping[str, Samples]) -> None:
        """Refuse masks with a single class, because every prediction would be right."""
        for split, least in (("train", 2), ("test", 1)):
            mask, names = samples[split]["mask"], samples[split].class_names
            found = [names[code] for code in np.unique(mask).tolist() if code != UNLABELED]
            if len(found) < least:
                ignored = f"{int((mask == UNLABELED).sum()):,} of {mask.size:,} pixels ignored"
                raise self._one_class(f"{split} masks: {_listed(found) or 'no class'}, {ignored}")

    def _check_objects(self, samples: Mapping[str, Samples]) -> None:
        """Refuse test masks without a single object, because nothing could be scored."""
        if not (samples["test"]["instances"] > 0).any():
            raise DataError(
                _KEY, f"test masks: no object ({self.root})", "masks with numbers above 0 on the objects",
                f"data.source.ignore, now [{_listed(self.settings.ignore)}], names the numbers that are no object",
            )  # fmt: skip

    def _one_class(self, found: str) -> DataError:
        return DataError(
            _KEY, f"{found} ({self.root})", "pixels of at least two classes",
            "list the values of the classes in their order, data.source.values: [0, 255] for black and white masks; "
            f"data.source.ignore, now [{_listed(self.settings.ignore)}], names the values that are no class",
        )  # fmt: skip

    def _splits(self, at: _Reading) -> dict[str, list[_Pair]]:
        """The folder's own train and test parts, or a drawn one."""
        present = [split for split in _SPLITS if (self.root / split).is_dir()]
        if len(present) == 2:
            return {split: self._pairs(self.root / split, at) for split in _SPLITS}
        if present:
            raise DataError(
                _KEY, str(self.root / present[0]), "folders train and test side by side",
                f"add the other, or put images/ and masks/ directly into {self.root}",
            )  # fmt: skip
        pairs = self._pairs(self.root, at)
        parts: dict[str, list[_Pair]] = {split: [] for split in _SPLITS}
        for domain in sorted({pair.domain for pair in pairs}):
            members = [pair for pair in pairs if pair.domain == domain]
            rng = numpy_generator(self.settings.data_seed, "masks split", domain)
            wanted, fraction = int(len(members) * self.settings.test_fraction), self.settings.test_fraction
            drawn = set(rng.permutation(len(members))[: test_part(len(members), wanted) if fraction else 0].tolist())
            for position, pair in enumerate(members):
                parts["test" if position in drawn else "train"].append(pair)
        return parts

    def _pairs(self, folder: Path, at: _Reading) -> list[_Pair]:
        """Every image below ``images/`` with its mask at the same place below ``masks/``."""
        s, images, masks = self.settings, folder / "images", folder / "masks"
        optional = s.contents == "instances"
        for needed in (images,) if optional else (images, masks):
            if not needed.is_dir():
                raise DataError(_KEY, str(folder), f"a folder {needed.name}/ in it", "see data.source.path")
        pairs: list[_Pair] = []
        ending = one_form(s.image_suffix)
        files = []
        for path in at.listing.below(images, is_picture, UNREAD):
            if one_form(path.stem).endswith(ending):
                files.append(path)
            else:
                at.listing.skip(path, f"their name does not end in data.source.image_suffix, {s.image_suffix}")
        by_name = self._masks(masks, at) if masks.is_dir() or not optional else {}
        used: set[Path] = set()

        def pair(_: int, path: Path) -> None:
            place = path.relative_to(images)
            parts = [one_form(part) for part in place.parts[:-1]]
            stem = one_form(path.stem).removesuffix(ending) + one_form(s.mask_suffix)
            mask = by_name.get((*parts, stem))
            if mask is not None:
                used.add(mask)
            elif optional:
                at.listing.skip(path, "nothing is known of their objects, since they have no mask", what="images")
            else:
                wanted = masks / place.with_name(f"{path.stem.removesuffix(s.image_suffix)}{s.mask_suffix}.png")
                raise DataError(_KEY, str(path), f"its mask {wanted}", "add it, or set data.source.mask_suffix")
            pairs.append(_Pair(path, mask, parts[0] if parts else ""))

        read_each(files, pair, "images")
        for mask in sorted(set(by_name.values()) - used):
            at.listing.skip(mask, "no image is of the mask's name")
        if not pairs:
            raise DataError(
                _KEY, str(images), "image files", "their names end in .png, .jpg or another ending known to Pillow"
            )
        return pairs

    def _masks(self, folder: Path, at: _Reading) -> dict[tuple[str, ...], Path]:
        """Mask files by their folders and name without its ending; of several endings PNG counts."""
        found: dict[tuple[str, ...], Path] = {}
        why = f"they are no masks without loss ({', '.join(_LOSSLESS)})"
        fix = "save masks as PNG: JPEG changes class indices"
        files = at.listing.below(folder, lambda path: path.suffix.lower() in _LOSSLESS, why, fix)
        for path in sorted(files, key=lambda path: _LOSSLESS.index(path.suffix.lower())):
            parts = [one_form(part) for part in path.relative_to(folder).parts[:-1]]
            found.setdefault((*parts, one_form(path.stem)), path)
        return found

    def _no_classes(self) -> ClassTable:
        """Instances have no classes; settings that speak of classes are refused."""
        for key in ("values", "background"):
            if given := getattr(self.settings, key):
                fix = "leave it out: the numbers of instances say nothing about classes"
                raise DataError(f"data.source.{key}", given, "data.source.contents: classes", fix)
        return ClassTable(())

    def _table(self, pairs: Sequence[_Pair]) -> ClassTable:
        """Classes as classes.txt names them, or numbered up to the highest in any mask."""
        listed, values = self.root / "classes.txt", self.settings.values
        if listed.is_file():
            table = read_classes(listed)
            if values and (table.colors or len(values) != len(table.names)):
                expected = f"one value for each of the {len(table.names)} classes of classes.txt, which has no colors"
                raise DataError("data.source.values", values, expected, "leave one of them out")
            table = replace(table, values=values)
        elif values:
            table = ClassTable(tuple(map(str, values)), values=values)
        else:
            free = ClassTable(tuple(map(str, range(2**16))))
            tops = np.full(len(pairs), UNLABELED)

            def look(row: int, pair: _Pair) -> None:
                if pair.mask is not None:
                    tops[row] = read_mask(pair.mask, free, self.settings.ignore, None).max(initial=UNLABELED)

            read_each(pairs, look, "masks")
            if tops.max() < 0:
                raise self._one_class("no class, every pixel ignored")
            table = ClassTable(tuple(map(str, range(int(tops.max()) + 1))))
        background = self.settings.background
        if background is not None and background not in table.names:
            raise DataError("data.source.background", background, f"one of {', '.join(table.names)}")
        return table

    def _read(self, pairs: Sequence[_Pair], table: ClassTable, at: _Reading) -> _Arrays:
        """Images (C, H, W) and masks (h, w), of which those that are broken are missing."""
        s = self.settings
        images: list[np.ndarray] = []
        masks: list[np.ndarray] = []

        def read(_: int, pair: _Pair) -> None:
            whole = at.pictures.read(pair.image, None, 3)
            image = resize(whole[None], s.size)[0] if s.size else whole
            if images and image.shape != images[0].shape:
                raise DataError(
                    _KEY, f"{pair.image}: {image.shape[1]}×{image.shape[2]}",
                    f"{images[0].shape[1]}×{images[0].shape[2]} like the images before it",
                    "set data.source.size: [height, width]",
                )  # fmt: skip
            small = -(-image.shape[1] // s.stride), -(-image.shape[2] // s.stride)
            if pair.mask is None:
                mask = np.full(small, UNLABELED, np.int32)
            elif s.contents == "instances":
                mask = read_instances(pair.mask, s.ignore, small, expected=whole.shape[1:])
            else:
                mask = read_mask(pair.mask, table, s.ignore, small, expected=whole.shape[1:])
            images.append(image)
            masks.append(mask)
            if pair.mask is not None and (mask == UNLABELED).all():
                at.listing.skip(pair.mask, "every pixel is unlabeled, so that only the image is used", what="masks")

        at.broken.read(pairs, read)
        return images, masks

    def _samples(
        self, pairs: Sequence[_Pair], arrays: _Arrays, table: ClassTable, domains: tuple[str, ...], at: _Reading
    ) -> Samples:
        images, masks = arrays
        background = self.settings.background
        skipped = table.names.index(background) if background else None
        stacked = np.stack(masks)
        marked = stacked[[pair.mask is not None for pair in pairs]]
        at.unlabeled += int((marked == UNLABELED).sum())
        at.pixels += marked.size
        columns = {"image": np.stack(images)}
        if self.settings.contents == "instances":
            columns["instances"], stacked = split_instances(stacked, self.settings.class_divisor)
        if table.names:
            columns |= {"mask": stacked, "label": dominant_class(stacked, len(table.names), skipped)}
        if not domains:
            return Samples(columns, table.names)
        owner = np.array([domains.index(pair.domain) for pair in pairs], np.int64)
        return Samples({**columns, "domain": owner, "group": owner}, table.names, domains, domains)


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _domains(pairs: Sequence[_Pair]) -> tuple[str, ...]:
    """Names of the sub-folders the images are in; none where they are in no sub-folder."""
    names = sorted({pair.domain for pair in pairs})
    if len(names) > 1 and not names[0]:
        loose = next(pair.image for pair in pairs if not pair.domain)
        raise DataError(_KEY, str(loose), f"a sub-folder, as other images are in {names[1]!r}", "move it into one")
    return tuple(filter(None, names))
