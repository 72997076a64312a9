from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedlab.config import Component
from fedlab.data.samples import Dataset
from fedlab.data.sources import build_source, load_source
from fedlab.errors import DataError

ARRAYS: dict[str, Any] = {
    "x_train": np.arange(4 * 5 * 5, dtype=np.uint8).reshape(4, 5, 5),
    "y_train": np.array([0, 1, 2, 1]),
    "x_test": np.zeros((2, 5, 5), np.uint8),
    "y_test": np.array([0, 2]),
}


def load(path: Path) -> Dataset:
    return load_source(Component(name="npz", path=str(path)), 0)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "data.npz"


def test_arrays_become_a_data_set(archive: Path) -> None:
    extra = {"domain_train": np.array(["a", "b", "a", "b"]), "domain_test": np.array(["b", "a"])}
    np.savez_compressed(archive, **ARRAYS, **extra, class_names=np.array(["x", "y", "z"]), unrelated=np.zeros(3))
    dataset = load(archive)
    assert np.array_equal(dataset.train["image"][:, 0], ARRAYS["x_train"])
    assert dataset.train.class_names == ("x", "y", "z")
    assert dataset.train.domain_names == ("a", "b")
    assert dataset.test["domain"].tolist() == [1, 0]
    assert dataset.name == "data"


@pytest.mark.parametrize("key", ARRAYS)
def test_a_missing_key_is_named(archive: Path, key: str) -> None:
    np.savez(archive, **{name: values for name, values in ARRAYS.items() if name != key})
    with pytest.raises(DataError, match=f"the keys {key}"):
        load(archive)


def test_half_a_pair_is_named(archive: Path) -> None:
    np.savez(archive, **ARRAYS, group_train=np.zeros(4, int))
    with pytest.raises(DataError, match="the keys group_test"):
        load(archive)


@pytest.mark.parametrize("key", ["x_train", "y_test", "class_names"])
def test_pickled_objects_are_never_loaded(archive: Path, key: str) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (archive.with_suffix(".exploded").touch, ())

    np.savez(archive, **{**ARRAYS, key: np.array([Bomb()], object)})
    with pytest.raises(DataError, match=rf"\[{key}\]"):
        load(archive)
    assert not archive.with_suffix(".exploded").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04nothing", b"\x93NUMPY\x01\x00", b"\x80\x04N.", b"text"])
def test_what_is_no_archive_is_refused(archive: Path, content: bytes) -> None:
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"data\.npz"):
        load(archive)


def test_a_single_array_is_refused(archive: Path) -> None:
    with archive.open("wb") as file:
        np.save(file, ARRAYS["x_train"])
    with pytest.raises(DataError, match="is no archive"):
        load(archive)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("x_train", np.full((4, 5, 5), np.nan)),
        ("x_train", np.zeros((4, 25))),
        ("x_test", np.zeros((2, 6, 6), np.uint8)),
        ("y_train", np.array([0, 1, 2])),
        ("y_train", np.array([0.0, 1.0, 2.0, 1.0])),
        ("class_names", np.array(["only"])),
        ("class_names", np.array("only")),
    ],
)
def test_arrays_of_another_kind_are_refused_with_the_files_name(archive: Path, key: str, values: np.ndarray) -> None:
    np.savez(archive, **{**ARRAYS, key: values})
    with pytest.raises(DataError, match=r"data\.npz"):
        load(archive)


@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_a_damaged_archive_is_refused_or_read(archive: Path, data: st.DataObject) -> None:
    np.savez_compressed(archive, **ARRAYS)
    content = bytearray(archive.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    archive.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    with contextlib.suppress(DataError):
        assert len(load(archive).train) >= 1


def test_a_missing_file_is_told_beforehand(tmp_path: Path) -> None:
    source = build_source(Component(name="npz", path=str(tmp_path / "gone.npz")))
    assert "gone.npz" in str(source.missing())
    with pytest.raises(DataError, match=r"gone\.npz"):
        source.load(0)


def test_arrays_that_are_not_read_are_counted_with_the_key_that_was_meant(archive: Path) -> None:
    np.savez(archive, **ARRAYS, domains_train=np.zeros(4, int), x_val=np.zeros(3))
    (left, *_) = load(archive).left_out
    assert (left.what, left.count, left.examples) == ("arrays", 2, ("domains_train", "x_val"))
    assert "did you mean 'domain_train'" in left.fix


def test_names_of_classes_may_be_bytes(archive: Path) -> None:
    np.savez(archive, **ARRAYS, class_names=np.array([b"x", b"y", b"z"]))
    assert load(archive).train.class_names == ("x", "y", "z")
