"""Queries of composed retrieval from JSON files, as in FashionIQ, CIRR and CIRCO, or in a layout of FedLab's own.

A query is a reference image and a text that says how the wanted image differs from it. As sample sets of the server:
``gallery`` has the columns ``image`` and, if there are several kinds of images, ``label`` (m,). ``queries`` has
``reference`` (n,), the number of the reference in the gallery; ``text`` (n, V, L), one or more wordings of the text,
filled up with rows of zeros; ``targets`` (n, T), numbers of the wanted images, the first one first, filled up with −1;
and, where there are such, ``removed`` (n, R), images that are not ranked; ``members`` (n, G), the images of the query's
group; ``label`` (n,), the kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fedlab.data.files.jsontext import parse_json
from fedlab.data.files.listing import Listing
from fedlab.data.files.reading import read_each
from fedlab.data.files.spelling import checked_name, one_form
from fedlab.data.files.text import lines_of, read_text
from fedlab.errors import DataError, did_you_mean

Layout = Literal["fashioniq", "cirr", "circo", "jsonl"]
CATEGORIES = ("dress", "shirt", "toptee")
"""The kinds of FashionIQ."""
_KEYS = ("reference", "caption", "captions", "target", "targets", "group")
_EXAMPLE = 'such as {"reference": "a.png", "caption": "but blue", "target": "b.png"}'
_STRIPPED = ".?, "  # around the two captions of FashionIQ before they are joined, as in SEARLE's evaluation
_COCO = "COCO2017_unlabeled"


class Entry(NamedTuple):
    """An image of the gallery.

    Args:
        file: the image.
        kind: its kind, or ``""``.
    """

    file: Path
    kind: str = ""


class Photo(NamedTuple):
    """A training image without any text.

    Args:
        file: the image.
        owner: its kind or natural owner, or ``""``.
    """

    file: Path
    owner: str = ""


class Query(NamedTuple):
    """A query; images are named as in the gallery.

    Args:
        reference: the reference image.
        wordings: the text; the vectors of several wordings are averaged.
        targets: the wanted images, the first one first.
        group: images of a smaller choice, or none.
        kind: its kind, or ``""``.
    """

    reference: str
    wordings: tuple[str, ...]
    targets: tuple[str, ...]
    group: tuple[str, ...] = ()
    kind: str = ""

    @property
    def images(self) -> tuple[str, ...]:
        """All images that it names."""
        return self.reference, *self.targets, *self.group


@dataclass(frozen=True)
class Collection:
    """What the files of a layout say.

    Args:
        gallery: images by name.
        queries: the queries.
        photos: training images, if the layout has any.
        removes_reference: whether the reference is not ranked.
        gaps: whether images that are listed may be missing, as in published lists of pages that have gone.
    """

    gallery: Mapping[str, Entry]
    queries: Sequence[Query]
    photos: Sequence[Photo] = ()
    removes_reference: bool = False
    gaps: bool = False


def read_collection(layout: Layout, path: str, key: str) -> Collection:
    """What the files of a layout say; no image is opened.

    Args:
        layout: the layout.
        path: the root folder of the data set, or the file of ``jsonl``.
        key: configuration key of the path, for messages.

    Raises:
        DataError: a file is missing or broken, or a query names an image that the gallery does not list.
    """
    place = Path(path).expanduser()
    checked_name(str(place), key, "a path")
    found = _READERS[layout](place, key)
    if not found.queries:
        raise DataError(key, path, "at least one query")

    def check(_: int, query: Query) -> None:
        unknown = [name for name in query.images if name not in found.gallery]
        if unknown:
            raise DataError(f"{key}: a query", unknown[0], "an image that the list of the gallery names")

    read_each(found.queries, check, "queries")
    return found


def _fashioniq(root: Path, key: str) -> Collection:
    """``captions/cap.<category>.val.json``, ``image_splits/split.<category>.{train,val}.json``, ``images/``."""
    kinds = [kind for kind in CATEGORIES if (root / "captions" / f"cap.{kind}.val.json").exists()]
    if not kinds:
        expected = f"captions/cap.<category>.val.json, where the category is {', '.join(CATEGORIES)}"
        raise DataError(key, str(root), expected, "give the root folder of FashionIQ")
    listing, gallery, queries, photos = Listing(key, root), dict[str, Entry](), list[Query](), list[Photo]()
    for kind in kinds:
        for name in _names(root / "image_splits" / f"split.{kind}.val.json", key):
            gallery[f"{kind}/{name}"] = Entry(_picture(root, name, listing), kind)
        split = root / "image_splits" / f"split.{kind}.train.json"
        if split.exists():
            photos += [Photo(_picture(root, name, listing), kind) for name in _names(split, key)]

        def query(raw: Any, where: str, kind: str = kind) -> Query:
            reference, target = (f"{kind}/{_text(raw, part, where)}" for part in ("candidate", "target"))
            return Query(reference, _both_orders(_texts(raw, "captions", where)), (target,), kind=kind)

        queries += _items(root / "captions" / f"cap.{kind}.val.json", key, query)
    return Collection(gallery, queries, photos, gaps=True)


def _cirr(root: Path, key: str) -> Collection:
    """``cirr/captions/cap.rc2.val.json`` and ``cirr/image_splits/split.rc2.{train,val}.json``."""
    splits = root / "cirr" / "image_splits"
    gallery = {name: Entry(file) for name, file in _places(splits / "split.rc2.val.json", root, key).items()}
    train = splits / "split.rc2.train.json"
    photos = [Photo(file) for file in _places(train, root, key).values()] if train.exists() else []

    def query(raw: Any, where: str) -> Query:
        reference, target = _text(raw, "reference", where), _text(raw, "target_hard", where)
        members = _texts(_part(raw, "img_set", where), "members", f"{where}: img_set")
        return Query(reference, (_text(raw, "caption", where),), (target,), members)

    queries = _items(root / "cirr" / "captions" / "cap.rc2.val.json", key, query)
    return Collection(gallery, queries, photos, removes_reference=True)


def _circo(root: Path, key: str) -> Collection:
    """``annotations/val.json`` and the unlabeled images of COCO 2017."""
    info = root / _COCO / "annotations" / "image_info_unlabeled2017.json"
    raw = _part(_json(info, key), "images", f"{key}: {info.name}")
    gallery: dict[str, Entry] = {}

    def image(row: int, item: Any) -> None:
        where = f"{key}: {info.name}: image {row}"
        gallery[_text(item, "id", where)] = Entry(root / _COCO / "unlabeled2017" / _text(item, "file_name", where))

    read_each(_list(raw, f"{key}: {info.name}: images"), image, "images")

    def query(raw: Any, where: str) -> Query:
        target = _text(raw, "target_img_id", where)
        targets = dict.fromkeys([target, *_texts(raw, "gt_img_ids", where)])
        reference = _text(raw, "reference_img_id", where)
        return Query(reference, (_text(raw, "relative_caption", where),), tuple(targets))

    return Collection(gallery, _items(root / "annotations" / "val.json", key, query))


def _jsonl(file: Path, key: str) -> Collection:
    """One query on each line; images are relative to the file, and the gallery is all that are named."""
    listing, gallery, queries = Listing(key, file), dict[str, Entry](), list[Query]()
    lines = [(number, line) for number, line in enumerate(lines_of(read_text(file, key)), 1) if line.strip()]

    def read(_: int, numbered: tuple[int, str]) -> None:
        number, line = numbered
        where = f"{key}: line {number}"
        raw = parse_json(line, where, line, f"a JSON object, {_EXAMPLE}")
        for name in raw if isinstance(raw, dict) else ():
            if name not in _KEYS:
                raise DataError(where, name, f"keys among {', '.join(_KEYS)}", did_you_mean(name, _KEYS))
        group = _texts(raw, "group", where) if "group" in raw else ()
        found = Query(
            _text(raw, "reference", where), _either(raw, "caption", where), _either(raw, "target", where), group
        )
        for name in found.images:
            gallery.setdefault(name, Entry(listing.find(file.parent / name)))
        queries.append(found)

    read_each(lines, read, "lines")
    return Collection(gallery, queries, removes_reference=True)


_READERS: dict[Layout, Callable[[Path, str], Collection]] = {
    "fashioniq": _fashioniq,
    "cirr": _cirr,
    "circo": _circo,
    "jsonl": _jsonl,
}


def _json(file: Path, key: str) -> Any:
    """What a file of JSON says."""
    return parse_json(read_text(file, key), key, str(file))


def _items(file: Path, key: str, read: Callable[[Any, str], Query]) -> list[Query]:
    """The queries of a file with a JSON list; all broken ones are told at once."""
    found: list[Query] = []
    items = _list(_json(file, key), f"{key}: {file.name}")
    read_each(items, lambda row, raw: found.append(read(raw, f"{key}: {file.name}: query {row}")), "queries")
    return found


def _names(file: Path, key: str) -> list[str]:
    """A JSON list of names."""
    names = _list(_json(file, key), f"{key}: {file.name}")
    return [_as_text(name, f"{key}: {file.name}") for name in names]


def _places(file: Path, root: Path, key: str) -> dict[str, Path]:
    """A JSON object of names and the places of their images below the root."""
    raw = _json(file, key)
    if not isinstance(raw, Mapping):
        raise DataError(f"{key}: {file.name}", type(raw).__name__, "names of images and their places")
    return {one_form(name): root / _as_text(place, f"{key}: {file.name}: {name}") for name, place in raw.items()}


def _picture(root: Path, name: str, listing: Listing) -> Path:
    """An image of FashionIQ, which different downloads store with different endings."""
    files = [listing.find(root / "images" / f"{name}{ending}") for ending in (".jpg", ".png", ".jpeg")]
    return next((file for file in files if file.exists()), files[0])


def _both_orders(captions: Sequence[str]) -> tuple[str, ...]:
    """``c1 and c2`` and ``c2 and c1``."""
    parts = [text.strip(_STRIPPED) for text in captions]
    return tuple(dict.fromkeys(" and ".join(order) for order in (parts, parts[::-1])))


def _either(raw: Any, name: str, where: str) -> tuple[str, ...]:
    """The text ``name``, or the list ``names`` of texts."""
    several = f"{name}s"
    if isinstance(raw, Mapping) and (name in raw) == (several in raw):
        raise DataError(where, sorted(raw), f"either {name!r} or {several!r}", _EXAMPLE)
    return (_text(raw, name, where),) if not isinstance(raw, Mapping) or name in raw else _texts(raw, several, where)


def _part(raw: Any, name: str, where: str) -> Any:
    if not isinstance(raw, Mapping) or name not in raw:
        shown = sorted(raw) if isinstance(raw, Mapping) else type(raw).__name__
        raise DataError(where, shown, f"a JSON object with the key {name!r}")
    return raw[name]


def _list(raw: Any, where: str) -> Sequence[Any]:
    if not isinstance(raw, list):
        raise DataError(where, type(raw).__name__, "a JSON list")
    return raw


def _text(raw: Any, name: str, where: str) -> str:
    return _as_text(_part(raw, name, where), f"{where}: {name}")


def _texts(raw: Any, name: str, where: str) -> tuple[str, ...]:
    found: Iterable[Any] = _list(_part(raw, name, where), f"{where}: {name}")
    texts = tuple(_as_text(value, f"{where}: {name}") for value in found)
    if not texts:
        raise DataError(f"{where}: {name}", "an empty list", "at least one text")
    return texts


def _as_text(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise DataError(where, value, "text or a whole number")
    return one_form(str(value).strip())
