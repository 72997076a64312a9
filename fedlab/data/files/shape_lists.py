"""Lists that say which files of shapes train and which test, as ShapeNet-55 has them."""

from __future__ import annotations

from pathlib import Path

from fedlab.data.files.listing import Listing
from fedlab.data.files.meshes import UNREAD, is_shape
from fedlab.data.files.spelling import checked_name, one_form
from fedlab.data.files.text import lines_of, read_text
from fedlab.errors import DataError

_KEY = "data.source.lists"
_LARGEST = 100_000_000  # bytes; ShapeNet-55's list of 41,952 shapes has 2 million


def listed(lists: Path, folder: Path, listing: Listing) -> dict[str, list[tuple[Path, str]]]:
    """Path and class of the files that ``train.txt`` and ``test.txt`` name.

    Args:
        lists: folder of the two lists. Each line is the name of a file, ``<class>-<shape>.<ending>``.
        folder: folder of the files.
        listing: what it finds in `folder` beside them is counted there.

    Raises:
        DataError: no such list, or a line that is no name of a shape, says no class, or stands there twice.
    """
    found: dict[str, list[tuple[Path, str]]] = {}
    seen: dict[str, str] = {}
    for split in ("train", "test"):
        path = lists / f"{split}.txt"
        lines = [line.strip() for line in lines_of(read_text(path, _KEY, _LARGEST))]
        found[split] = [(folder / line, _class(line, path, number)) for number, line in enumerate(lines, 1) if line]
        for file, _ in found[split]:
            if file.name in seen:
                where = f"{file.name} in {path}"
                raise DataError(_KEY, where, f"each file once, but {seen[file.name]} names it too", "take one line out")
            seen[file.name] = path.name
    for file in listing.files(folder, is_shape, UNREAD):
        if file.name not in seen:
            listing.skip(file, "neither train.txt nor test.txt names them")
    return found


def _class(line: str, path: Path, number: int) -> str:
    """The class that a line says."""
    name, separator, shape = line.partition("-")
    where = f"{line!r} in line {number} of {path}"
    if Path(line).name != line or "\\" in line or not is_shape(Path(line)):
        raise DataError(_KEY, where, "the name of a file without folders, such as 02691156-1a04e3.npy", "correct it")
    if not (name and separator and shape):
        raise DataError(_KEY, where, "<class>-<shape>.npy, whose first part is the class", "rename file and line")
    return checked_name(one_form(name), _KEY, "a class")
