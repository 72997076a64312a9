"""Images with segmentation masks from two parallel folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from fedlab.config import Positive, Section
from fedlab.data.images import IMAGE_SUFFIXES, read_image, resize
from fedlab.data.masks import ClassTable, dominant_class, read_classes, read_mask
from fedlab.data.samples import Dataset, Samples
from fedlab.errors import DataError
from fedlab.seeding import numpy_generator

_SPLITS = ("train", "test")
_KEY = "data.source.path"


class MasksSettings(Section):
    """Settings of the masks source."""

    path: str = Field(
        description="root folder: images/ and masks/, or train/ and test/ with these; sub-folders of images/ are "
        "domains; server/<name>/ with these are sample sets the server holds; classes.txt names the classes"
    )
    size: tuple[Positive, Positive] | None = Field(
        default=None, description="height and width to which images are resized; default: their own, then all alike"
    )
    stride: Positive = Field(default=4, description="image pixels per mask pixel; masks are made smaller by nearest")
    ignore: tuple[int, ...] = Field(default=(255,), description="mask values that mean unlabelled")
    background: str | None = Field(
        default=None, description="class that does not count when images are labelled by the class that covers most"
    )
    image_suffix: str = Field(default="", description="end of every image's name, not part of what names the pair")
    mask_suffix: str = Field(default="", description="end of every mask's name, likewise: _gtFine_labelTrainIds")
    test_fraction: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="part of each domain kept for tests without train/ and test/",
    )
    data_seed: int = Field(default=0, ge=0, description="draws the test part; the run's seed does not change it")


@dataclass(frozen=True)
class _Pair:
    image: Path
    mask: Path
    domain: str


class Masks:
    """Your own images and segmentation masks (PNG of class indices, or of colours that classes.txt lists)."""

    Settings = MasksSettings

    def __init__(self, settings: MasksSettings) -> None:
        self.settings = settings
        self.root = Path(settings.path).expanduser()

    def missing(self) -> str | None:
        return None if self.root.is_dir() else f"no folder {self.root}; set {_KEY} to the folder of images/ and masks/"

    def load(self, seed: int) -> Dataset:
        if self.missing():
            raise DataError(_KEY, self.settings.path, "a folder with images/ and masks/", "check the path")
        splits = self._splits()
        held = self.root / "server"
        sets = {f.name: self._pairs(f) for f in (sorted(held.iterdir()) if held.is_dir() else ()) if f.is_dir()}
        everything = [*splits["train"], *splits["test"], *(pair for pairs in sets.values() for pair in pairs)]
        table = self._table(everything)
        domains = _domains([*splits["train"], *splits["test"]])
        samples = {split: self._samples(split, pairs, table, domains) for split, pairs in splits.items()}
        shapes = {split: part["image"].shape[1:] for split, part in samples.items()}
        if shapes["train"] != shapes["test"]:
            raise DataError(_KEY, shapes, "images of one size", "set data.source.size: [height, width]")
        server = {name: self._samples(name, pairs, table, _domains(pairs)) for name, pairs in sets.items()}
        return Dataset(self.root.name, samples["train"], samples["test"], server)

    def _splits(self) -> dict[str, list[_Pair]]:
        """The folder's own train and test parts, or a drawn one."""
        present = [split for split in _SPLITS if (self.root / split).is_dir()]
        if len(present) == 2:
            return {split: self._pairs(self.root / split) for split in _SPLITS}
        if present:
            raise DataError(
                _KEY, str(self.root / present[0]), "folders train and test side by side",
                f"add the other, or put images/ and masks/ directly into {self.root}",
            )  # fmt: skip
        pairs = self._pairs(self.root)
        parts: dict[str, list[_Pair]] = {split: [] for split in _SPLITS}
        for domain in sorted({pair.domain for pair in pairs}):
            members = [pair for pair in pairs if pair.domain == domain]
            rng = numpy_generator(self.settings.data_seed, "masks split", domain)
            drawn = set(rng.permutation(len(members))[: int(len(members) * self.settings.test_fraction)].tolist())
            for position, pair in enumerate(members):
                parts["test" if position in drawn else "train"].append(pair)
        return parts

    def _pairs(self, folder: Path) -> list[_Pair]:
        """Every image below ``images/`` with its mask at the same place below ``masks/``."""
        s, images, masks = self.settings, folder / "images", folder / "masks"
        for needed in (images, masks):
            if not needed.is_dir():
                raise DataError(_KEY, str(folder), f"a folder {needed.name}/ in it", "see data.source.path")
        pairs = []
        # unlike rglob, walk follows links: data sets are linked into place rather than copied
        found = (Path(parent) / name for parent, _, names in os.walk(images, followlinks=True) for name in names)
        for path in sorted(found):
            place = path.relative_to(images)
            if path.suffix.lower() not in IMAGE_SUFFIXES or any(part.startswith(".") for part in place.parts):
                continue
            if not path.stem.endswith(s.image_suffix):
                continue
            stem = path.stem.removesuffix(s.image_suffix)
            mask = masks / place.with_name(f"{stem}{s.mask_suffix}.png")
            if not mask.is_file():
                raise DataError(_KEY, str(path), f"its mask {mask}", "add it, or set data.source.mask_suffix")
            pairs.append(_Pair(path, mask, place.parts[0] if len(place.parts) > 1 else ""))
        if not pairs:
            raise DataError(_KEY, str(images), "image files", f"they end in {', '.join(sorted(IMAGE_SUFFIXES))}")
        return pairs

    def _table(self, pairs: Sequence[_Pair]) -> ClassTable:
        """Classes as classes.txt names them, or numbered up to the highest in any mask."""
        listed = self.root / "classes.txt"
        if listed.is_file():
            table = read_classes(listed)
        else:
            free = ClassTable(tuple(map(str, range(2**16))))
            top = max(int(read_mask(p.mask, free, self.settings.ignore, None).max(initial=-1)) for p in pairs)
            table = ClassTable(tuple(map(str, range(top + 1))))
        background = self.settings.background
        if background is not None and background not in table.names:
            raise DataError("data.source.background", background, f"one of {', '.join(table.names)}")
        return table

    def _samples(self, split: str, pairs: Sequence[_Pair], table: ClassTable, domains: tuple[str, ...]) -> Samples:
        s = self.settings
        images: list[np.ndarray] = []
        masks: list[np.ndarray] = []
        if not pairs:
            raise DataError(_KEY, str(self.root), f"{split} images", "raise data.source.test_fraction, or add images")
        for pair in pairs:
            whole = read_image(pair.image, None, 3)
            image = resize(whole[None], s.size)[0] if s.size else whole
            if images and image.shape != images[0].shape:
                raise DataError(
                    _KEY, f"{pair.image}: {image.shape[1]}×{image.shape[2]}",
                    f"{images[0].shape[1]}×{images[0].shape[2]} like the images before it",
                    "set data.source.size: [height, width]",
                )  # fmt: skip
            small = -(-image.shape[1] // s.stride), -(-image.shape[2] // s.stride)
            images.append(image)
            masks.append(read_mask(pair.mask, table, s.ignore, small, expected=whole.shape[1:]))
        skipped = table.names.index(s.background) if s.background else None
        stacked = np.stack(masks)
        columns = {
            "image": np.stack(images),
            "mask": stacked,
            "label": dominant_class(stacked, len(table.names), skipped),
        }
        if not domains:
            return Samples(columns, table.names)
        owner = np.array([domains.index(pair.domain) for pair in pairs], np.int64)
        return Samples({**columns, "domain": owner, "group": owner}, table.names, domains, domains)


def _domains(pairs: Sequence[_Pair]) -> tuple[str, ...]:
    """Names of the sub-folders the images are in; none where they are in no sub-folder."""
    names = sorted({pair.domain for pair in pairs})
    if len(names) > 1 and not names[0]:
        loose = next(pair.image for pair in pairs if not pair.domain)
        raise DataError(_KEY, str(loose), f"a sub-folder, as other images are in {names[1]!r}", "move it into one")
    return tuple(filter(None, names))
