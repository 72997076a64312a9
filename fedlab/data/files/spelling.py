"""Names in files and paths: one Unicode form to compare them, and one way to show characters that are not UTF-8."""

from __future__ import annotations

import re
import unicodedata

from fedlab.errors import DataError

_SURROGATES = re.compile("[\ud800-\udfff]")


def one_form(name: str) -> str:
    """The name in composed form (NFC), so that names written by different systems compare equal."""
    return unicodedata.normalize("NFC", name)


def printable(text: str) -> str:
    """The text with a replacement character for every byte that was not UTF-8."""
    return _SURROGATES.sub("\ufffd", text)


def is_text(name: str) -> bool:
    """Whether every file, report and terminal can show the name."""
    return not _SURROGATES.search(name)


def checked_name(name: str, key: str, where: object) -> str:
    """The name in composed form.

    Raises:
        DataError: it holds bytes that are not UTF-8, or halves of a character.
    """
    if not is_text(name):
        raise DataError(
            key, f"{printable(str(where))}: {printable(name)}", "names in UTF-8",
            "rename it: the characters shown as \ufffd are not UTF-8, and no report could show them",
        )  # fmt: skip
    return one_form(name)
