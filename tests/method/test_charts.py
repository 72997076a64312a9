from __future__ import annotations

from fedlab.method import Curve, curves


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
