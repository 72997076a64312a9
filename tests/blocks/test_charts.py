"""Charts of methods show the points and numbers that they are given."""

from __future__ import annotations

from typing import Any

from fedlab.blocks.charts import Point, curve_with_marks, percentages


def drawn(picture: Any) -> tuple[Any, list[str]]:
    """The axes of a chart, and the texts in it."""
    (axes,) = picture.figure.axes
    return axes, [text.get_text() for text in axes.texts]


def test_names_of_a_curve_that_would_lie_on_each_other_are_left_out() -> None:
    curve = [Point(2.0, 90, "0.5"), Point(1.01, 80, "0.9"), Point(1.0, 80, "1")]
    look = {"axes": ("speed", "accuracy"), "legend": ("line", "circle", "crosses"), "title": "t", "caption": "c"}
    picture = curve_with_marks(curve, [Point(3.0, 70, "first $x$")], 1, **look)  # type: ignore[arg-type]  # one mapping
    axes, texts = drawn(picture)
    assert texts == ["0.5", "0.9", "first $x$"]
    line, circle, crosses = (one.get_xydata().tolist() for one in axes.lines)
    assert (line, circle, crosses) == ([[2.0, 90], [1.01, 80], [1.0, 80]], [[1.01, 80]], [[3.0, 70]])
    assert (axes.get_xlabel(), axes.get_ylabel(), picture.title, picture.caption) == ("speed", "accuracy", "t", "c")


def test_percentages_stand_in_their_rows_and_columns() -> None:
    axes, texts = drawn(
        percentages([[0, 100], [25.4, 74.6]], ["one", "two"], ["a", "b"], axis="layer", title="t", caption="c")
    )
    assert texts == ["0", "100", "25", "75"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two"]
    assert axes.images[0].get_array().tolist() == [[0, 100], [25.4, 74.6]]
