"""Which of a sample's columns models are built for."""

from __future__ import annotations

import pytest
import torch

from fedlab.method import model_input
from fedlab.method.columns import main_column, main_shape

LABELS = {"label": ("int64", ()), "domain": ("int64", ()), "group": ("int64", ())}


@pytest.mark.parametrize(
    ("columns", "shape"),
    [
        ({"image": ("float32", (1, 8, 8)), "mask": ("uint8", (64, 64)), "text": ("int64", (32,))}, (1, 8, 8)),
        ({"length": ("int64", ()), "audio": ("float32", (100,)), "tags": ("bool", (527,))}, (100,)),
        ({"points": ("float32", (64, 3))}, (64, 3)),
        ({"features": ("float32", (4,)), "text": ("int64", (12,))}, (4,)),
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


@pytest.mark.parametrize(
    ("shapes", "name"),
    [
        ({"image": (1, 2, 2), "features": (9,), "text": (30,)}, "image"),
        ({"features": (4,), "text": (30,)}, "features"),
        ({"signal": (2, 3), "weight": (), "mask": (64, 64)}, "signal"),
    ],
)
def test_a_model_is_given_the_column_that_it_was_built_for(shapes: dict[str, tuple[int, ...]], name: str) -> None:
    batch = {column: torch.rand(3, *shape) for column, shape in {**shapes, "label": ()}.items()}
    assert main_column({column: ("float32", shape) for column, shape in shapes.items()}) == name
    assert model_input({**batch, "caption": ["a", "b", "c"]}) is batch[name]


def test_without_an_array_there_is_nothing_to_give() -> None:
    assert main_column(LABELS) is None
    with pytest.raises(KeyError, match="image"):
        model_input({"label": torch.zeros(3), "caption": ["a", "b", "c"]})
