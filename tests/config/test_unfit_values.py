from __future__ import annotations

import pytest
from pydantic import model_validator

from fedlab.config import Section, UnfitValue, parse
from fedlab.errors import ConfigErrors


class Window(Section):
    first: int = 0
    last: int = 5

    @model_validator(mode="after")
    def _ordered(self) -> Window:
        if self.first > self.last:
            raise UnfitValue("first", self.first, f"at most last = {self.last}", "swap them")
        return self


class Windows(Section):
    several: tuple[Window, ...] = ()


def test_a_value_that_does_not_suit_another_is_told_by_its_own_key() -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse(Windows, {"several": [{"first": 1}, {"first": 9}, {"last": -1}]}, "data")
    assert [str(error) for error in caught.value.errors] == [
        "data.several.1.first = 9\n  expected: at most last = 5\n  to do:    swap them",
        "data.several.2.first = 0\n  expected: at most last = -1\n  to do:    swap them",
    ]
