"""Point clouds of one's own: archives, and folders of meshes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlab.config import Component
from fedlab.data.samples import Dataset
from fedlab.data.sources import build_source, load_source
from fedlab.errors import DataError

CUBE = """OFF
8 12 0
0 0 0\n1 0 0\n1 1 0\n0 1 0\n0 0 1\n1 0 1\n1 1 1\n0 1 1
3 0 2 1\n3 0 3 2\n3 4 5 6\n3 4 6 7\n3 0 1 5\n3 0 5 4\n3 1 2 6\n3 1 6 5\n3 2 3 7\n3 2 7 6\n3 3 0 4\n3 3 4 7
"""
PLATE = "v 0 0 0\nv 3 0 0\nv 3 1 0\nv 0 1 0\nf 1 2 3\nf 1 3 4\n"


def load(path: Path, **settings: Any) -> Dataset:
    return load_source(Component(name="points", path=str(path), **{"points": 32, **settings}), 0)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def cloud_file(points: np.ndarray) -> str:
    lines = "\n".join(" ".join(f"{value:g}" for value in point) for point in points)
    header = (
        "ply\nformat ascii 1.0\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\nend_header"
    )
    return f"{header.format(len(points))}\n{lines}\n"


@pytest.fixture
def modelnet(tmp_path: Path) -> Path:
    root = tmp_path / "net"
    for split in ("train", "test"):
        for index in range(2):
            write(root / "cube" / split / f"{split}{index}.off", CUBE)
            write(root / "plate" / split / f"{split}{index}.obj", PLATE)
    return root


# folders


def test_class_folders_with_train_and_test_in_each(modelnet: Path) -> None:
    dataset = load(modelnet, normalize=False)
    assert dataset.train.class_names == ("cube", "plate")
    assert dataset.train["label"].tolist() == [0, 0, 1, 1]
    assert dataset.test["points"].shape == (4, 32, 3)
    assert dataset.left_out == ()
    cube, plate = dataset.train["points"][0], dataset.train["points"][2]
    assert np.isclose(cube, 0).any(axis=1).mean() + np.isclose(cube, 1).any(axis=1).mean() >= 1, "off the surface"
    assert np.allclose(plate[:, 2], 0)
    assert plate[:, 0].max() > 2


def test_train_and_test_with_class_folders_in_each_are_the_same_data(modelnet: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for file in modelnet.rglob("*.*"):
        write(other / file.parent.name / file.parent.parent.name / file.name, file.read_text("utf-8"))
    assert load(other).train["label"].tolist() == load(modelnet).train["label"].tolist()
    assert len(load(other).test) == 4


def test_without_a_split_a_share_of_each_class_is_drawn(tmp_path: Path) -> None:
    for index in range(10):
        write(tmp_path / "cube" / f"{index}.off", CUBE)
        write(tmp_path / "plate" / f"{index}.obj", PLATE)
    dataset = load(tmp_path)
    assert np.bincount(dataset.test["label"]).tolist() == [2, 2]
    assert np.bincount(dataset.train["label"]).tolist() == [8, 8]


def test_a_shape_is_the_same_whatever_lies_beside_it_and_no_two_files_are_sampled_alike(modelnet: Path) -> None:
    before = load(modelnet)
    assert not np.array_equal(before.train["points"][0], before.train["points"][1])
    write(modelnet / "ball" / "train" / "0.off", CUBE)
    write(modelnet / "ball" / "test" / "0.off", CUBE)
    after = load(modelnet)
    assert np.array_equal(after.train["points"][1:3], before.train["points"][:2])
    assert not np.array_equal(load(modelnet, data_seed=1).train["points"], after.train["points"])


def test_points_are_uniform_over_the_surface(tmp_path: Path) -> None:
    # one large and one small face: 9 of 10 points lie on the large one
    text = "v 0 0 0\nv 9 0 0\nv 0 2 0\nv 20 0 0\nv 21 0 0\nv 20 2 0\nf 1 2 3\nf 4 5 6\n"
    for split in ("train", "test"):
        write(tmp_path / "a" / split / f"{split}.obj", text)
    cloud = load(tmp_path, points=2000, normalize=False).train["points"][0]
    assert np.mean(cloud[:, 0] < 10) == pytest.approx(0.9, abs=0.03)


def test_shapes_are_brought_into_the_unit_ball_if_asked_for(modelnet: Path) -> None:
    assert np.allclose(np.linalg.norm(load(modelnet).train["points"], axis=2).max(axis=1), 1, atol=1e-5)


def test_clouds_in_files_are_subsampled_and_refused_if_they_are_too_small(tmp_path: Path) -> None:
    many = np.random.default_rng(0).normal(size=(40, 3)).round(3)
    for split in ("train", "test"):
        write(tmp_path / "a" / split / f"{split}.ply", cloud_file(many))
        write(tmp_path / "b" / split / f"{split}.ply", cloud_file(many[:32]))
    dataset = load(tmp_path, normalize=False)
    known = {tuple(point) for point in many.astype(np.float32).tolist()}
    assert {tuple(point) for point in dataset.train["points"][0].tolist()} < known
    assert np.array_equal(dataset.train["points"][1], many[:32].astype(np.float32)), "nothing to choose"
    with pytest.raises(DataError, match="32 points") as caught:
        load(tmp_path, points=33)
    assert "train.ply" in str(caught.value)
    assert "at most 32" in caught.value.fix


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n", "readable mesh"),
        ("x.obj", "# nothing\n", "no vertices"),
        ("x.obj", PLATE.replace("v 3 1 0", "v nan 1 0"), "vertex 2 is NaN"),
        ("x.obj", "v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "an area"),
        ("x.ply", "ply\nformat ascii 1.0\nelement vertex 5\n", "readable mesh"),
        ("x.off", CUBE.replace("3 3 4 7", "3 3 4 70"), "readable mesh"),
    ],
)
def test_a_file_that_is_no_shape_is_named(modelnet: Path, name: str, text: str, said: str) -> None:
    write(modelnet / "cube" / "train" / name, text)
    with pytest.raises(DataError) as caught:
        load(modelnet)
    assert name in str(caught.value)
    assert said in str(caught.value)


def test_several_objects_in_one_file_are_one_shape(tmp_path: Path) -> None:
    text = "o one\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\no two\nv 5 0 0\nv 6 0 0\nv 5 1 0\nf 4 5 6\n"
    for split in ("train", "test"):
        write(tmp_path / "a" / split / f"{split}.obj", text)
    cloud = load(tmp_path, points=200, normalize=False).train["points"][0]
    assert 50 < int((cloud[:, 0] > 3).sum()) < 150


def test_what_is_no_shape_is_counted(modelnet: Path) -> None:
    write(modelnet / "notes.txt", "?")
    write(modelnet / "cube" / "readme.md", "?")
    write(modelnet / "cube" / "train" / "preview.png", "?")
    write(modelnet / "cube" / "more" / "0.off", CUBE)
    (modelnet / "empty").mkdir()
    left = {example for one in load(modelnet).left_out for example in one.examples}
    assert left == {"notes.txt", "cube/readme.md", "cube/train/preview.png", "cube/more/0.off", "empty"}


def test_half_a_split_is_named(modelnet: Path) -> None:
    for file in (modelnet / "cube" / "test").iterdir():
        file.unlink()
    (modelnet / "cube" / "test").rmdir()
    with pytest.raises(DataError, match="a folder 'test' beside it"):
        load(modelnet)


def test_a_folder_without_shapes_says_what_was_found(tmp_path: Path) -> None:
    write(tmp_path / "cube" / "0.stl", "solid")
    with pytest.raises(DataError, match="train shapes") as caught:
        load(tmp_path)
    assert "0.stl" in caught.value.fix


def test_without_trimesh_the_extra_is_named(modelnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(DataError, match=r"pip install 'fedlab-sim\[points\]'"):
        load(modelnet)


# archives


def arrays(n: int = 6, points: int = 40) -> dict[str, Any]:
    x = np.random.default_rng(0).normal(size=(n, points, 3)).astype(np.float32)
    return {"x_train": x, "y_train": np.arange(n) % 2, "x_test": x[:2], "y_test": np.array([0, 1])}


def save(path: Path, **changes: Any) -> Path:
    np.savez(path, **{**arrays(), **changes})
    return path


def test_an_archive_needs_no_further_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trimesh", None)
    names = {"class_names": np.array(["cup", "jug"]), "domain_train": np.array(["a", "b"] * 3)}
    path = save(
        tmp_path / "x.npz", **names, domain_test=np.array(["a", "a"]), group_train=np.arange(6), group_test=np.arange(2)
    )
    dataset = load(path, points=40, normalize=False)
    assert np.array_equal(dataset.train["points"], arrays()["x_train"])
    assert dataset.train.class_names == ("cup", "jug")
    assert dataset.train.domain_names == ("a", "b")
    assert dataset.train["group"].tolist() == list(range(6))


def test_clouds_of_an_archive_are_subsampled(tmp_path: Path) -> None:
    dataset = load(save(tmp_path / "x.npz"), points=8, normalize=False)
    assert dataset.train["points"].shape == (6, 8, 3)
    whole = arrays()["x_train"]
    for few, many in zip(dataset.train["points"], whole, strict=True):
        assert {tuple(point) for point in few.tolist()} < {tuple(point) for point in many.tolist()}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x_train": arrays()["x_train"].transpose(0, 2, 1)}, r"x.transpose\(0, 2, 1\)"),
        ({"x_test": np.zeros((2, 40))}, "clouds of equal size"),
        (
            {"x_train": np.where(np.arange(6)[:, None, None] == 4, np.nan, arrays()["x_train"])},
            "1 of 6 shapes, the first is 4",
        ),
        ({"x_test": arrays()["x_train"][:2, :31]}, "31 points"),
        ({"y_train": np.arange(5)}, "equal numbers"),
    ],
)
def test_wrong_arrays_are_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        load(save(tmp_path / "x.npz", **changes))
    assert "x.npz" in str(caught.value) or "y_train" in str(caught.value) or "columns" in str(caught.value)


def test_integers_are_coordinates_too(tmp_path: Path) -> None:
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 3), axis=-1).reshape(1, 64, 3).repeat(2, axis=0)
    path = save(tmp_path / "x.npz", x_train=grid, y_train=np.arange(2), x_test=grid)
    assert load(path).train["points"].dtype == np.float32


def test_nothing_there_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    source = build_source(Component(name="points", path=str(tmp_path / "no")))
    assert "data.source.path" in str(source.missing())
    with pytest.raises(DataError, match="a folder of shapes"):
        load(tmp_path / "no")


# ShapeNet's 57,448 shapes: one array without labels


def test_an_archive_of_unlabeled_clouds_is_divided_by_a_seed_and_says_that_it_has_no_classes(tmp_path: Path) -> None:
    clouds = arrays(n=20)["x_train"]
    np.savez(tmp_path / "shapenet57448xyzonly.npz", data=clouds)
    dataset = load(tmp_path / "shapenet57448xyzonly.npz", points=40, normalize=False)
    assert (len(dataset.train), len(dataset.test)) == (16, 4)
    both = np.concatenate([dataset.train["points"], dataset.test["points"]])
    assert {cloud.tobytes() for cloud in both} == {cloud.tobytes() for cloud in clouds}, "each shape is in one split"
    assert "label" not in dataset.train.columns
    assert any(left.what == "labels" and left.count == 20 for left in dataset.left_out)
    other = load(tmp_path / "shapenet57448xyzonly.npz", points=40, normalize=False, data_seed=1)
    assert not np.array_equal(other.test["points"], dataset.test["points"])
    assert len(load(tmp_path / "shapenet57448xyzonly.npz", test_fraction=0.5).test) == 10


def test_an_unlabeled_array_beside_labeled_ones_is_counted_and_not_read(tmp_path: Path) -> None:
    dataset = load(save(tmp_path / "x.npz", data=arrays()["x_test"]))
    assert len(dataset.train) == 6
    assert [left.examples for left in dataset.left_out if left.what == "arrays"] == [("data",)]


def test_unlabeled_clouds_of_a_wrong_shape_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", data=np.zeros((3, 40, 2)))
    with pytest.raises(DataError, match="data = 'shape") as caught:
        load(tmp_path / "x.npz")
    assert "x.npz" in str(caught.value)


# ShapeNet-55: one folder of .npy files, and lists


@pytest.fixture
def shapenet55(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "shapenet_pc").mkdir()
    for name in ("02691156-1a", "02691156-1b", "02691156-1c", "03001627-1a", "03001627-9f"):
        np.save(tmp_path / "shapenet_pc" / f"{name}.npy", rng.normal(size=(40, 3)).astype(np.float32))
    write(tmp_path / "ShapeNet-55" / "train.txt", "02691156-1a.npy\n03001627-1a.npy\n02691156-1b.npy\n")
    write(tmp_path / "ShapeNet-55" / "test.txt", "03001627-9f.npy\n\n")
    return tmp_path


def load_listed(root: Path, **settings: Any) -> Dataset:
    return load(root / "shapenet_pc", lists=str(root / "ShapeNet-55"), normalize=False, points=40, **settings)


def test_lists_say_class_and_split_and_what_they_leave_out_is_counted(
    shapenet55: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trimesh", None)
    dataset = load_listed(shapenet55)
    assert dataset.train.class_names == ("02691156", "03001627")
    assert dataset.train["label"].tolist() == [0, 1, 0]
    assert dataset.test["label"].tolist() == [1]
    assert np.array_equal(dataset.train["points"][1], np.load(shapenet55 / "shapenet_pc" / "03001627-1a.npy"))
    assert [(left.count, left.examples) for left in dataset.left_out if left.what == "files"] == [
        (1, ("02691156-1c.npy",))
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("../secret-1.npy", "without folders"),
        ("/etc/a-1.npy", "without folders"),
        ("02691156-1c.txt", "without folders"),
        ("chair.npy", "whose first part is the class"),
        ("-1c.npy", "whose first part is the class"),
        ("02691156-1a.npy", "train.txt names it too"),
        ("02691156-77.npy", "there is no such file"),
    ],
)
def test_a_wrong_line_of_a_list_is_named(shapenet55: Path, line: str, said: str) -> None:
    write(shapenet55 / "ShapeNet-55" / "test.txt", f"03001627-9f.npy\n{line}\n")
    with pytest.raises(DataError) as caught:
        load_listed(shapenet55)
    assert said in str(caught.value)
    assert Path(line).name in str(caught.value)


def test_a_missing_list_is_named_and_so_is_an_archive_with_lists(shapenet55: Path) -> None:
    (shapenet55 / "ShapeNet-55" / "test.txt").unlink()
    with pytest.raises(DataError, match=r"test\.txt"):
        load_listed(shapenet55)
    with pytest.raises(DataError, match=r"leave data\.source\.lists out"):
        load(save(shapenet55 / "x.npz"), lists=str(shapenet55 / "ShapeNet-55"))


@pytest.mark.parametrize(
    "content",
    [
        np.zeros((40, 2)),
        np.zeros(40),
        np.full((40, 3), np.nan),
        np.array([None] * 3, dtype=object),
        np.zeros((40, 3), complex),
    ],
    ids=["two coordinates", "no rows", "NaN", "pickled", "complex"],
)
def test_a_file_that_is_no_cloud_is_named(shapenet55: Path, content: np.ndarray) -> None:
    np.save(shapenet55 / "shapenet_pc" / "03001627-9f.npy", content, allow_pickle=True)
    with pytest.raises(DataError, match=r"03001627-9f\.npy"):
        load_listed(shapenet55)


def test_a_list_that_is_endless_or_in_another_encoding_is_named(
    shapenet55: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shapenet55 / "ShapeNet-55" / "test.txt").write_bytes("03001627-9f.npy\nchäir-1.npy\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"test\.txt, line 2: byte 0xe4"):
        load_listed(shapenet55)
    monkeypatch.setattr("fedlab.data.files.shape_lists._LARGEST", 20)
    with pytest.raises(DataError, match=r"has \d+ bytes; a file of this kind has at most 20"):
        load_listed(shapenet55)
