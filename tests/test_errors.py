"""Errors about the user's input that are raised together."""

from __future__ import annotations

import pytest

from fedlab.errors import ConfigError, ConfigErrors, DataError, Mistakes


def test_mistakes_are_collected_in_their_order_and_all_raised_at_once() -> None:
    mistakes, reached = Mistakes(), list[str]()
    mistakes.settle()
    for key in ("a", "b", "c"):
        with mistakes.collected():
            if key == "b":
                raise ConfigErrors([ConfigError("b1", 1, "x"), ConfigError("b2", 2, "x")])
            if key == "c":
                raise DataError(key, 3, "x")
            reached.append(key)
    assert reached == ["a"]
    with pytest.raises(ConfigErrors) as caught:
        mistakes.settle()
    assert [error.key for error in caught.value.errors] == ["b1", "b2", "c"]
    with pytest.raises(ZeroDivisionError), mistakes.collected():
        1 / 0  # noqa: B018  no error about the user's input
