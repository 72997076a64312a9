from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedlab import from_arrays
from fedlab.config import Component
from fedlab.data.files.images import as_float
from fedlab.data.samples import Dataset
from fedlab.data.sources import build_source, load_source
from fedlab.errors import DataError


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a test used the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def load(path: Path | str, **settings: Any) -> Dataset:
    return load_source(Component(name="hub", path=str(path), size=8, **settings), 0)


def pictures(count: int) -> list[Image.Image]:
    return [Image.fromarray(np.full((6, 7, 3), 10 * i, np.uint8)) for i in range(count)]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder written by save_to_disk."""
    from datasets import ClassLabel, DatasetDict, Features, Value
    from datasets import Dataset as Table
    from datasets import Image as Picture

    features = Features(
        {
            "img": Picture(),
            "fine": ClassLabel(names=["cat", "dog"]),
            "writer": Value("string"),
            "score": Value("float32"),
        }
    )

    def table(count: int) -> Any:
        columns = {
            "img": pictures(count),
            "fine": [i % 2 for i in range(count)],
            "writer": [f"w{i % 3}" for i in range(count)],
            "score": [0.5] * count,
        }
        return Table.from_dict(columns, features=features)

    path = tmp_path / "saved"
    DatasetDict({"train": table(10), "test": table(4)}).save_to_disk(str(path))
    return path


COLUMNS = {"image_column": "img", "label_column": "fine"}


def test_a_folder_written_by_save_to_disk(saved: Path) -> None:
    dataset = load(saved, **COLUMNS, group_column="writer")
    assert dataset.train.class_names == ("cat", "dog")
    assert dataset.train["label"].tolist() == [0, 1] * 5
    assert dataset.train["image"][:, 0, 0, 0].tolist() == [10 * i for i in range(10)]
    assert dataset.train.group_names == ("w0", "w1", "w2")
    assert dataset.test["group"].tolist() == [0, 1, 2, 0]
    assert load(saved, **COLUMNS, channels=1).train["image"].shape == (10, 1, 8, 8)


def test_a_limit_draws_samples_whatever_the_runs_seed(saved: Path) -> None:
    few = load(saved, **COLUMNS, limit=3)
    assert (len(few.train), len(few.test)) == (3, 3)
    again = load_source(Component(name="hub", path=str(saved), size=8, limit=3, **COLUMNS), 9)
    assert few.fingerprint == again.fingerprint
    assert load(saved, **COLUMNS, limit=3, data_seed=1).fingerprint != few.fingerprint


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("test", 2)):
        for i, picture in enumerate(pictures(count)):
            folder = tmp_path / "shots" / split / ("cat", "dog")[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{i}.png")
    dataset = load(tmp_path / "shots")
    assert dataset.train.class_names == ("cat", "dog")
    assert sorted(zip(dataset.train["label"].tolist(), dataset.train["image"][:, 0, 0, 0].tolist(), strict=True)) == [
        (0, 0),
        (0, 20),
        (1, 10),
        (1, 30),
    ]


def test_parquet_files(tmp_path: Path) -> None:
    import pandas

    for split in ("train", "test"):
        table = pandas.DataFrame({"pixels": [np.full((3, 4), 7).tolist()] * 3, "label": ["b", "a", "b"]})
        table.to_parquet(tmp_path / f"{split}.parquet")
    dataset = load(tmp_path, image_column="pixels")
    assert dataset.train.class_names == ("a", "b")
    assert dataset.train["label"].tolist() == [1, 0, 1]
    assert (dataset.train["image"] == 7).all()


@pytest.mark.parametrize(
    ("settings", "key", "hint"),
    [
        ({"image_column": "imgg"}, "image_column", "did you mean 'img'"),
        ({"label_column": "coarse"}, "label_column", "one of img, fine"),
        ({"group_column": "author"}, "group_column", "one of img, fine"),
        ({"label_column": "score"}, "label_column", "one integer or text"),
        ({"group_column": "score"}, "group_column", "one integer or text"),
        ({"image_column": "writer"}, "image_column", "sample 0"),
        ({"train_split": "training"}, "train_split", "one of train, test"),
        ({"test_split": "test[:50%]"}, "test_split", "one of train, test"),
    ],
)
def test_a_wrong_setting_is_named(saved: Path, settings: dict[str, str], key: str, hint: str) -> None:
    with pytest.raises(DataError, match=hint) as caught:
        load(saved, **{**COLUMNS, **settings})
    assert caught.value.key == f"data.source.{key}"


def test_a_broken_picture_is_counted(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for i, picture in enumerate(pictures(4)):
            folder = tmp_path / split / ("cat", "dog")[i // 2]
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{i}.png")
    broken = tmp_path / "train/dog/2.png"
    broken.write_bytes(broken.read_bytes()[:45])
    with pytest.raises(DataError, match="sample 2"):
        load(tmp_path)


def test_one_split_alone_is_refused(saved: Path) -> None:
    with pytest.raises(DataError, match="a single split"):
        load(saved / "train", **COLUMNS)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        load(tmp_path)


class TestMissing:
    def test_a_hub_name_that_is_not_in_the_cache(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        source = build_source(Component(name="hub", path="ylecun/mnist"))
        assert "the run will download it" in str(source.missing())
        (tmp_path / "datasets--ylecun--mnist").mkdir()
        assert source.missing() is None

    def test_offline_loading_says_what_to_do(self) -> None:
        with pytest.raises(DataError, match="copy a save_to_disk folder here"):
            load("nobody/nothing-of-this-name")

    def test_a_local_folder(self, tmp_path: Path) -> None:
        source = build_source(Component(name="hub", path=str(tmp_path / "gone")))
        assert "no folder" in str(source.missing())


class TestOneRule:
    """The hub's arrays, labels and names are read as everybody's are."""

    def saved(self, root: Path, images: list[Any], image: Any = None, **columns: Any) -> Path:
        """Train and test with the same images; a column given as a pair differs between them."""
        import datasets

        def table(split: int) -> Any:
            label = columns.get("label", ([0, 1] * 3, [0, 1] * 3))[split]
            names = columns.get("names", (["a", "b"], ["a", "b"]))[split]
            kind = datasets.ClassLabel(names=names) if names else datasets.Value(columns.get("kind", "string"))
            features = datasets.Features({"image": image or datasets.Image(), "label": kind})
            return datasets.Dataset.from_dict({"image": images[: len(label)], "label": label}, features=features)

        datasets.DatasetDict({"train": table(0), "test": table(1)}).save_to_disk(str(root))
        return root

    def test_classes_are_those_of_their_names(self, tmp_path: Path) -> None:
        labels, names = ([0, 1, 2] * 2, [0, 1, 2]), (["a", "b", "c"], ["c", "b", "x"])
        dataset = load(self.saved(tmp_path / "d", pictures(6), label=labels, names=names))
        assert dataset.train.class_names == ("a", "b", "c", "x")
        assert [dataset.test.class_names[i] for i in dataset.test["label"]] == ["c", "b", "x"]
        assert [left.examples for left in dataset.left_out if left.what == "classes"] == [("x",), ("a",)]

    def test_names_and_text_go_together_but_bare_numbers_do_not(self, tmp_path: Path) -> None:
        labels = [0, 1, 0, 1], ["b", "a", "b", "a"]
        dataset = load(self.saved(tmp_path / "d", pictures(6), label=labels, names=(["a", "b"], None)))
        assert [dataset.test.class_names[i] for i in dataset.test["label"]] == ["b", "a", "b", "a"]
        bare = self.saved(tmp_path / "e", pictures(6), label=([0, 1], [1, 0]), names=(["a", "b"], None), kind="int64")
        with pytest.raises(DataError, match="class names in both splits, or in none"):
            load(bare)

    @pytest.mark.parametrize(
        ("value", "kind", "pixel"),
        [
            (np.full((8, 8), 0.5, np.float32), "float32", 128), (np.full((8, 8), True), "bool", 255),
            (np.full((8, 8, 1), 9, np.uint8), "uint8", 9), (np.full((3, 8, 8), 9, np.uint8), "uint8", 9),
            (np.full((8, 8, 3), 200, np.int32), "int32", 200),
        ],
    )  # fmt: skip
    def test_arrays_are_pictures_as_everywhere(self, tmp_path: Path, value: Any, kind: str, pixel: int) -> None:
        import datasets

        array = {2: datasets.Array2D, 3: datasets.Array3D}[value.ndim]
        dataset = load(self.saved(tmp_path / "d", [value] * 6, array(value.shape, kind)))
        assert (dataset.train["image"] == pixel).all()
        arrays = from_arrays(np.stack([value] * 6), np.arange(6) % 2, np.stack([value] * 6), np.arange(6) % 2)
        assert np.allclose(as_float(dataset.train["image"])[:, :1], as_float(arrays.train["image"])[:, :1], atol=0.003)

    def test_sixteen_bits_are_refused_with_the_sample_and_advice_for_both_splits(self, tmp_path: Path) -> None:
        import datasets

        root = self.saved(tmp_path / "d", [np.full((8, 8), 40000)] * 6, datasets.Array2D((8, 8), "uint16"))
        with pytest.raises(DataError, match=r"sample 0[\s\S]*257[\s\S]*12 of 12 pictures"):
            load(root)

    def test_bytes_of_a_file_are_the_picture(self, tmp_path: Path) -> None:
        import datasets

        files = []
        for one in pictures(6):
            one.save(tmp_path / "x.png")
            files.append((tmp_path / "x.png").read_bytes())
        dataset = load(self.saved(tmp_path / "d", files, datasets.Value("binary")))
        assert dataset.fingerprint == load(self.saved(tmp_path / "e", pictures(6))).fingerprint

    def test_what_is_not_used_is_counted(self, saved: Path) -> None:
        found = {left.what: left.count for left in load(saved, **COLUMNS, limit=3).left_out}
        assert found == {"columns": 2, "samples of train": 7, "samples of test": 1}
