"""Photos of clients without any text, and queries of composed retrieval: FashionIQ, CIRR, CIRCO, or your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from fedlab.config import Fraction, Positive, Section
from fedlab.data.classes import test_part
from fedlab.data.files.captions import Tokens, hub_tokens, tokenize
from fedlab.data.files.composed import Collection, Entry, Layout, Photo, Query, read_collection
from fedlab.data.files.images import UNREAD, PictureReader, is_picture
from fedlab.data.files.listing import Listing
from fedlab.data.files.reading import Gathered
from fedlab.data.files.spelling import one_form
from fedlab.data.generated.edits import WORDS
from fedlab.data.samples import Dataset, Samples
from fedlab.data.stand_in import Draws, Wanted, united
from fedlab.errors import DataError
from fedlab.seeding import numpy_generator
from fedlab.storage.paths import HubPath, InputPath
from fedlab.tracking.left_out import LeftOut

_KEY, _PHOTOS = "data.source.path", "data.source.photos"
_BERT = 30_522  # words of BERT's vocabulary, of which random captions are made


class ComposedSettings(Section):
    """Settings of the composed source."""

    layout: Layout = Field(
        default="jsonl",
        description="how the queries are written: fashioniq, cirr, circo: validation queries as published; jsonl: one "
        "query on each line",
    )
    path: InputPath = Field(description="root folder of the data set; the file of layout jsonl")
    photos: InputPath | None = Field(
        default=None,
        description="folder <client>/*.jpg of the clients' training photos; default: the training images of fashioniq, "
        "whose owners are the categories, or of cirr",
    )
    size: Positive = Field(
        default=224, description="height and width to which pictures are resized, ignoring their aspect"
    )
    tokenizer: HubPath | None = Field(
        default=None,
        description="hub name or folder of the tokenizer of a BLIP checkpoint; default: the 18 words of the small BLIP "
        "that comes with FedLab",
    )
    length: Positive = Field(default=40, description="number of tokens of a text, with [CLS] and [SEP]")
    distractors: int | None = Field(
        default=None,
        ge=0,
        description="number of gallery images that no query names, drawn at random; default: all. With fewer, "
        "retrieval is easier than as published",
    )
    test_fraction: Fraction = Field(default=0.1, lt=1, description="share of a client's photos that are test samples")
    data_seed: int = Field(
        default=0, ge=0, description="seed of test samples and distractors; independent of the run's seed"
    )


class Composed:
    """Your own photos without text, and queries of composed retrieval as in FashionIQ, CIRR or CIRCO, or in JSONL.

    The server holds ``gallery`` and ``queries`` as `fedlab.data.files.composed` describes them.
    """

    Settings = ComposedSettings

    def __init__(self, settings: ComposedSettings) -> None:
        self.settings = settings

    def missing(self) -> str | None:
        for key, given in (("path", self.settings.path), ("photos", self.settings.photos)):
            if given is not None and not Path(given).expanduser().exists():
                return f"no {given}; set data.source.{key}, see methods/isa/README.md"
        return None

    def load(self, seed: int) -> Dataset:
        s = self.settings
        found = read_collection(s.layout, s.path, _KEY)
        listing = None if s.photos is None else Listing(_PHOTOS, Path(s.photos).expanduser())
        photos = list(found.photos) if listing is None else _photos(listing)
        found, left_out = _without_gaps(found) if found.gaps else (found, [])
        if found.gaps and listing is None:
            photos, gone = _present(photos)
            left_out += [LeftOut("photos", gone, "their files are not there", gone + len(photos))] if gone else []
        if not photos:
            fix = "set data.source.photos to a folder with one folder of photos for each client"
            raise DataError(_PHOTOS, s.photos, "training photos, which this layout does not have", fix)
        gallery, cut = self._gallery(found)
        reader, broken = PictureReader(_KEY), Gathered("pictures")
        kinds = sorted({entry.kind for entry in gallery.values()} - {""})
        owners = tuple(sorted({photo.owner for photo in photos} - {""}))
        tokens = hub_tokens(s.tokenizer, s.length) if s.tokenizer else _known_words(found.queries, s.length)

        def owned(part: Sequence[Photo]) -> Samples:
            columns = {"image": self._images([photo.file for photo in part], reader, broken)}
            if not owners:
                return Samples(columns)
            owner = np.array([owners.index(photo.owner) for photo in part], np.int64)
            columns |= {"domain": owner, "group": owner}
            if not kinds or listing is not None:
                return Samples(columns, (), owners, owners)
            return Samples({**columns, "label": owner}, owners, owners, owners)

        train, test = (owned(part) for part in self._split(photos))
        server = self._server(found, gallery, kinds, tokens, reader, broken)
        broken.settle()
        texts = [text for query in found.queries for text in query.wordings]
        passed_over, warnings = ((), ()) if listing is None else (listing.left_out, listing.warnings)
        return Dataset(
            Path(s.path).stem, train, test, server, tokens.vocabulary,
            (*left_out, *cut, *passed_over, *reader.left_out, *tokens.left_out(texts)), warnings=warnings,
        )  # fmt: skip

    def stand_in(self, wanted: Wanted) -> Dataset:
        """Random pictures and texts instead of those that are not here, with one target for each query."""
        s = self.settings
        published = s.layout == "fashioniq" and s.photos is None

        def owned(split: str) -> dict[str, np.ndarray]:
            draws = Draws(wanted, split)
            owner = draws.dealt(wanted.domains)
            columns = {"image": draws.pictures(3, s.size, s.size), "domain": owner, "group": owner}
            return {**columns, "label": draws.label()} if published else columns

        draws, gallery = Draws(wanted, "queries"), Draws(wanted, "gallery")
        ids = 1000 + draws.whole(_BERT - 1000, 1, s.length)  # BERT's first 1,000 numbers are no words
        queries = {"reference": draws.whole(gallery.count), "text": ids, "targets": draws.whole(gallery.count, 1)}
        if s.layout in ("cirr", "jsonl"):
            queries["removed"] = queries["reference"][:, None]
        if s.layout == "cirr":
            queries["members"] = draws.whole(gallery.count, 6)
        held = {"gallery": {"image": gallery.pictures(3, s.size, s.size)}, "queries": queries}
        if published:
            held["gallery"]["label"], held["queries"]["label"] = gallery.label(), draws.label()
        vocabulary = [f"word{number}" for number in range(_BERT)]
        vocabulary[0], vocabulary[101], vocabulary[102] = "[PAD]", "[CLS]", "[SEP]"
        parts = {**{split: owned(split) for split in ("train", "test")}, **held}
        return united(Path(s.path).stem, wanted, parts, vocabulary=tuple(vocabulary))

    def _split(self, photos: Sequence[Photo]) -> tuple[list[Photo], list[Photo]]:
        """A share of every owner's photos become test samples."""
        s, tested = self.settings, set[Photo]()
        for owner in sorted({photo.owner for photo in photos}):
            own = sorted({photo for photo in photos if photo.owner == owner})
            drawn = numpy_generator(s.data_seed, "composed split", owner).permutation(len(own))
            count = test_part(len(own), int(len(own) * s.test_fraction))
            tested |= {own[int(place)] for place in drawn[:count]}
        return [p for p in photos if p not in tested], [p for p in photos if p in tested]

    def _gallery(self, found: Collection) -> tuple[dict[str, Entry], tuple[LeftOut, ...]]:
        """The images that are ranked."""
        most = self.settings.distractors
        named = {name for query in found.queries for name in query.images}
        others = [name for name in found.gallery if name not in named]
        if most is None or most >= len(others):
            return dict(found.gallery), ()
        drawn = numpy_generator(self.settings.data_seed, "composed distractors").permutation(len(others))[:most]
        kept = named | {others[int(place)] for place in drawn}
        why = f"data.source.distractors is {most}, so retrieval is easier than as published"
        gone = len(others) - most
        left = LeftOut("gallery images", gone, why, len(found.gallery), wanted=True)
        return {name: entry for name, entry in found.gallery.items() if name in kept}, (left,)

    def _server(
        self,
        found: Collection,
        gallery: Mapping[str, Entry],
        kinds: Sequence[str],
        tokens: Tokens,
        reader: PictureReader,
        broken: Gathered,
    ) -> dict[str, Samples]:
        number = {name: place for place, name in enumerate(gallery)}
        wordings = max(len(query.wordings) for query in found.queries)
        texts = [
            text for query in found.queries for text in (*query.wordings, *[""] * (wordings - len(query.wordings)))
        ]
        queries = {
            "reference": np.array([number[query.reference] for query in found.queries]),
            "text": tokens.encode(texts).reshape(len(found.queries), wordings, -1),
            "targets": _numbers([[number[name] for name in query.targets] for query in found.queries]),
        }
        if found.removes_reference:
            queries["removed"] = queries["reference"][:, None]
        if any(query.group for query in found.queries):
            queries["members"] = _numbers([[number[name] for name in query.group] for query in found.queries])
        pictures = {"image": self._images([entry.file for entry in gallery.values()], reader, broken)}
        if len(kinds) > 1:
            queries["label"] = np.array([kinds.index(query.kind) for query in found.queries])
            pictures["label"] = np.array([kinds.index(entry.kind) for entry in gallery.values()])
        names = tuple(kinds) if len(kinds) > 1 else ()
        return {"gallery": Samples(pictures, names), "queries": Samples(queries, names)}

    def _images(self, files: Sequence[Path], reader: PictureReader, broken: Gathered) -> np.ndarray:
        images = np.zeros((len(files), 3, self.settings.size, self.settings.size), np.uint8)

        def read(row: int, file: Path) -> None:
            images[row] = reader.read(file, self.settings.size, 3)

        broken.read(files, read)
        return images


def _photos(listing: Listing) -> list[Photo]:
    """The photos in the folders of the clients."""
    folders = listing.folders(listing.root) if listing.root.is_dir() else []
    found = [
        Photo(file, one_form(folder.name))
        for folder in folders
        for file in listing.files(folder, is_picture, UNREAD)
    ]  # fmt: skip
    if not found:
        raise DataError(_PHOTOS, str(listing.root), "a folder with one folder of photos for each client")
    return found


def _present(photos: Sequence[Photo]) -> tuple[list[Photo], int]:
    here = [photo for photo in photos if photo.file.exists()]
    return here, len(photos) - len(here)


def _without_gaps(found: Collection) -> tuple[Collection, list[LeftOut]]:
    """The collection without images that are not there, and without queries whose reference or targets these are.

    Raises:
        DataError: no query is left.
    """
    gallery = {name: entry for name, entry in found.gallery.items() if entry.file.exists()}
    queries = [
        query._replace(targets=tuple(name for name in query.targets if name in gallery))
        for query in found.queries
        if query.reference in gallery and any(name in gallery for name in query.targets)
    ]
    if not queries:
        lost = next(entry.file for entry in found.gallery.values() if not entry.file.exists())
        raise DataError(_KEY, str(lost), "image files for at least one query: there is no such file")
    left_out = []
    for what, kept, total in (("gallery images", gallery, found.gallery), ("queries", queries, found.queries)):
        if len(kept) < len(total):
            why = "their files are not there" if what != "queries" else "their reference or target is not there"
            left_out.append(LeftOut(what, len(total) - len(kept), why, len(total)))
    return Collection(gallery, queries, found.photos, found.removes_reference, found.gaps), left_out


def _numbers(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Rows of different lengths, filled up with −1, (n, longest)."""
    longest = max(map(len, rows))
    return np.array([[*row, *[-1] * (longest - len(row))] for row in rows], np.int64)


def _known_words(queries: Sequence[Query], length: int) -> Tokens:
    """The words of the small BLIP as tokens.

    Raises:
        DataError: a text has other words.
    """
    index = {word: number for number, word in enumerate(WORDS)}
    known = {word for word in WORDS if not word.startswith("[")}
    for query in queries:
        for text in query.wordings:
            unknown = [word for word in tokenize(text) if word not in known]
            if unknown:
                expected = f"words that the small BLIP knows ({', '.join(sorted(known))}); {unknown[0]!r} is none"
                fix = "set data.source.tokenizer and method.vl.pretrained to a BLIP checkpoint"
                raise DataError("data.source.tokenizer", text, expected, fix)

    def encode(texts: Sequence[str]) -> np.ndarray:
        ids = np.zeros((len(texts), length), np.int64)
        for row in (row for row, text in enumerate(texts) if text):
            text = texts[row]
            found = [index[word] for word in ("[CLS]", *tokenize(text)[: length - 2], "[SEP]")]
            ids[row, : len(found)] = found
        return ids

    return Tokens(WORDS, encode, lambda texts: ([2 + len(tokenize(text)) for text in texts], 0), length)
