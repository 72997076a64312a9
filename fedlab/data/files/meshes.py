"""Reading meshes and point clouds from .off, .ply and .obj files, through trimesh."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from fedlab.data.files.reading import reading
from fedlab.errors import DataError
from fedlab.storage.plain import read_plain

SUFFIXES = frozenset({".off", ".ply", ".obj"})
UNREAD = "their ending is none of a shape (.off, .ply, .obj)"
"""Why a file is passed over where shapes are looked for."""
_KEY = "data.source.path"
_SHORTER = "set data.source.points to at most {}, or take the file out"


def is_shape(path: Path) -> bool:
    """Whether a file is a shape, judged by its ending."""
    return path.suffix.lower() in SUFFIXES


def require_trimesh(value: str) -> None:
    """Refuse to go on without trimesh.

    Raises:
        DataError: it is not installed.
    """
    try:
        import trimesh  # noqa: F401  only whether it is installed
    except ImportError:
        fix = "pip install 'fedlab-sim[points]', or save point clouds as one .npz file"
        raise DataError(_KEY, value, "the package trimesh, which reads .off, .ply and .obj files", fix) from None


def read_shape(path: Path, points: int, rng: np.random.Generator) -> np.ndarray:
    """A shape as a cloud (points, 3) float64.

    Points are drawn uniformly over the surface of a mesh. Of a file without faces, which is a cloud, some are chosen.

    Args:
        path: the file.
        points: number of points.
        rng: draws them.

    Raises:
        DataError: no such file, an unreadable one, coordinates that are not finite, a surface without area, or a cloud
            with too few points.
    """
    import trimesh

    fix = "the file is damaged or of another kind: take a whole copy, or take it out"
    with reading(_KEY, str(path), "a readable mesh or point cloud", fix):
        # from memory, so that no other file is opened, such as the materials that it names
        content = io.BytesIO(read_plain(path))
        shape: Any = trimesh.load(content, file_type=path.suffix[1:].lower(), process=False)
        if isinstance(shape, trimesh.Scene):
            if not shape.geometry:
                raise ValueError("it holds no vertices")
            shape = shape.to_geometry()
        vertices, faces = np.asarray(shape.vertices, np.float64), np.asarray(getattr(shape, "faces", ()))
        if vertices.ndim != 2 or vertices.shape[1] != 3 or not len(vertices):
            raise ValueError("it holds no vertices")
        if len(faces) and not (faces.min() >= 0 and faces.max() < len(vertices)):
            raise ValueError("a face names a vertex that is not there")
    if not np.isfinite(vertices).all():
        bad = int(np.flatnonzero(~np.isfinite(vertices).all(axis=1))[0])
        raise DataError(_KEY, str(path), "finite coordinates", f"vertex {bad} is NaN or infinite: {fix}")
    if not len(faces):
        return chosen(vertices, points, rng, str(path))
    if not shape.area > 0:
        raise DataError(_KEY, str(path), "a surface with an area", "all of its faces are empty: take the file out")
    sampled: np.ndarray = np.asarray(trimesh.sample.sample_surface(shape, points, seed=rng)[0], np.float64)
    return sampled


def chosen(cloud: np.ndarray, points: int, rng: np.random.Generator, what: str) -> np.ndarray:
    """Random `points` of a cloud (N, 3), all in their order if there are as many.

    Raises:
        DataError: there are fewer.
    """
    if len(cloud) < points:
        raise DataError(
            _KEY, f"{what}: {len(cloud)} points", f"at least {points}, data.source.points", _SHORTER.format(len(cloud))
        )
    return cloud if len(cloud) == points else cloud[rng.choice(len(cloud), points, replace=False)]
