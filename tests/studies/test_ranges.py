from __future__ import annotations

import pytest

from fedlab.studies.ranges import Range


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("log(1e-4, 1e-1)", Range("log", 1e-4, 1e-1)),
        (" float(0,1) ", Range("float", 0.0, 1.0)),
        ("float(0, 1, 0.25)", Range("float", 0.0, 1.0, 0.25)),
        ("int(1, 5)", Range("int", 1, 5)),
        ("int(8, 64, 8)", Range("int", 8, 64, 8)),
        ("logint(1, 512)", Range("logint", 1, 512)),
    ],
)
def test_ranges_are_read(text: str, found: Range) -> None:
    assert Range.parse(text) == found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lin(1, 2)", "or a range: float"),
        ("log(1)", "or a range"),
        ("log(1, 2, 3, 4)", "or a range"),
        ("log", "or a range"),
        ("log(a, 2)", "numbers in"),
        ("int(1, 2.5)", "whole numbers in"),
        ("float(2, 1)", "a lower bound below the upper one"),
        ("float(1, 1)", "a lower bound below the upper one"),
        ("float(0, inf)", "a lower bound below the upper one"),
        ("log(0, 1)", "a lower bound above 0"),
        ("logint(-1, 8)", "a lower bound above 0"),
        ("log(1, 8, 2)", "none for log"),
        ("float(0, 1, 0)", "a step above 0"),
        ("int(1, 5, 9)", "a step above 0"),
    ],
)
def test_what_is_no_range_is_refused(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Range.parse(text)


def test_optuna_is_told_the_same_numbers() -> None:
    optuna = pytest.importorskip("optuna")
    known = optuna.distributions
    assert Range.parse("log(1e-4, 1e-1)").distribution == known.FloatDistribution(1e-4, 1e-1, log=True)
    assert Range.parse("float(0, 1, 0.25)").distribution == known.FloatDistribution(0, 1, step=0.25)
    assert Range.parse("int(8, 64, 8)").distribution == known.IntDistribution(8, 64, step=8)
    assert Range.parse("logint(1, 512)").distribution == known.IntDistribution(1, 512, log=True)
