"""Reading meshes and point clouds: .off, .ply and .obj files through trimesh, .npy files through NumPy."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fedlab.data.files.reading import reading
from fedlab.errors import DataError
from fedlab.storage.plain import read_plain

_MESHES = frozenset({".off", ".ply", ".obj"})
SUFFIXES = _MESHES | {".npy"}
UNREAD = "their ending is none of a shape (.off, .ply, .obj, .npy)"
"""Why a file is passed over where shapes are looked for."""
_KEY = "data.source.path"
_SHORTER = "set data.source.points to at most {}, or take the file out"


def is_shape(path: Path) -> bool:
    """Whether a file is a shape, judged by its ending."""
    return path.suffix.lower() in SUFFIXES


def require_trimesh(value: str, files: Iterable[Path]) -> None:
    """Refuse to go on without trimesh if one of the files needs it.

    Args:
        value: the configured path, for the error.
        files: all files that are to be read.

    Raises:
        DataError: it is needed and not installed.
    """
    if not any(file.suffix.lower() in _MESHES for file in files):
        return
    try:
        import trimesh  # noqa: F401  only whether it is installed
    except ImportError:
        fix = "pip install 'fedlab-sim[points]', or save point clouds as .npy files or one .npz file"
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
    fix = "the file is damaged or of another kind: take a whole copy, or take it out"
    if path.suffix.lower() == ".npy":
        return chosen(_array(path, fix), points, rng, str(path))
    import trimesh

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
    _check_finite(vertices, path, fix)
    if not len(faces):
        return chosen(vertices, points, rng, str(path))
    if not shape.area > 0:
        raise DataError(_KEY, str(path), "a surface with an area", "all of its faces are empty: take the file out")
    sampled: np.ndarray = np.asarray(trimesh.sample.sample_surface(shape, points, seed=rng)[0], np.float64)
    return sampled


def _array(path: Path, fix: str) -> np.ndarray:
    """The cloud (N, 3) float64 of an .npy file."""
    with reading(_KEY, str(path), "a point cloud, saved by numpy.save as an array of shape (N, 3)", fix):
        cloud = np.load(io.BytesIO(read_plain(path)), allow_pickle=False)
        if not isinstance(cloud, np.ndarray):
            raise ValueError("it holds several arrays")
        if cloud.ndim != 2 or cloud.shape[1] != 3 or cloud.dtype.kind not in "fiu":
            raise ValueError(f"it holds shape {cloud.shape}, dtype {cloud.dtype}")
    _check_finite(cloud, path, fix)
    return cloud.astype(np.float64)


def _check_finite(vertices: np.ndarray, path: Path, fix: str) -> None:
    finite = np.isfinite(vertices).all(axis=1)
    if not finite.all():
        bad = int(np.argmin(finite))
        raise DataError(_KEY, str(path), "finite coordinates", f"vertex {bad} is NaN or infinite: {fix}")


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
