from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedlab import from_arrays
from fedlab.config import Component, load_config
from fedlab.data.federated import FederatedData
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources import build_source, load_source
from fedlab.errors import DataError
from tests.data.in_memory import Held


@pytest.fixture
def unite(monkeypatch: pytest.MonkeyPatch) -> Any:
    from fedlab.data.sources import SOURCES

    find = SOURCES.find
    monkeypatch.setattr(SOURCES, "find", lambda name, key=None: Held if name == "held" else find(name, key))

    def make(**sets: Dataset) -> Dataset:
        monkeypatch.setattr(Held, "sets", sets)
        return load_source(Component(name="union", sources={name: {"name": "held", "key": name} for name in sets}), 0)

    return make


def made(value: float | int, count: int = 3, size: int = 4, classes: int = 2, **more: Any) -> Dataset:
    kind = np.uint8 if isinstance(value, int) else np.float32
    x, y = np.full((count, size, size), value, kind), np.arange(count) % classes
    return from_arrays(x, y, x[:2], y[:2], class_names=[str(c) for c in range(classes)], **more)


def test_every_source_is_a_domain(unite: Any) -> None:
    dataset = unite(one=made(51, 3), two=made(102, 5))
    assert dataset.train.domain_names == ("one", "two")
    assert dataset.train["domain"].tolist() == [0] * 3 + [1] * 5
    assert dataset.train["image"][:, 0, 0, 0].tolist() == [51] * 3 + [102] * 5
    assert dataset.test["domain"].tolist() == [0, 0, 1, 1]


def test_bytes_and_floats_become_floats(unite: Any) -> None:
    images = unite(one=made(51), two=made(0.5)).train["image"]
    assert images.dtype == np.float32
    assert images[:, 0, 0, 0].tolist() == pytest.approx([0.2] * 3 + [0.5] * 3)


def test_owners_keep_apart(unite: Any) -> None:
    groups = (np.array(["a", "b", "a"]), np.array(["a", "b"]))
    dataset = unite(one=made(1, groups=groups), two=made(2, groups=groups))
    assert dataset.train.group_names == ("one/a", "one/b", "two/a", "two/b")
    assert dataset.train["group"].tolist() == [0, 1, 0, 2, 3, 2]
    assert "group" not in unite(one=made(1, groups=groups), two=made(2)).train.columns


def test_columns_of_any_modality_are_joined(unite: Any) -> None:
    samples = Samples({"tokens": np.arange(6).reshape(3, 2), "mask": np.ones((3, 2), bool)})
    text = Dataset("t", samples, samples, {"public": samples})
    dataset = unite(one=text, two=text)
    assert dataset.train["tokens"].shape == (6, 2)
    assert dataset.server["two/public"]["domain"].tolist() == [1] * 3


@pytest.mark.parametrize(
    ("other", "hint"),
    [
        (made(2, size=5), "images of shape"),
        (made(2, classes=3), "3 classes"),
        (Dataset("t", Samples({"tokens": np.zeros((3, 2))}), Samples({"tokens": np.zeros((3, 2))})), "columns"),
    ],
)
def test_sources_that_do_not_fit_are_refused(unite: Any, other: Dataset, hint: str) -> None:
    with pytest.raises(DataError, match=hint) as caught:
        unite(one=made(1), two=other)
    assert caught.value.key == "data.source.sources.two"


def test_an_error_inside_names_the_source(tmp_path: Path) -> None:
    union = Component(name="union", sources={"mine": {"name": "folder", "path": str(tmp_path / "gone")}})
    assert "mine: no folder" in str(build_source(union).missing())
    with pytest.raises(DataError) as caught:
        load_source(union, 0)
    assert caught.value.key == "data.source.sources.mine.path"


def test_the_papers_digits_run_on_stand_in_folders(tmp_path: Path) -> None:
    """paper_digits.yaml with every source replaced by a local folder of the same form."""
    import importlib.resources

    names = ("mnist", "svhn", "usps", "synthdigits", "mnistm")
    for name in names:
        for split, count in (("train", 2), ("test", 1)):
            for digit in range(10):
                folder = tmp_path / name / split / str(digit)
                folder.mkdir(parents=True)
                for i in range(count):
                    Image.fromarray(np.full((20, 16), 20 * digit + i, np.uint8)).save(folder / f"{i}.png")
    with importlib.resources.as_file(importlib.resources.files("fedlab.methods.fedlgd") / "paper_digits.yaml") as path:
        stand_ins = [
            f"data.source.sources.{name}={{name: folder, path: '{tmp_path / name}', size: 28, channels: 3}}"
            for name in names
        ]
        config = load_config(path, stand_ins)
    data = FederatedData(load_source(config.data.source, config.seed), config.data, config.seed)
    assert [part.name for part in data.partition] == list(names)
    assert data.client(4).train["image"].shape == (20, 3, 28, 28)
    assert data.client(4).test["label"].tolist() == list(range(10))


def test_the_words_behind_a_text_column_must_be_the_same(unite: Any) -> None:
    with_words = replace(made(51), vocabulary=("a", "red", "square"))
    assert unite(one=with_words, two=with_words).vocabulary == ("a", "red", "square")
    with pytest.raises(DataError, match="give both the same tokenizer"):
        unite(one=with_words, two=replace(made(51), vocabulary=("a", "square", "red")))
