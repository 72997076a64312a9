"""Folders of small pictures as three sites have them: of different sizes and looks, and one lacks a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("bars", "disk", "ring")
COUNTS = {
    "berlin": {"bars": 12, "disk": 9, "ring": 10},
    "lyon": {"bars": 8, "disk": 14},
    "oslo": {"bars": 7, "disk": 8, "ring": 16},
}
"""Pictures of each site by class; lyon has no rings."""
_COLORS = {"berlin": (220, 60, 40), "lyon": (60, 200, 80), "oslo": (90, 110, 230)}


def write_sites(root: Path, size: int = 16) -> dict[str, Path]:
    """Write ``SITE/CLASS/NUMBER.png`` for every site. Equal calls write equal pictures.

    Args:
        root: folder that is to hold the sites' folders.
        size: height and width of the pictures.

    Returns:
        The folder of each site, in the order of `COUNTS`.
    """
    return {site: write_site(root / site, site, size) for site in COUNTS}


def write_site(folder: Path, site: str, size: int = 16) -> Path:
    """Write the pictures of one site into a folder."""
    rng = np.random.default_rng(list(COUNTS).index(site))
    for name, count in COUNTS[site].items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture = rng.integers(0, 60, (size, size, 3)).astype(np.uint8)
            picture[_shape(name, size, rng)] = _COLORS[site]
            Image.fromarray(picture).save(folder / name / f"{number:02d}.png")
    return folder


def source(folders: dict[str, Path], size: int = 16) -> dict[str, object]:
    """The data source of a configuration whose sites have these folders."""
    sites = {site: {"name": "folder", "path": str(folder), "size": size} for site, folder in folders.items()}
    return {"name": "sites", "sites": sites, "classes": list(CLASSES), "columns": {"image": [3, size, size]}}


def write_node(file: Path, site: str, folder: Path, **changes: object) -> Path:
    """Write the file of a node, whose state lies beside it.

    Args:
        file: the file.
        site: name of the site.
        folder: of its pictures.
        changes: settings of its source that differ.
    """
    settings = {"name": "folder", "path": str(folder), "size": 16, **changes}
    lines = [f"site: {site}", "data:", *(f"  {key}: {value}" for key, value in settings.items())]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def _shape(name: str, size: int, rng: np.random.Generator) -> np.ndarray:
    row, column = np.indices((size, size))
    middle = (size - 1) / 2 + rng.uniform(-size / 8, size / 8, 2)
    distance = np.hypot(row - middle[0], column - middle[1])
    shapes = {
        "bars": (column + int(rng.integers(0, 4))) // 2 % 2 == 0,
        "disk": distance < size * 0.3,
        "ring": np.abs(distance - size * 0.32) < size * 0.1,
    }
    return shapes[name]
