"""JSON that people bring."""

from __future__ import annotations

import pytest

from fedlab.data.files.jsontext import parse_json
from fedlab.errors import DataError


def test_json_is_read() -> None:
    assert parse_json('{"a": [1, "é"]}', "key", "file") == {"a": [1, "é"]}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "a list, please"),
        ('{"a": 1, "a": 2}', "occurs twice"),
        ('["\\ud83d"]', "one half of a character"),
        ("[" * 100_000, "a list, please"),
    ],
)
def test_what_is_no_json_is_named(text: str, told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        parse_json(text, "key: line 3", "the file", "a list, please")
    assert caught.value.key == "key: line 3"
