"""Labels as classes: what is implausible is refused or said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedlab import from_arrays
from fedlab.config import Component
from fedlab.data.classes import by_name, coded, labeled, plausible, test_part
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources import load_source
from fedlab.errors import DataError

test_part.__test__ = False  # type: ignore[attr-defined]  # pytest reads it, lest it collect the function as a test
X = np.zeros((6, 8, 8), np.uint8)


def made(train: Any, test: Any, **more: Any) -> Dataset:
    train, test = np.asarray(train), np.asarray(test)
    return from_arrays(X[: len(train)], train, X[: len(test)], test, **more)


def said(dataset: Dataset) -> list[str]:
    return [str(left) for left in dataset.left_out]


@pytest.mark.parametrize("top", [12, 1000, 2_000_000_000, 2**62])
def test_labels_that_make_more_classes_than_samples_are_refused_without_counting_up_to_them(top: int) -> None:
    with pytest.raises(DataError, match=r"y\.astype\(str\)"):
        made([0, top] * 3, [0, 1] * 3)


def test_following_that_advice_gives_two_classes() -> None:
    y = np.array([7, 2_000_000_000] * 3).astype(str)
    assert made(y, y).train.class_names == ("2000000000", "7")


def test_a_list_of_classes_may_be_longer_than_the_data() -> None:
    dataset = made([0, 1, 1], [0, 1], class_names=[f"c{i}" for i in range(100)])
    assert dataset.train.num_classes == 100
    assert said(dataset)[0].startswith("98 of 100 classes left out: no training sample is of theirs")


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        ([0, 1, 2], [0, 1], ["1 of 3 classes left out: no test sample is of theirs"]),
        ([0, 2, 2], [0, 1, 2], ["1 of 3 classes left out: no training sample is of theirs"]),
        (["a", "b"], ["a", "c"], ["1 of 3 classes left out: no training", "1 of 3 classes left out: no test"]),
        ([0, 1, 2], [2, 1, 0], []),
    ],
)
def test_classes_of_which_a_split_has_nothing_are_said(train: list[Any], test: list[Any], expected: list[str]) -> None:
    found = said(made(train, test))
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)


def test_one_class_alone_is_no_label() -> None:
    dataset = made(["cat"] * 4, ["cat"] * 2)
    assert "label" not in dataset.train.columns
    assert said(dataset)[0].startswith("6 of 6 labels left out: all of them are 'cat'")


def test_held_out_classes_are_meant_to_be_others() -> None:
    dataset = replace(made(["a", "b"], ["c", "d"]), left_out=())
    assert plausible(dataset, held_out_classes=True).left_out == ()
    assert len(plausible(dataset).left_out) == 2
    assert plausible(plausible(dataset)).left_out == plausible(dataset).left_out


def test_classes_of_tags_and_masks_count_where_they_occur() -> None:
    tags = Samples({"tags": np.array([[1, 1, 0], [0, 1, 0]], np.uint8)}, ("a", "b", "c"))
    masks = Samples({"mask": np.array([[[0, -1], [2, 2]]]), "label": np.array([2])}, ("a", "b", "c"))
    for part, missing in ((tags, "c"), (masks, "b")):
        assert [left.examples for left in plausible(Dataset("d", part, part)).left_out] == [(missing,)] * 2


def test_domains_without_a_test_sample_are_said() -> None:
    domains = np.array(["north", "south", "north"]), np.array(["north"] * 3)
    dataset = made([0, 1, 0], [0, 1, 1], domains=domains)
    assert [(left.what, left.examples) for left in dataset.left_out] == [("domains", ("south",))]


def test_classes_are_joined_by_name() -> None:
    (train, test), names = by_name((np.array([0, 1, 2]), np.array([0, 1, 2])), (("a", "b", "c"), ("c", "x", "a")), "k")
    assert names == ("a", "b", "c", "x")
    assert [names[i] for i in test] == ["c", "x", "a"]
    assert train.tolist() == [0, 1, 2]


def test_names_in_two_unicode_forms_are_one() -> None:
    (train, test), names = coded("y", (np.array(["caf\u00e9", "b"]), np.array(["cafe\u0301", "b"])))
    assert names == ("b", "caf\u00e9")
    assert train.tolist() == test.tolist() == [1, 0]
    with pytest.raises(DataError, match="a different name for every class"):
        labeled((np.array([0, 1]), np.array([0])), ["caf\u00e9", "cafe\u0301"])


def test_names_that_no_report_could_show_are_refused() -> None:
    with pytest.raises(DataError, match="UTF-8"):
        made(["a", "b\udce9"], ["a", "a"])
    samples = Samples({"x": np.zeros(2), "domain": np.array([0, 1])}, (), ("a", "b\udce9"))
    with pytest.raises(DataError, match="UTF-8"):
        Dataset("d", samples, samples)


@pytest.mark.parametrize(
    ("members", "wanted", "kept"), [(1, 0, 0), (1, 1, 0), (2, 0, 1), (2, 2, 1), (9, 0, 1), (10, 3, 3)]
)
def test_every_group_keeps_one_for_tests_and_one_to_train_on(members: int, wanted: int, kept: int) -> None:
    assert test_part(members, wanted) == kept


class TestDrawnSplits:
    """Few files per class: none loses its tests to rounding."""

    def test_of_a_folder(self, tmp_path: Path) -> None:
        for kind, count in (("a", 2), ("b", 4), ("c", 1)):
            for i in range(count):
                (tmp_path / kind).mkdir(exist_ok=True)
                Image.fromarray(X[0]).save(tmp_path / kind / f"{i}.png")
        dataset = load_source(Component(name="folder", path=str(tmp_path), size=8, test_fraction=0.1), 0)
        assert np.bincount(dataset.test["label"], minlength=3).tolist() == [1, 1, 0]
        assert said(dataset)[0].startswith("1 of 3 classes left out: no test sample is of theirs")

    def test_of_masks(self, tmp_path: Path) -> None:
        for domain in ("fog", "sun"):
            for i in range(3):
                for kind, pixels in (("images", X[0]), ("masks", np.repeat(np.array([[0], [1]], np.uint8), 4, 0))):
                    path = tmp_path / kind / domain / f"{i}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(np.repeat(pixels, 8, 1) if kind == "masks" else pixels).save(path)
        dataset = load_source(Component(name="masks", path=str(tmp_path), stride=1, test_fraction=0.1), 0)
        assert dataset.test["domain"].tolist() == [0, 1]
        assert dataset.left_out == ()
