"""Your own images with captions, from a JSONL file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field

from fedlab.config import Fraction, Positive, Section
from fedlab.data.classes import test_part
from fedlab.data.files.captions import NEGATIVE, Tokens, hub_tokens, negative_columns, tokenize, word_tokens
from fedlab.data.files.images import UNREAD, PictureReader, is_picture
from fedlab.data.files.listing import Listing
from fedlab.data.files.pairs import GIVEN, Pair, read_pairs
from fedlab.data.files.reading import Gathered
from fedlab.data.files.spelling import one_form
from fedlab.data.generated.negatives import KINDS, NegativeRules
from fedlab.data.samples import Dataset, Samples
from fedlab.data.stand_in import Draws, Wanted, united
from fedlab.errors import DataError, did_you_mean
from fedlab.seeding import numpy_generator
from fedlab.storage.paths import HubPath, InputPath

_LENGTH, _FALSE = 77, 4  # of random captions: the tokens of one, and the false ones of a sample


def _known_kinds(kinds: tuple[str, ...]) -> tuple[str, ...]:
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"names of rules: {kind!r} is not one; {did_you_mean(kind, KINDS)}")
    return kinds


class RulesSettings(Section):
    """Rules that make false captions of the kinds that the file does not have."""

    kinds: Annotated[tuple[str, ...], AfterValidator(_known_kinds)] = Field(
        min_length=1, description=f"kinds of false captions to make: {', '.join(KINDS)}"
    )
    adjectives: tuple[str, ...] = Field(default=(), description="words that exclude each other: red, blue, …")
    nouns: tuple[str, ...] = Field(default=(), description="words that exclude each other: dog, horse, …")
    relations: dict[str, str] = Field(
        default={}, description="relations and their opposites, such as {left of: right of, right of: left of}"
    )

    def make(self) -> NegativeRules:
        """The rules over these words."""
        relations = {tuple(tokenize(one)): tuple(tokenize(other)) for one, other in self.relations.items()}
        adjectives, nouns = ({word.lower() for word in words} for words in (self.adjectives, self.nouns))
        return NegativeRules(adjectives, nouns, relations)


class CaptionsSettings(Section):
    """Settings of the captions source."""

    path: InputPath = Field(
        description="JSONL file with one pair per line; keys image and caption, optionally negatives, client, label "
        "and split"
    )
    size: Positive = Field(
        default=224, description="height and width to which pictures are resized, ignoring their aspect"
    )
    tokenizer: HubPath | None = Field(
        default=None, description="hub name or folder of a tokenizer; default: the words of the captions are tokens"
    )
    length: Positive | None = Field(
        default=None,
        description="number of tokens of a caption, including its end; default: that of the longest caption, or the "
        "tokenizer's maximum",
    )
    rules: RulesSettings | None = Field(
        default=None, description="rules that make false captions from the clients' captions; default: none are made"
    )
    test_fraction: Fraction = Field(
        default=0.2, lt=1, description="share of the images that become test samples, if the lines have no key split"
    )
    composition: InputPath | None = Field(
        default=None, description="JSONL file of test pairs with false captions that the server holds"
    )
    zeroshot: InputPath | None = Field(
        default=None, description="folder <class>/*.png of test images that the server holds"
    )
    prompts: tuple[str, ...] = Field(
        default=("a photo of a {}.",),
        min_length=1,
        description="captions by which a zero-shot class is recognized; {} stands for the name of its folder",
    )
    pretrain: InputPath | None = Field(default=None, description="JSONL file of pairs on which the server pretrains")
    data_seed: int = Field(
        default=0, ge=0, description="seed for the test samples and the false captions; independent of the run's seed"
    )


class Captions:
    """Your own images with captions and optional false captions, as one JSON object per line."""

    Settings = CaptionsSettings

    def __init__(self, settings: CaptionsSettings) -> None:
        self.settings = settings

    def missing(self) -> str | None:
        for key in ("path", "composition", "zeroshot", "pretrain"):
            given = getattr(self.settings, key)
            if given is not None and not Path(given).expanduser().exists():
                return f"no {given}; set data.source.{key} to a {'folder' if key == 'zeroshot' else 'JSONL file'}"
        return None

    def load(self, seed: int) -> Dataset:
        s = self.settings
        train, test = self._split(read_pairs(s.path, "path"))
        held = {key: read_pairs(path, key) for key in ("composition", "pretrain") if (path := getattr(s, key))}
        train, test = self._with_rules(train, test)
        reader, broken = PictureReader("data.source.path"), Gathered("pictures")
        classes, zeroshot, listing = self._classes()
        prompts = [(template.replace("{}", name), row) for row, name in enumerate(classes) for template in s.prompts]
        every = list(chain(train, test, *held.values()))
        captions = [*chain(*(pair.captions for pair in every)), *(text for text, _ in prompts)]
        tokens = self._tokens(captions)
        kinds = _most((*train, *test))
        names = {key: tuple(sorted({getattr(p, key) for p in (*train, *test)} - {""})) for key in ("label", "client")}

        def samples(pairs: Sequence[Pair], kinds: Mapping[str, int]) -> Samples:
            images = self._images([pair.image for pair in pairs], reader, broken)
            columns = {"image": images, **_text(pairs, kinds, tokens.encode)}
            return Samples(columns)

        def owned(pairs: Sequence[Pair]) -> Samples:
            columns = dict(samples(pairs, kinds).columns)
            for column, key in (("label", "label"), ("domain", "client"), ("group", "client")):
                if names[key]:
                    columns[column] = np.array([names[key].index(getattr(pair, key)) for pair in pairs], np.int64)
            return Samples(columns, names["label"], names["client"] or Samples.domain_names, names["client"])

        server = {key: samples(pairs, _most(pairs) if key == "composition" else {}) for key, pairs in held.items()}
        if classes:
            server |= self._zeroshot(classes, zeroshot, prompts, tokens.encode, reader, broken)
        parts = owned(train), owned(test)
        broken.settle()
        passed_over, warnings = ((), ()) if listing is None else (listing.left_out, listing.warnings)
        left_out = (*passed_over, *reader.left_out, *tokens.left_out(captions))
        return Dataset(Path(s.path).stem, *parts, server, tokens.vocabulary, left_out, warnings=warnings)

    def stand_in(self, wanted: Wanted) -> Dataset:
        """Random pictures and captions, with four false ones each, instead of those that are not here."""
        s = self.settings
        length = s.length or _LENGTH

        def columns(split: str) -> dict[str, np.ndarray]:
            draws = Draws(wanted, split)
            image = {"image": draws.pictures(3, s.size, s.size)}
            if split == "zeroshot":
                return {**image, "label": draws.label()}
            false = {f"{NEGATIVE}{GIVEN}": draws.captions(length, _FALSE)} if split != "pretrain" else {}
            owned = {"label": draws.label()} if split in ("train", "test") else {}
            return {**image, "text": draws.captions(length), **false, **owned}

        held = [key for key in ("composition", "zeroshot", "pretrain") if getattr(s, key)]
        parts = {split: columns(split) for split in ("train", "test", *held)}
        if "zeroshot" in held:
            prompts = Draws(wanted, "prompts", wanted.classes * len(s.prompts))
            parts["prompts"] = {"text": prompts.captions(length), "label": prompts.label()}
        return united(Path(s.path).stem, wanted, parts, vocabulary=wanted.vocabulary)

    def _split(self, pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
        """As the lines say, or by image: captions of one image stay together."""
        if not any(pair.split for pair in pairs):
            files = sorted({pair.image for pair in pairs})
            drawn = numpy_generator(self.settings.data_seed, "captions split").permutation(len(files))
            count = test_part(len(files), int(len(files) * self.settings.test_fraction))
            tested = {files[int(i)] for i in drawn[:count]}
            parts = [[p for p in pairs if (p.image in tested) == test] for test in (False, True)]
        else:
            parts = [[p for p in pairs if p.split == split] for split in ("train", "test")]
        for split, part in zip(("train", "test"), parts, strict=True):
            if not part:
                raise DataError(
                    "data.source.path", self.settings.path, f"{split} pairs", "add some, or see test_fraction"
                )
        return parts[0], parts[1]

    def _with_rules(self, *splits: Sequence[Pair]) -> list[list[Pair]]:
        """The pairs, completed with rule-made false captions of the kinds that a pair lacks."""
        s = self.settings.rules
        if s is None:
            return [list(pairs) for pairs in splits]
        rules, made = s.make(), dict.fromkeys(s.kinds, 0)
        ruled: list[list[Pair]] = []
        for part, pairs in enumerate(splits):
            ruled.append([])
            for row, pair in enumerate(pairs):
                rng, words = (
                    numpy_generator(self.settings.data_seed, "captions rules", part, row),
                    tokenize(pair.caption),
                )
                new = {k: rules.make(k, words, rng) for k in s.kinds if k not in pair.negatives}
                found = {kind: (" ".join(changed),) for kind, changed in new.items() if changed is not None}
                ruled[-1].append(pair.with_negatives(found))
                for kind in s.kinds:
                    made[kind] += kind in ruled[-1][-1].negatives
        for kind, count in made.items():
            if not count:
                raise DataError(
                    "data.source.rules.kinds", kind, "a rule that applies to some caption",
                    "list words of the captions in adjectives, nouns or relations, or leave the kind out",
                )  # fmt: skip
        return ruled

    def _tokens(self, captions: Iterable[str]) -> Tokens:
        s = self.settings
        return hub_tokens(s.tokenizer, s.length) if s.tokenizer else word_tokens(captions, s.length)

    def _images(self, files: Sequence[Path], reader: PictureReader, broken: Gathered) -> np.ndarray:
        images = np.zeros((len(files), 3, self.settings.size, self.settings.size), np.uint8)
        rows: dict[Path, list[int]] = {}
        for row, file in enumerate(files):
            rows.setdefault(file, []).append(row)

        def read(_: int, file: Path) -> None:
            images[rows[file]] = reader.read(file, self.settings.size, 3)

        broken.read(list(rows), read)
        return images

    def _classes(self) -> tuple[tuple[str, ...], list[tuple[Path, int]], Listing | None]:
        """Names of the zero-shot classes, their pictures each with its class, and the list of what lies there."""
        if self.settings.zeroshot is None:
            return (), [], None
        key, root = "data.source.zeroshot", Path(self.settings.zeroshot).expanduser()
        listing = Listing(key, root)
        folders = listing.folders(root) if root.is_dir() else []
        names = tuple(sorted({one_form(folder.name) for folder in folders}))
        if len(names) < 2:
            raise DataError(key, str(root), "a folder with a folder of images for each class")
        by_class = {folder: listing.files(folder, is_picture, UNREAD) for folder in folders}
        for folder, found in by_class.items():
            if not found:
                raise DataError(key, str(folder), "image files in every class folder", "add some, or remove the folder")
        # the classes in order, whatever form their names have on the disk
        rows = [(file, names.index(one_form(folder.name))) for folder, found in by_class.items() for file in found]
        return names, sorted(rows, key=lambda file_row: file_row[1]), listing

    def _zeroshot(
        self,
        classes: Sequence[str],
        files: Sequence[tuple[Path, int]],
        prompts: Sequence[tuple[str, int]],
        encode: Callable[[Sequence[str]], np.ndarray],
        reader: PictureReader,
        broken: Gathered,
    ) -> dict[str, Samples]:
        labels = np.array([row for _, row in files], np.int64)
        texts, rows = encode([text for text, _ in prompts]), np.array([row for _, row in prompts], np.int64)
        return {
            "zeroshot": Samples(
                {"image": self._images([file for file, _ in files], reader, broken), "label": labels}, tuple(classes)
            ),
            "prompts": Samples({"text": texts, "label": rows}, tuple(classes)),
        }


def _most(pairs: Iterable[Pair]) -> dict[str, int]:
    """Kinds of false captions, each with the largest number that a pair has."""
    most: dict[str, int] = {}
    for pair in pairs:
        for kind, captions in pair.negatives.items():
            most[kind] = max(most.get(kind, 0), len(captions))
    return dict(sorted(most.items()))


def _text(
    pairs: Sequence[Pair], kinds: Mapping[str, int], encode: Callable[[Sequence[str]], np.ndarray]
) -> dict[str, np.ndarray]:
    text = encode([pair.caption for pair in pairs])
    return {"text": text, **negative_columns([pair.negatives for pair in pairs], kinds, encode)}
