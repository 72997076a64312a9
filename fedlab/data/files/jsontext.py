"""JSON that people bring: one way to read it."""

from __future__ import annotations

import json
from typing import Any

from fedlab.data.files.reading import reason
from fedlab.data.files.spelling import is_text
from fedlab.errors import DataError


def parse_json(text: str, where: str, shown: str, expected: str = "JSON", fix: str = "") -> Any:
    """What JSON says.

    Args:
        text: the JSON.
        where: configuration key and place of the text, for messages.
        shown: what messages show of it, such as the line or the file's name.
        expected: what it should be, for messages.
        fix: what to do if it is no JSON; the parser's own words by default.

    Raises:
        DataError: it is no JSON, an object has a key twice, or a text holds half of a character.
    """
    try:
        raw: Any = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise DataError(where, shown, expected, fix or reason(error)) from error
    if not is_text(json.dumps(raw, ensure_ascii=False)):
        raise DataError(
            where,
            ascii(shown),
            "whole characters",
            "an escape such as \\ud83d is one half of a character: write both halves",
        )
    return raw


def _once(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are different."""
    found = dict(items)
    if len(found) < len(items):
        raise ValueError("a key that occurs twice")
    return found
