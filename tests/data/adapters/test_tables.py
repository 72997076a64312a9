"""One split in any form becomes the same columns."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset, Subset, TensorDataset

from fedlab.data.adapters.forms import read_table
from fedlab.data.adapters.tables import Table
from fedlab.errors import DataError

COUNT = 6
PIXELS = (np.arange(COUNT * 8 * 8) % 251).astype(np.uint8).reshape(COUNT, 8, 8)
VECTORS = np.arange(COUNT * 3, dtype=np.float64).reshape(COUNT, 3)
LABELS = np.arange(COUNT) % 3


class Items(torch.utils.data.Dataset[Any]):
    """A torch data set of any items."""

    def __init__(self, items: list[Any], classes: Any = None) -> None:
        self.items = items
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> Any:
        return self.items[row]


def hugging_face(**columns: Any) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns)


def pictures() -> list[Image.Image]:
    return [Image.fromarray(pixels) for pixels in PIXELS]


FLOATS = (PIXELS / 255).astype(np.float32)
IMAGES: dict[str, Any] = {
    "arrays": (PIXELS, LABELS),
    "torch": (torch.from_numpy(PIXELS), torch.from_numpy(LABELS)),
    "list": [list(pictures()), LABELS],
    "mapping": {"image": PIXELS, "label": LABELS},
    "aliases": {"img": list(PIXELS), "y": LABELS.tolist()},
    "x": {"x": PIXELS[:, None], "targets": LABELS},
    "tuples": Items([(PIXELS[i], int(LABELS[i])) for i in range(COUNT)]),
    "pictures": Items([(picture, LABELS[i]) for i, picture in enumerate(pictures())]),
    "dicts": Items([{"image": PIXELS[i], "label": LABELS[i]} for i in range(COUNT)]),
    "items": [(torch.from_numpy(PIXELS[i]), torch.tensor(LABELS[i])) for i in range(COUNT)],
    "tensors": TensorDataset(torch.from_numpy(PIXELS), torch.from_numpy(LABELS)),
    "subset": Subset(TensorDataset(torch.from_numpy(PIXELS), torch.from_numpy(LABELS)), range(COUNT)),
    "hugging face": hugging_face(image=pictures(), label=LABELS),
    "formatted": hugging_face(img=pictures(), label=LABELS).with_format("torch"),
    "transformed": hugging_face(picture=pictures(), label=LABELS).with_transform(
        lambda rows: {"image": [np.asarray(one) for one in rows["picture"]], "label": rows["label"]}
    ),
}


@pytest.mark.parametrize("form", IMAGES)
def test_images_are_the_same_in_every_form(form: str) -> None:
    table = read_table(IMAGES[form], "data")
    assert sorted(table.columns) == ["image", "label"]
    assert table.columns["image"].dtype == np.uint8
    assert np.array_equal(table.columns["image"], PIXELS[:, None])
    assert table.columns["label"].tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    "data",
    [
        (VECTORS, LABELS),
        (torch.from_numpy(VECTORS), LABELS),
        {"features": VECTORS.tolist(), "label": LABELS},
        TensorDataset(torch.from_numpy(VECTORS), torch.from_numpy(LABELS)),
        hugging_face(features=VECTORS.tolist(), label=LABELS),
        hugging_face(x=VECTORS.tolist(), label=LABELS),
    ],
)
def test_feature_vectors_are_float32_and_otherwise_as_they_are(data: Any) -> None:
    table = read_table(data, "data")
    assert table.columns["features"].dtype == np.float32
    assert np.array_equal(table.columns["features"], VECTORS)


def test_columns_of_numbers_become_features_together_in_their_order() -> None:
    wide = {"height": VECTORS[:, 0], "label": LABELS, "age": VECTORS[:, 1], "id": LABELS}
    named = {"height": "features", "age": "features", "label": "label"}
    for data in (wide, hugging_face(**wide)):
        table = read_table(data, "data", named)
        assert np.array_equal(table.columns["features"], VECTORS[:, :2])


def test_what_nothing_names_is_counted_in_a_data_set_of_hugging_face_and_kept_in_a_mapping() -> None:
    columns = {"features": VECTORS, "label": LABELS, "weight": VECTORS[:, 0], "note": ["a"] * COUNT}
    table = read_table(hugging_face(**{name: list(values) for name, values in columns.items()}), "data")
    (left,) = table.left_out
    assert (left.count, left.examples) == (2, ("weight", "note"))
    kept = read_table({name: values for name, values in columns.items() if name != "note"}, "data")
    assert kept.columns["weight"].dtype == np.float32


def test_classes_are_known_from_their_type_or_attribute() -> None:
    typed = hugging_face(image=pictures(), kind=LABELS).cast_column("kind", datasets.ClassLabel(names=["a", "b", "c"]))
    table = read_table(typed, "data")
    assert table.class_names == ("a", "b", "c")
    assert table.columns["label"].tolist() == LABELS.tolist()
    items = Items([(PIXELS[i], LABELS[i]) for i in range(COUNT)], classes=["a", "b", "c"])
    assert read_table(items, "data").class_names == ("a", "b", "c")
    assert read_table(Items(items.items, classes=3), "data").class_names is None


def test_pictures_of_pillow_become_gray_or_colored_together() -> None:
    colored = Image.new("RGB", (8, 8), (255, 0, 0))
    palette = colored.convert("P")
    gray = pictures()[0]
    found = read_table(Items([(colored, 0), (palette, 1), (gray, 1)]), "data").columns["image"]
    assert found.shape == (3, 3, 8, 8)
    assert np.array_equal(found[0], found[1]), "numbers of a palette are no colors"
    assert np.array_equal(found[2], np.repeat(PIXELS[:1], 3, axis=0))


def test_what_is_lost_in_a_picture_is_counted() -> None:
    deep = Image.fromarray(np.full((8, 8), 300, np.uint16))
    (left,) = read_table(Items([(deep, 0), (deep, 1)]), "data").left_out
    assert left.what == "gray levels"


def test_random_transforms_are_drawn_alike_every_time() -> None:
    class Noisy(Items):
        def __getitem__(self, row: int) -> Any:
            return torch.rand(4), int(np.random.randint(3))

    first, second = (read_table(Noisy([None] * COUNT), "data") for _ in range(2))
    assert np.array_equal(first.columns["features"], second.columns["features"])
    assert first.columns["label"].tolist() == second.columns["label"].tolist()
    assert len(np.unique(first.columns["features"])) > COUNT, "and each item differently"


def test_rows_keep_their_clients() -> None:
    table = Table("t", {"features": VECTORS}, clients=LABELS, client_names=("a", "b", "c"))
    chosen = table.select(np.array([4, 1]))
    assert chosen.clients is not None
    assert chosen.clients.tolist() == [1, 1]
    assert np.array_equal(chosen.columns["features"], VECTORS[[4, 1]])


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (3, "torch Dataset"),
        ("mnist", "data.source"),
        (torch.utils.data.DataLoader(TensorDataset(torch.zeros(2, 3))), "loader.dataset"),
        (Endless(), "a length"),
        (Items([(1, 2, 3)]), "return a mapping"),
        (Items([(PIXELS[0], 0), PIXELS[1]]), "the columns of item 0"),
        (Items([]), "at least one"),
        (Items([(np.zeros((8, 8)), 0), (np.zeros((8, 9)), 1)]), "samples of one shape"),
        (Items([(np.full((8, 8), -0.5), 0)]), "undo the normalization"),
        ({"image": PIXELS, "label": LABELS[:3]}, "same number of samples"),
        ({"x": VECTORS, "data": VECTORS}, "one column of this name"),
        ({"x": "text"}, "one value for each sample"),
        ({3: VECTORS}, "whose names are text"),
        ({"features": np.zeros((COUNT, 2, 2))}, r"\(n, d\)"),
        ({"features": np.array([["a"]])}, r"\(n, d\)"),
        (hugging_face(text=["a"], label=[0]), "called image"),
        (hugging_face(left=pictures(), right=pictures()), "called image"),
    ],
)
def test_other_data_is_refused(data: Any, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_table(data, "data")
    assert caught.value.key.startswith("data")


@pytest.mark.parametrize("data", [{"features": VECTORS}, hugging_face(features=VECTORS.tolist())])
def test_a_name_of_a_column_that_is_not_there_is_refused(data: Any) -> None:
    with pytest.raises(DataError, match="a column of the data: features"):
        read_table(data, "data", {"picture": "image"})
