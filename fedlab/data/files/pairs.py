"""Image-caption pairs from a JSONL file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedlab.data.files.captions import tokenize
from fedlab.data.files.jsontext import parse_json
from fedlab.data.files.listing import Listing
from fedlab.data.files.reading import read_each
from fedlab.data.files.spelling import checked_name, one_form
from fedlab.data.files.text import lines_of, read_text
from fedlab.errors import DataError, did_you_mean

GIVEN = "given"
"""Kind of false captions that a file lists without kinds."""
_KEYS = ("image", "caption", "negatives", "client", "label", "split")
_KIND = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")


@dataclass(frozen=True)
class Pair:
    """One line.

    Args:
        image: file.
        caption: true of the image.
        negatives: kind → captions that are false of it.
        client: natural owner, or ``""``.
        label: class by which partition steps may skew, or ``""``.
        split: ``train``, ``test`` or ``""``.
    """

    image: Path
    caption: str
    negatives: Mapping[str, tuple[str, ...]]
    client: str = ""
    label: str = ""
    split: str = ""

    @property
    def captions(self) -> tuple[str, ...]:
        """All of them, the true one first."""
        return self.caption, *(text for found in self.negatives.values() for text in found)

    def with_negatives(self, more: Mapping[str, tuple[str, ...]]) -> Pair:
        """A copy with false captions of further kinds."""
        return replace(self, negatives={**self.negatives, **more})


def read_pairs(path: str, key: str) -> list[Pair]:
    """The pairs of a JSONL file; image paths are relative to its folder.

    Args:
        path: the file.
        key: its configuration key below ``data.source``, for messages.

    Raises:
        DataError: no such file, a line that is no pair, or keys that some lines have and others lack.
    """
    file, key = Path(path).expanduser(), f"data.source.{key}"
    listing = Listing(key, file)
    lines = [(number, line) for number, line in enumerate(lines_of(read_text(file, key)), 1) if line.strip()]
    pairs: list[Pair] = []

    def read(_: int, numbered: tuple[int, str]) -> None:
        number, line = numbered
        pairs.append(_pair(line, file.parent, f"{key}: line {number}", listing))

    read_each(lines, read, "lines")
    if not pairs:
        raise DataError(key, path, "at least one line", 'such as {"image": "a.png", "caption": "a red square"}')
    for name in ("client", "label", "split"):
        given = sum(bool(getattr(pair, name)) for pair in pairs)
        if 0 < given < len(pairs):
            raise DataError(f"{key}: {name}", f"in {given} of {len(pairs)} lines", "in all lines, or in none")
    return pairs


def _pair(line: str, folder: Path, where: str, listing: Listing) -> Pair:
    raw: Any = parse_json(line, where, line, "a JSON object")
    if not isinstance(raw, dict):
        raise DataError(where, line, "a JSON object", 'such as {"image": "a.png", "caption": "a red square"}')
    for name in raw:
        if name not in _KEYS:
            raise DataError(where, name, f"keys among {', '.join(_KEYS)}", did_you_mean(name, _KEYS))
    for name in ("image", "caption"):
        if not (isinstance(raw.get(name), str) and raw[name].strip()):
            raise DataError(f"{where}: {name}", raw.get(name), "text")
    caption = one_form(raw["caption"].strip())
    image = listing.find(folder / raw["image"])
    pair = Pair(image, caption, _negatives(raw.get("negatives", []), caption, f"{where}: negatives"))
    named = {name: _name(raw[name], f"{where}: {name}") for name in ("client", "label", "split") if name in raw}
    if named.get("split", "train") not in ("train", "test"):
        raise DataError(f"{where}: split", named["split"], "train or test")
    client, label, split = (named.get(name, "") for name in ("client", "label", "split"))
    return replace(pair, client=client, label=label, split=split)


def _name(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise DataError(where, value, "text or a whole number")
    return checked_name(str(value).strip(), where, "a name")


def _negatives(raw: Any, caption: str, where: str) -> dict[str, tuple[str, ...]]:
    by_kind = {GIVEN: raw} if isinstance(raw, list) else raw
    if not isinstance(by_kind, dict):
        raise DataError(where, raw, "a list of captions, or a mapping of kinds to captions")
    negatives = {}
    for kind, given in by_kind.items():
        captions = [given] if isinstance(given, str) else given
        if not _KIND.fullmatch(kind):
            raise DataError(where, kind, "a kind that consists of small letters, digits and _", "such as swap_noun")
        if not isinstance(captions, list) or not all(isinstance(text, str) and text.strip() for text in captions):
            raise DataError(f"{where}.{kind}", given, "a caption, or a list of captions")
        for text in captions:
            if tokenize(one_form(text)) == tokenize(caption):
                raise DataError(f"{where}.{kind}", text, "a caption that differs from the true one")
        if captions:
            negatives[kind] = tuple(one_form(text.strip()) for text in captions)
    return negatives
