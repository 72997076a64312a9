"""One way to read text files and to split them into lines."""

from __future__ import annotations

import codecs
from pathlib import Path

from fedlab.data.files.reading import reading
from fedlab.errors import DataError
from fedlab.storage.plain import read_plain

_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path, key: str, most: int | None = None) -> str:
    """The content of a text file in UTF-8, without its byte-order mark.

    Args:
        path: the file.
        key: configuration key that led here.
        most: bytes that it may have; None allows any number.

    Raises:
        DataError: no such file, a larger one, or another encoding; the message says in which line, at which byte.
    """
    with reading(key, str(path), "a text file", "check that it is a plain file"):
        content = read_plain(path, most)
    if content.startswith(_WIDE):
        raise DataError(key, str(path), "text in UTF-8: this file is UTF-16", "save it again with the encoding UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # the position counts from behind the mark
        start = error.start + len(content) - len(error.object)
        line = content.count(b"\n", 0, start) + 1
        where = f"{path}, line {line}: byte 0x{content[start]:02x} at position {start}"
        raise DataError(key, where, "text in UTF-8", "save it again with the encoding UTF-8") from error


def lines_of(text: str) -> list[str]:
    """Lines, which end at ``\\n`` or ``\\r\\n`` only: other separators of Unicode belong to the text."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]
