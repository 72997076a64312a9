from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlab import from_arrays
from fedlab.data.samples import Dataset, Samples
from fedlab.errors import DataError


def samples(**columns: Any) -> Samples:
    return Samples({"x": np.zeros((4, 2), np.float32), "label": np.array([0, 1, 1, 0]), **columns}, ("a", "b"))


class TestChecks:
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_the_first_sample_that_is_not_finite_is_named(self, bad: float) -> None:
        values = np.zeros((4, 3, 2), np.float32)
        values[2, 1, 1] = values[3, 0, 0] = bad
        with pytest.raises(DataError, match="in sample 2") as caught:
            samples(x=values)
        assert "'x'" in caught.value.key

    def test_columns_of_different_lengths_are_refused(self) -> None:
        with pytest.raises(DataError, match="equal numbers of samples"):
            samples(x=np.zeros(3))

    @pytest.mark.parametrize(
        "labels",
        [np.array([0, 1, 2, 0]), np.array([0, -1, 1, 0]), np.array([0.0, 1.0, 1.0, 0.0]), np.zeros((4, 2), np.int64)],
    )
    def test_labels_that_name_no_class_are_refused(self, labels: np.ndarray) -> None:
        with pytest.raises(DataError, match="integers from 0 to 1"):
            samples(label=labels)

    @pytest.mark.parametrize("column", ["domain", "group"])
    def test_domains_and_groups_need_names(self, column: str) -> None:
        with pytest.raises(DataError, match=column):
            samples(**{column: np.array([0, 1, 0, 1])})

    @pytest.mark.parametrize(
        "values",
        [
            np.array(["a", "b", "c", "d"]), np.array([b"a"] * 4), np.array([None, 1, "x", []], object),
            np.array(["2024-01-01"] * 4, "M8[D]"), np.zeros(4, np.complex64), np.zeros(4, ">f4"),
            np.zeros(4, np.longdouble), np.zeros(4, [("a", "i4")]), [1, 2, 3, 4], np.float32(1), None,
        ],
        ids=str,
    )  # fmt: skip
    def test_what_no_tensor_holds_is_refused(self, values: Any) -> None:
        with pytest.raises(DataError) as caught:
            samples(extra=values)
        assert "'extra'" in caught.value.key
        assert "encode text as integers" in caught.value.fix

    @pytest.mark.parametrize(
        "kind", [bool, np.uint8, np.uint16, np.int32, np.int64, np.float16, np.float32, np.float64]
    )
    def test_numbers_and_truth_values_are_kept(self, kind: type) -> None:
        assert samples(extra=np.ones((4, 5), kind))["extra"].dtype == kind

    def test_no_samples_are_fine(self) -> None:
        assert len(samples().select(np.empty(0, np.int64))) == 0
        assert len(Samples({})) == 0


class TestFingerprint:
    @given(st.data())
    def test_it_changes_with_any_value(self, data: st.DataObject) -> None:
        values = np.arange(24, dtype=np.float32).reshape(4, 6)
        changed = values.copy()
        at = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 5))
        changed[at] = np.nextafter(changed[at], np.float32(99))
        assert samples(x=values).fingerprint != samples(x=changed).fingerprint

    def test_it_changes_with_names_types_and_shapes(self) -> None:
        values = np.zeros((4, 6), np.float32)
        others = [
            samples(x=values),
            samples(y=values),
            samples(x=values.astype(np.float64)),
            samples(x=values.reshape(4, 2, 3)),
            Samples(samples(x=values).columns, ("a", "c")),
            Samples(samples(x=values).columns, ("a", "b"), ("site",)),
            samples(x=values).select(np.array([1, 0, 2, 3])),
        ]
        assert len({s.fingerprint for s in others}) == len(others)

    def test_it_does_not_depend_on_memory_layout_or_pickling(self) -> None:
        values = np.arange(24, dtype=np.float32).reshape(4, 6)
        plain, turned = samples(x=values), samples(x=np.asfortranarray(values))
        assert plain.fingerprint == turned.fingerprint == pickle.loads(pickle.dumps(plain)).fingerprint

    def test_that_of_a_data_set_counts_every_part(self) -> None:
        one, other = samples(), samples(x=np.ones((4, 2), np.float32))
        sets = [
            Dataset("d", one, one),
            Dataset("d", one, other),
            Dataset("d", other, one),
            Dataset("d", one, one, {"public": one}),
            Dataset("d", one, one, {"query": one}),
            Dataset("d", one, one, {"query": other}),
        ]
        assert len({dataset.fingerprint for dataset in sets}) == len(sets)


class TestDataset:
    def test_train_and_test_must_agree(self) -> None:
        with pytest.raises(DataError, match="class_names"):
            Dataset("d", samples(), Samples(samples().columns, ("a", "c")))
        with pytest.raises(DataError, match="columns and shapes"):
            Dataset("d", samples(), samples(extra=np.zeros(4)))
        with pytest.raises(DataError, match="columns and shapes"):
            Dataset("d", samples(), samples(x=np.zeros((4, 3), np.float32)))

    @pytest.mark.parametrize(
        "images",
        [
            np.zeros((4, 3, 8, 8), np.float64),
            np.zeros((4, 8, 8), np.uint8),
            np.full((4, 1, 8, 8), 1.5, np.float32),
            np.full((4, 1, 8, 8), -0.1, np.float32),
        ],
    )
    def test_images_that_are_none_are_refused(self, images: np.ndarray) -> None:
        with pytest.raises(DataError, match="images"):
            Dataset("d", samples(image=images), samples(image=images))

    def test_the_servers_samples_may_be_of_another_kind(self) -> None:
        public = Samples({"tokens": np.zeros((2, 7), np.int64)})
        assert Dataset("d", samples(), samples(), {"public": public}).server["public"] is public


class TestFromArrays:
    X, Y = np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 2, 0])

    @pytest.mark.parametrize(
        ("shape", "kept"), [((4, 9, 8), (1, 9, 8)), ((4, 9, 8, 3), (3, 9, 8)), ((4, 1, 9, 8), (1, 9, 8))]
    )
    def test_axes_are_found(self, shape: tuple[int, ...], kept: tuple[int, ...]) -> None:
        x = np.zeros(shape, np.uint8)
        assert from_arrays(x, self.Y, x, self.Y).train["image"].shape[1:] == kept

    @pytest.mark.parametrize(
        ("x", "hint"),
        [
            (np.zeros(4), "images as"),
            (np.zeros((0, 8, 8)), "at least one"),
            (np.zeros((4, 5, 8, 8)), "1 or 3 channels"),
            (np.zeros((4, 3, 8, 3)), "pad the pictures"),
            (np.full((4, 8, 8), 300, np.int64), "astype"),
            (np.full((4, 8, 8), np.nan), "without NaN"),
            (np.full((4, 8, 8), 255.0), "divide"),
        ],
    )
    def test_images_of_another_kind_are_refused(self, x: np.ndarray, hint: str) -> None:
        with pytest.raises(DataError, match=hint) as caught:
            from_arrays(x, self.Y, self.X, self.Y)
        assert caught.value.key == "x_train"

    @pytest.mark.parametrize(
        "labels",
        [np.eye(4), np.zeros((4, 1), np.int64), np.array([0.0, 1, 2, 0]), np.array([0, 1, -1, 0]), np.array([0, 1, 2])],
    )
    def test_labels_of_another_kind_are_refused(self, labels: np.ndarray) -> None:
        with pytest.raises(DataError):
            from_arrays(self.X, labels, self.X, self.Y)

    def test_text_and_numbers_do_not_mix(self) -> None:
        with pytest.raises(DataError, match="kind of y_train"):
            from_arrays(self.X, np.array(["a", "b", "c", "a"]), self.X, self.Y)

    def test_names_become_classes_domains_and_owners(self) -> None:
        names = np.array(["dog", "cat", "dog", "ant"])
        dataset = from_arrays(self.X, names, self.X, names[::-1], domains=(names, names), groups=(self.Y, self.Y))
        assert dataset.train.class_names == dataset.train.domain_names == ("ant", "cat", "dog")
        assert dataset.train["label"].tolist() == [2, 1, 2, 0]
        assert dataset.test["label"].tolist() == [0, 2, 1, 2]
        assert dataset.train.group_names == ("0", "1", "2")

    def test_class_names_may_be_an_array(self) -> None:
        dataset = from_arrays(self.X, self.Y, self.X, self.Y, class_names=np.array(["a", "b", "c"]))
        assert dataset.fingerprint == from_arrays(self.X, self.Y, self.X, self.Y, class_names="abc").fingerprint
        with pytest.raises(DataError, match="0 to 1"):
            from_arrays(self.X, self.Y, self.X, self.Y, class_names="ab")
