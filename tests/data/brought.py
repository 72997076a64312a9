"""Small data sets on disk, one builder for every source that reads people's files."""

from __future__ import annotations

import csv
import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import wavfile

from fedlab.config import Component
from fedlab.data.samples import Dataset
from fedlab.data.sources import build_source, load_source

CAFE = "caf\u00e9"  # in composed form
CLASSES = (CAFE, "dog")


@dataclass
class Brought:
    """A data set as somebody brings it.

    Args:
        component: loads it.
        files: of samples, each of which the source reads.
        folders: that the source looks through, each of them with files of samples.
        texts: tables and lists that it reads.
        name: what the file of one sample is called in messages.
        named: folder or file whose name becomes a name of the data.
    """

    component: Component
    files: list[Path]
    folders: list[Path] = field(default_factory=list)
    texts: list[Path] = field(default_factory=list)
    named: Path | None = None

    def load(self) -> Dataset:
        return load_source(self.component, 0)


def picture(path: Path, value: int = 100, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value % 256, np.uint8)).save(path)
    return path


def folder(root: Path) -> Brought:
    files = [
        picture(root / split / kind / f"{i}.png", 10 * i)
        for split in ("train", "test")
        for kind in CLASSES
        for i in range(6)
    ]
    where = [root / split / kind for split in ("train", "test") for kind in CLASSES]
    component = Component(name="folder", path=str(root), size=8)
    return Brought(component, files, [root, root / "train", *where], named=root / "test" / CAFE)


def hub(root: Path) -> Brought:
    made = folder(root)
    made.component = Component(name="hub", path=str(root), size=8)
    return made


def union(root: Path) -> Brought:
    made = folder(root / "only")
    made.component = Component(name="union", sources={"only": made.component.model_dump()})
    return made


def sites(root: Path) -> Brought:
    made = folder(root / "only")
    made.component = Component(name="sites", sites={"only": made.component.model_dump()})
    return made


def masks(root: Path) -> Brought:
    files = []
    for split in ("train", "test"):
        for i in range(10):
            files.append(picture(root / split / "images" / CAFE / f"{i}.png", 10 * i))
            mask = np.zeros((8, 8), np.uint8)
            mask[2:6] = 1
            path = root / split / "masks" / CAFE / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
    (root / "classes.txt").write_text(f"{CAFE}\ndog\n", encoding="utf-8")
    where = [root / split / kind / CAFE for split in ("train", "test") for kind in ("images", "masks")]
    component = Component(name="masks", path=str(root), stride=1)
    return Brought(component, files, where, [root / "classes.txt"], named=root / "test" / "images" / CAFE)


def captions(root: Path) -> Brought:
    files = [picture(root / f"{CAFE}{i}.png", 10 * i) for i in range(12)]
    lines = [
        {"image": file.name, "caption": f"a red {CAFE} {i}", "client": CAFE, "split": "test" if i > 7 else "train"}
        for i, file in enumerate(files)
    ]
    table = root / "pairs.jsonl"
    table.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n", encoding="utf-8")
    shown = [picture(root / "shown" / kind / "1.png") for kind in CLASSES]
    component = Component(name="captions", path=str(table), size=8, zeroshot=str(root / "shown"))
    where = [root / "shown", root / "shown" / "dog"]
    return Brought(component, [*files, *shown], where, [table], named=root / "shown" / CAFE)


def audio_folder(root: Path) -> Brought:
    root.mkdir(parents=True)
    tone = (np.sin(np.arange(800) / 5) * 16000).astype(np.int16)
    files = [root / f"{CAFE}{i}.wav" for i in range(12)]
    for file in files:
        wavfile.write(file, 8000, tone)
    with (root / "labels.csv").open("w", newline="", encoding="utf-8") as text:
        table = csv.writer(text)
        table.writerow(("file", "label", "speaker", "split"))
        for i, file in enumerate(files):
            table.writerow((file.name, CLASSES[i % 2], CAFE, "test" if i > 7 else "train"))
    component = Component(name="audio_folder", path=str(root), rate=8000, seconds=0.1, shortest=0.01)
    return Brought(component, files, [root], [root / "labels.csv"])


def market(root: Path) -> Brought:
    files = []
    for identity in range(2, 8):
        for camera in (1, 2):
            name = f"{identity:04d}_c{camera}s1_000451_03.jpg"
            files.append(picture(root / "north" / "bounding_box_train" / name, identity, (24, 10)))
    component = Component(name="market", sources={"north": str(root / "north")}, height=16, width=8)
    return Brought(component, files, [root / "north" / "bounding_box_train"])


def npz(root: Path) -> Brought:
    root.mkdir(parents=True)
    x, y = np.arange(8 * 64, dtype=np.uint8).reshape(8, 8, 8), np.array(CLASSES * 4)
    np.savez(root / "data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    return Brought(Component(name="npz", path=str(root / "data.npz")), [root / "data.npz"])


TETRAHEDRON = "OFF\n4 4 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 2 1\n3 0 1 3\n3 0 3 2\n3 1 2 3\n"


def points(root: Path) -> Brought:
    files = []
    for kind in CLASSES:
        for split in ("train", "test"):
            for i in range(3):
                file = root / kind / split / f"{len(files):02d}.off"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(TETRAHEDRON.replace("\n0 0 1", f"\n0 0 {1 + i}"), encoding="utf-8")
                files.append(file)
    where = [root / kind / split for kind in CLASSES for split in ("train", "test")]
    component = Component(name="points", path=str(root), points=16)
    return Brought(component, files, [root, root / "dog", *where], named=root / CAFE)


def faces_folder(root: Path) -> Brought:
    files = [
        picture(root / split / CAFE / kind / f"{i:02d}.png", 10 * i)
        for split in ("train", "test")
        for kind in ("real", "fake")
        for i in range(6)
    ]
    for file in files:
        if file.parent.name == "real":
            np.save(file.with_suffix(".npy"), np.arange(64).reshape(8, 8) % 11)
    where = [root / split / CAFE / kind for split in ("train", "test") for kind in ("real", "fake")]
    component = Component(name="faces_folder", path=str(root), size=16)
    return Brought(component, files, where, named=root / "test" / CAFE)


def composed(root: Path) -> Brought:
    files = [picture(root / f"{CAFE}{i:02d}.png", 10 * i) for i in range(6)]
    files += [picture(root / "photos" / CLASSES[i % 2] / f"photo{i:02d}.png", 20 * i) for i in range(10)]
    lines = [
        {"reference": files[i].name, "caption": "but red", "targets": [files[i + 1].name, files[5].name]}
        for i in range(4)
    ]
    table = root / "queries.jsonl"
    table.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n", encoding="utf-8")
    where = [root / "photos", *(root / "photos" / kind for kind in CLASSES)]
    component = Component(name="composed", path=str(table), photos=str(root / "photos"), size=8, length=7)
    return Brought(component, files, where, [table], named=root / "photos" / CAFE)


BUILDERS: dict[str, Callable[[Path], Brought]] = {
    "folder": folder, "hub": hub, "union": union, "sites": sites, "masks": masks, "captions": captions,
    "audio_folder": audio_folder, "market": market, "npz": npz, "points": points,
    "faces_folder": faces_folder, "composed": composed,
}  # fmt: skip
GENERATED = {
    "digits", "scenes", "shifted_digits", "handwritten", "shapecap", "sounds", "pedestrians", "materials", "shapes",
    "noisy_digits",
    "silhouettes",
    "faces",
    "tiles",
    "rectangles",
    "edited_scenes",
}  # fmt: skip
"""Sources that make their samples and read nobody's files."""


def decomposed(text: str) -> str:
    """As some systems write names."""
    return unicodedata.normalize("NFD", text)


def missing(component: Component) -> Any:
    return build_source(component).missing()
