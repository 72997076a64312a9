from __future__ import annotations

from typing import Any

from fedlab.method import Curve, Point, curve_with_marks, curves, percentages


def test_curves_of_one_name_have_one_color_and_one_label() -> None:
    points = Curve("$a", [1, 1, 2, 2], [0.1, 0.3, 0.2, 0.4], line=False)
    panels = {"far": [points, Curve("$a", [1, 2], [0.2, 0.3])], "near": [Curve("b", [1, 2], [3, 4])]}
    picture = curves(panels, axis="layer", title="Title", caption="Caption.", whole=True)
    assert (picture.title, picture.caption) == ("Title", "Caption.")
    first, second = picture.figure.axes
    assert [place.get_ylabel() for place in (first, second)] == ["far", "near"]
    assert first.get_xlabel() == "layer"
    assert first.lines[0].get_ydata().tolist() == [0.2, 0.3]
    assert len(first.collections[0].get_offsets()) == 4
    assert first.lines[0].get_color() != second.lines[0].get_color()
    (legend,) = picture.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["$a", "b"]
    picture.figure.draw_without_rendering()  # a dollar sign begins no formula


def test_points_alone_have_a_label_too() -> None:
    picture = curves({"y": [Curve("only", [1], [2], line=False)]}, axis="x")
    assert [text.get_text() for text in picture.figure.legends[0].get_texts()] == ["only"]


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
