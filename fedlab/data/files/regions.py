"""Region maps of faces: from files beside the pictures, from a face parser, or from a template."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.data.files.masks import nearest
from fedlab.data.files.reading import read_each, reading, reason
from fedlab.data.regions import CELEBAMASK, REGIONS, SKIN, template
from fedlab.errors import DataError
from fedlab.storage.cache import ResultCache
from fedlab.storage.paths import cache_folder

ENDING = ".npy"
Numbering = Literal["lapa", "celebamask"]
_KEY = "data.source"
_BATCH = 16
_SIDE = 512
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


class Maps(NamedTuple):
    """Region maps of n pictures.

    Args:
        regions: (n, S, S) uint8, the classes of `fedlab.data.regions.REGIONS`; 0 where nothing is known.
        known: (n,) whether the map of a picture is known.
    """

    regions: np.ndarray
    known: np.ndarray


class RegionProvider(Protocol):
    """Says which region each pixel of a face belongs to."""

    def maps(self, files: Sequence[Path], sizes: Sequence[tuple[int, int]], images: np.ndarray) -> Maps:
        """The maps of pictures.

        Args:
            files: the file of each picture.
            sizes: height and width of each picture in its file.
            images: the pictures, (n, 3, S, S) uint8.

        Raises:
            DataError: a map that is there cannot be used.
        """
        ...


class MapFiles:
    """Maps that were made before: for ``face.png`` the file ``face.npy`` beside it, integers of the picture's size.

    Args:
        numbering: which classes the numbers mean.
    """

    def __init__(self, numbering: Numbering) -> None:
        self._table = np.arange(len(REGIONS)) if numbering == "lapa" else np.array(list(CELEBAMASK.values()))

    def maps(self, files: Sequence[Path], sizes: Sequence[tuple[int, int]], images: np.ndarray) -> Maps:
        found = Maps(np.zeros((len(files), *images.shape[2:]), np.uint8), np.zeros(len(files), bool))

        def read(row: int, file: Path) -> None:
            path = file.with_suffix(ENDING)
            if path.is_file():
                found.regions[row] = nearest(self._read(path, sizes[row]), (images.shape[2], images.shape[3]))
                found.known[row] = True

        read_each(files, read, "region maps")
        return found

    def _read(self, path: Path, size: tuple[int, int]) -> np.ndarray:
        fix = "save it with numpy.save as integers, one number for each pixel of the picture"
        with reading(f"{_KEY}.path", str(path), "a readable region map", fix):
            values = np.load(path, allow_pickle=False)
        if values.ndim != 2 or values.dtype.kind not in "iu" or values.shape != size:
            found = f"{path}: {values.dtype}, shape {values.shape}"
            raise DataError(f"{_KEY}.path", found, f"integers of its picture's size, {size[0]}×{size[1]}", fix)
        if not (int(values.min()) >= 0 and int(values.max()) < len(self._table)):
            found = f"{path}: numbers from {values.min()} to {values.max()}"
            expected = f"numbers from 0 to {len(self._table) - 1}, as data.source.numbering says"
            raise DataError(f"{_KEY}.path", found, expected, "choose the other numbering, or convert the maps")
        converted: np.ndarray = self._table[values].astype(np.uint8)
        return converted


class Template:
    """The same ellipses for every face: an approximation for upright, centered faces where there is no parser."""

    def maps(self, files: Sequence[Path], sizes: Sequence[tuple[int, int]], images: np.ndarray) -> Maps:
        """The template for every picture; neither files nor pixels are looked at."""
        one = template(images.shape[2], images.shape[3])
        return Maps(np.repeat(one[None], len(images), axis=0), np.ones(len(images), bool))


class SegFormerParser:
    """A face parser: transformers' ``SegformerForSemanticSegmentation`` from a local folder, run once and cached.

    The checkpoint's own ``id2label`` says what its classes mean, because checkpoints number them differently; the names
    are those of CelebAMask-HQ or of LaPa. A picture in which no skin is found has no map.

    Args:
        folder: folder of the checkpoint.
        cache: folder of results that later runs can use again; None for the usual one.
    """

    def __init__(self, folder: str, cache: str | None = None) -> None:
        self._folder, self._cache = Path(folder).expanduser(), cache

    def maps(self, files: Sequence[Path], sizes: Sequence[tuple[int, int]], images: np.ndarray) -> Maps:
        """The maps that the parser finds in the pictures; their files are not looked at."""
        if not self._folder.is_dir():
            fix = "download the checkpoint into a folder and name that folder"
            raise DataError(f"{_KEY}.parser", str(self._folder), "a folder with a SegFormer face parser", fix)
        digest = hashlib.blake2b(np.ascontiguousarray(images).data if images.size else b"", digest_size=16).hexdigest()
        results = ResultCache(cache_folder(self._cache), lambda: digest, 0, torch.device("cpu"))
        key = {"checkpoint": self._fingerprint(), "shape": list(images.shape)}
        regions = results.get("face_regions", key, lambda: {"regions": self._parsed(images)}, seeded=False)["regions"]
        found = regions.numpy()
        return Maps(found, (found == SKIN).any(axis=(1, 2)))

    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for path in sorted(self._folder.glob("*")):
            if path.is_file() and path.suffix in (".json", ".safetensors", ".bin"):
                digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()

    @torch.no_grad()
    def _parsed(self, images: np.ndarray) -> Tensor:
        from transformers import SegformerForSemanticSegmentation

        with reading(f"{_KEY}.parser", str(self._folder), "a SegFormer face parser", "save it with save_pretrained"):
            model: Any = SegformerForSemanticSegmentation.from_pretrained(self._folder, local_files_only=True).eval()
        table = torch.tensor(self._classes(model.config.id2label), dtype=torch.uint8)
        side, mean, std = self._preparation()
        made = []
        for part in torch.split(torch.from_numpy(images), _BATCH):
            seen = F.interpolate(part.float() / 255, size=(side, side), mode="bilinear", antialias=True)
            logits = model((seen - mean) / std).logits
            made.append(table[F.interpolate(logits, size=images.shape[2:], mode="bilinear").argmax(1)])
        return torch.cat(made)

    def _classes(self, names: Mapping[int, str]) -> list[int]:
        """The region of each class of the checkpoint, in the order of its numbers."""
        known = {**CELEBAMASK, **{name: number for number, name in enumerate(REGIONS)}}
        ordered = [str(names[number]) for number in sorted(names)]
        unknown = [name for name in ordered if name not in known]
        if unknown:
            fix = "name the classes in id2label of its config.json as CelebAMask-HQ or LaPa does"
            expected = f"names of classes such as {', '.join(list(known)[:4])}"
            raise DataError(f"{_KEY}.parser", f"{self._folder}: {', '.join(unknown[:5])}", expected, fix)
        return [known[name] for name in ordered]

    def _preparation(self) -> tuple[int, Tensor, Tensor]:
        """Side of the parser's input, and mean and deviation by which it is normalized."""
        path, given = self._folder / "preprocessor_config.json", dict[str, Any](_IMAGENET)
        try:
            if path.is_file():
                given |= json.loads(path.read_text(encoding="utf-8"))
            size: Any = given.get("size", _SIDE)
            side: Any = size.get("height", size.get("shortest_edge", _SIDE)) if isinstance(size, dict) else size
            mean, std = (torch.tensor(given[key]).reshape(3, 1, 1) for key in ("image_mean", "image_std"))
            return int(side), mean, std
        except (ValueError, TypeError, RuntimeError) as error:
            expected = "a mapping with size, image_mean and image_std as transformers saves them"
            raise DataError(f"{_KEY}.parser", str(path), expected, reason(error)) from error
