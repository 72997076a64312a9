from __future__ import annotations

import math
import struct

import pytest

from fedlab.report.bands import Line, bands_picture
from fedlab.report.spread import Spread


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG")
    return struct.unpack(">II", png[16:24])


def test_a_round_that_not_all_runs_evaluated_counts_those_that_did() -> None:
    line = Line("a", [{1: 0.0, 2: 1.0, 4: 1.0}, {1: 1.0, 3: 0.5}])
    assert line.over_rounds == {
        1: Spread(0.5, pytest.approx(math.sqrt(0.5)), 2),
        2: Spread(1.0, None, 1),
        3: Spread(0.5, None, 1),
        4: Spread(1.0, None, 1),
    }


def test_the_last_value_of_every_run_counts_wherever_it_ends() -> None:
    assert Line("a", [{1: 0.0, 2: 1.0}, {1: 0.5}, {}]).last == Spread(0.75, pytest.approx(math.sqrt(0.125)), 2)
    assert Line("a", []).last == Spread(None, None, 0)


def test_a_picture_grows_with_panels_and_lines() -> None:
    line = Line("a", [{1: 0.5, 2: 0.6}])
    width, one = size(bands_picture({"": [line]}, "accuracy"))
    assert size(bands_picture({"a": [line], "b": [line]}, "accuracy"))[0] == width
    assert size(bands_picture({"a": [line], "b": [line]}, "accuracy"))[1] > one
    assert size(bands_picture({"": [line] * 30}, "accuracy"))[1] > one


def test_names_are_text_and_lines_without_values_are_drawn_empty() -> None:
    assert size(bands_picture({r"$\frac{": [Line(r"$\broken", []), Line("_a", [{1: 2.0}])]}, "loss"))
    assert size(bands_picture({"": [Line("a", [])]}, "loss"))
