"""Faces of one's own: layouts, whole videos, region maps, and what is refused or counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedlab.config import Component
from fedlab.data.regions import template
from fedlab.data.samples import Dataset
from fedlab.data.sources import load_source
from fedlab.errors import DataError

SIZE = 20


def face(path: Path, value: int, mapped: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((SIZE, SIZE, 3), value % 256, np.uint8)).save(path)
    if mapped:
        np.save(path.with_suffix(".npy"), template(SIZE, SIZE))


def folder(
    root: Path, domains: tuple[str, ...] = ("north/", "south/"), splits: tuple[str, ...] = ("train/", "test/")
) -> Path:
    value = 0
    for split in splits:
        for domain in domains:
            for kind in ("real", "fake", "unlabeled"):
                if kind == "unlabeled" and split == "test/":
                    continue
                for video in range(3):
                    for frame in range(2):
                        value += 1
                        face(root / f"{split}{domain}{kind}/v{video}/{frame}.png", value, kind != "fake")
    return root


def load(root: Path, **settings: Any) -> Dataset:
    return load_source(Component(name="faces_folder", path=str(root), size=16, **settings), 0)


def test_domains_classes_and_videos_are_folders(tmp_path: Path) -> None:
    data = load(folder(tmp_path))
    assert data.left_out == ()
    assert data.train.class_names == ("fake", "real")
    assert data.train.domain_names == ("north", "south")
    assert data.train.group_names[0] == "north/fake/v0"
    assert (len(data.train), len(data.test)) == (36, 24)
    labeled, label = data.train["labeled"], data.train["label"]
    assert (labeled.sum(), label[labeled].mean(), label[~labeled].mean()) == (24, 0.5, 1)
    assert (data.train["frames"] == 2).all()
    assert (data.train["mapped"] == (label == 1)).all()
    assert set(np.unique(data.train["regions"][label == 1])) >= {0, 1, 6, 10}
    assert not data.train["regions"][label == 0].any()


def test_without_domains_and_splits_videos_are_drawn_whole(tmp_path: Path) -> None:
    data = load(folder(tmp_path, ("",), ("",)), test_fraction=0.34)
    assert data.train.domain_names == ("all",)
    assert set(data.train["group"]).isdisjoint(data.test["group"])
    assert np.bincount(data.test["label"]).tolist() == [2, 2]
    assert data.test["labeled"].all()
    assert load(tmp_path, test_fraction=0.34).fingerprint == data.fingerprint
    others = {load(tmp_path, test_fraction=0.34, data_seed=seed).fingerprint for seed in range(1, 6)}
    assert others - {data.fingerprint}


def test_loose_pictures_are_videos_of_their_own_and_sets_of_the_server_are_read(tmp_path: Path) -> None:
    folder(tmp_path)
    face(tmp_path / "train/north/real/loose.png", 7)
    face(tmp_path / "server/faces/real/one.png", 8)
    face(tmp_path / "server/CDF/fake/a/1.png", 9, False)
    face(tmp_path / "server/CDF/real/b/1.png", 10)
    data = load(tmp_path)
    assert "north/real/loose.png" in data.train.group_names
    assert (data.train["frames"] == 1).sum() == 1
    assert {name: len(samples) for name, samples in data.server.items()} == {"CDF": 2, "faces": 1}
    assert data.server["CDF"]["label"].tolist() == [0, 1]


def test_folders_of_classes_have_the_names_that_the_settings_say(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for kind in ("original", "Deepfakes", "FaceSwap"):
            face(tmp_path / split / kind / "1.png", 5)
    data = load(tmp_path, real=["original"], fake=["Deepfakes", "FaceSwap"])
    assert np.bincount(data.train["label"]).tolist() == [2, 1]
    with pytest.raises(DataError, match=r"data\.source\.real"):
        load(tmp_path, real=["original"], fake=["Deepfakes"])
    with pytest.raises(DataError, match="names that differ"):
        load(tmp_path, real=["original"], fake=["original"])


def test_frames_are_evenly_spaced_and_the_others_counted(tmp_path: Path) -> None:
    for frame in range(9):
        face(tmp_path / f"train/real/v/{frame}.png", 10 * frame)
        face(tmp_path / f"test/fake/v/{frame}.png", 10 * frame, False)
    data = load(tmp_path, frames=3)
    assert (data.train["frames"] == 3).all()
    assert data.train["image"][:, 0, 0, 0].tolist() == [0, 40, 80]
    (left,) = [left for left in data.left_out if left.what == "frames"]
    assert (left.count, left.total, left.wanted) == (12, 18, True)


# maps


def test_a_real_face_without_a_map_is_counted_and_not_pre_trained_on(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "train/north/real/v0/0.npy").unlink()
    data = load(tmp_path)
    assert (~data.train["mapped"] & (data.train["label"] == 1)).sum() == 1
    (left,) = data.left_out
    assert (left.what, left.count, left.examples) == ("region maps", 1, ("train/north/real/v0/0.png",))


def test_the_template_is_recorded_as_an_approximation(tmp_path: Path) -> None:
    folder(tmp_path)
    data = load(tmp_path, regions="template")
    left = next(left for left in data.left_out if left.what == "exact region maps")
    assert "approximates" in left.why
    real = data.train["label"] == 1
    assert (data.train["regions"][real] == template(16, 16)).all()


def test_without_maps_there_are_no_such_columns(tmp_path: Path) -> None:
    data = load(folder(tmp_path), regions="none")
    assert not {"regions", "mapped"} & set(data.train.columns)


def test_a_parser_needs_its_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.source\.parser"):
        load(folder(tmp_path), regions="segformer")
    with pytest.raises(DataError, match="SegFormer"):
        load(tmp_path, regions="segformer", parser=str(tmp_path / "nowhere"))


# refusals


def test_a_folder_that_is_no_class_is_refused(tmp_path: Path) -> None:
    folder(tmp_path)
    face(tmp_path / "train/north/other/1.png", 1)
    with pytest.raises(DataError, match="other"):
        load(tmp_path)


def test_half_a_split_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    face(tmp_path / "train/real/1.png", 1)
    with pytest.raises(DataError, match="'test' beside it"):
        load(tmp_path)
    (tmp_path / "test" / "real").mkdir(parents=True)
    with pytest.raises(DataError, match="test pictures"):
        load(tmp_path)
    with pytest.raises(DataError, match="a folder of faces"):
        load(tmp_path / "nowhere")
