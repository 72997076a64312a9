"""Which of a sample's columns models are built for."""

from __future__ import annotations

import pytest

from fedlab.method.columns import main_shape

LABELS = {"label": ("int64", ()), "domain": ("int64", ()), "group": ("int64", ())}


@pytest.mark.parametrize(
    ("columns", "shape"),
    [
        ({"image": ("float32", (1, 8, 8)), "mask": ("uint8", (64, 64)), "text": ("int64", (32,))}, (1, 8, 8)),
        ({"length": ("int64", ()), "audio": ("float32", (100,)), "tags": ("bool", (527,))}, (100,)),
        ({"points": ("float32", (64, 3))}, (64, 3)),
        ({"text": ("int64", (12,))}, (12,)),
        ({"video": ("uint8", (4, 3, 8, 8)), "speed": ("float32", (4,))}, (4, 3, 8, 8)),
        ({}, ()),
    ],
)
def test_it_is_the_image_or_else_the_largest_array(
    columns: dict[str, tuple[str, tuple[int, ...]]], shape: tuple[int, ...]
) -> None:
    assert main_shape({**columns, **LABELS}) == shape
    backwards = dict(reversed({**LABELS, **columns}.items()))
    assert main_shape(backwards) == shape, "checkpoints sort their columns"
