"""Training and test samples of any form as one data set."""

from __future__ import annotations

from collections import Counter
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import fedlab
from fedlab.errors import DataError

COUNT = 60
X = np.random.default_rng(0).standard_normal((COUNT, 4)).astype(np.float32)
Y = np.arange(COUNT) % 3
TRAIN, TEST = slice(0, 40), slice(40, COUNT)


def both(data: Any, **options: Any) -> fedlab.Dataset:
    return fedlab.as_dataset(data, **options)


def hugging_face(part: slice, names: list[str] | None = None) -> datasets.Dataset:
    made = datasets.Dataset.from_dict({"features": X[part].tolist(), "label": Y[part]})
    return made if names is None else made.cast_column("label", datasets.ClassLabel(names=names))


FORMS: dict[str, Any] = {
    "four arrays": (X[TRAIN], Y[TRAIN], X[TEST], Y[TEST]),
    "two pairs": ((X[TRAIN], Y[TRAIN]), (X[TEST], Y[TEST])),
    "splits": {"train": (X[TRAIN], Y[TRAIN]), "test": {"features": X[TEST], "label": Y[TEST]}},
    "torch": tuple(TensorDataset(torch.from_numpy(X[part]), torch.from_numpy(Y[part])) for part in (TRAIN, TEST)),
    "dict": datasets.DatasetDict({"train": hugging_face(TRAIN), "test": hugging_face(TEST)}),
    "pair": (hugging_face(TRAIN), hugging_face(TEST)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_data(form: str) -> None:
    found = both(FORMS[form], name="mine")
    wanted = fedlab.from_arrays(X[TRAIN], Y[TRAIN], X[TEST], Y[TEST], name="mine")
    assert found.fingerprint == wanted.fingerprint
    assert found.name == "mine"
    assert not found.warnings
    assert not found.divided
    assert both((X[TRAIN], Y[TRAIN]), test=(X[TEST], Y[TEST])).fingerprint == wanted.fingerprint


def test_a_data_set_of_fedlab_is_returned_as_it_is() -> None:
    data = fedlab.from_arrays(X[TRAIN], Y[TRAIN], X[TEST], Y[TEST])
    assert both(data) is data
    assert both(data, name="other").name == "other"


def test_classes_are_matched_by_name_where_both_splits_name_them() -> None:
    splits = {"train": hugging_face(TRAIN, ["a", "b", "c"]), "test": hugging_face(TEST, ["c", "b", "a"])}
    found = both(splits)
    assert found.train.class_names == ("a", "b", "c")
    assert found.test["label"].tolist() == [2 - label for label in Y[TEST]]
    names = both({"train": hugging_face(TRAIN, ["a", "b", "c"]), "test": hugging_face(TEST)}).test.class_names
    assert names == ("a", "b", "c")


def test_text_is_a_class_and_names_may_be_given() -> None:
    text = np.array(["cat", "dog", "eel"])[Y]
    found = both({"train": (X[TRAIN], text[TRAIN]), "test": (X[TEST], text[TEST])})
    assert found.train.class_names == ("cat", "dog", "eel")
    assert found.train["label"].tolist() == Y[TRAIN].tolist()
    assert both(FORMS["two pairs"], class_names=("u", "v", "w")).train.class_names == ("u", "v", "w")


def test_domains_and_owners_are_numbered_alike_in_both_splits() -> None:
    def part(rows: slice, names: list[str]) -> dict[str, Any]:
        count = len(X[rows])
        return {
            "features": X[rows],
            "label": Y[rows],
            "domain": np.resize(names, count),
            "group": np.resize(names, count),
        }

    found = both({"train": part(TRAIN, ["b", "c"]), "test": part(TEST, ["c", "a"])})
    assert found.train.domain_names == found.test.group_names == ("a", "b", "c")
    assert (found.train["domain"][0], found.test["domain"][0], found.test["group"][1]) == (1, 2, 0)


def test_without_labels_there_are_no_classes() -> None:
    found = both((TensorDataset(torch.from_numpy(X[TRAIN])), TensorDataset(torch.from_numpy(X[TEST]))))
    assert "label" not in found.train.columns
    assert found.train.num_classes == 0


# no test samples


def test_a_share_is_held_out_class_by_class_and_said() -> None:
    found = both((X, Y))
    assert (len(found.train), len(found.test)) == (48, 12)
    assert Counter(found.test["label"].tolist()) == {0: 4, 1: 4, 2: 4}
    rows = {tuple(row) for row in found.train["features"].tolist()} | {
        tuple(r) for r in found.test["features"].tolist()
    }
    assert rows == {tuple(row) for row in X.tolist()}
    (warning,) = found.warnings
    assert "12 of 60 samples, 20% of the samples" in warning
    assert both((X, Y)).fingerprint == found.fingerprint, "always the same"
    assert len(both((X, Y), test_share=0.5).test) == 30


def test_the_smallest_data_sets_keep_a_sample_on_each_side() -> None:
    found = both((X[:2], Y[:2]))
    assert (len(found.train), len(found.test)) == (1, 1)
    with pytest.raises(DataError, match="give test=…"):
        both((X[:1], Y[:1]))


# splits that are not used


def test_further_splits_are_counted() -> None:
    splits = {"train": hugging_face(TRAIN), "test": hugging_face(TEST), "validation": hugging_face(slice(0, 5))}
    (left,) = both(datasets.DatasetDict(splits)).left_out
    assert (left.what, left.count) == ("samples of validation", 5)
    assert "data.validation" in left.fix


def test_a_single_split_is_training_data() -> None:
    assert len(both(datasets.DatasetDict({"everything": hugging_face(TRAIN)})).test) == 8
    with pytest.raises(DataError, match="splits called train and test"):
        both(datasets.DatasetDict({"one": hugging_face(TRAIN), "two": hugging_face(TEST)}))


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (3, {}, "FederatedDataset"),
        ((1, 2, 3), {}, "FederatedDataset"),
        ((X, Y), {"test_share": 1.5}, "between 0 and 1"),
        ((X, Y), {"partition": 3}, "flwr_datasets.partitioner"),
        (FORMS["splits"], {"test": (X, Y)}, "leave one out"),
        (fedlab.from_arrays(X, Y, X, Y), {"test": (X, Y)}, "leave test=…"),
        (((X, Y), {"features": X, "label": Y, "weight": Y}), {}, "the columns of train: features, label"),
        (((X[:, :2], Y), (X, Y)), {}, "those of train"),
        ((X, Y + 0.5), {}, "one integer or text"),
        (({"features": X, "label": Y}, 3), {}, "torch Dataset"),
    ],
)
def test_what_does_not_fit_is_refused(data: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        both(data, **options)
