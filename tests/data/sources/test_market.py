"""Folders named as Market-1501's."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedlab.config import Component
from fedlab.data.partition.partition import make_steps, partition
from fedlab.data.samples import Dataset
from fedlab.data.sources import build_source, load_source
from fedlab.errors import ConfigErrors, DataError
from fedlab.metrics.retrieval import Retrieval


def picture(path: Path, value: int, size: tuple[int, int] = (10, 24)) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 255 - value)).save(path)


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Path]:
    """Two sources of five identities under two cameras each, and a target with junk and distractors."""
    for source, first in (("north", 2), ("south", 100)):
        for identity in range(first, first + 5):
            for camera in (1, 2):
                picture(
                    tmp_path / source / "bounding_box_train" / f"{identity:04d}_c{camera}s1_000451_03.jpg", identity
                )
        (tmp_path / source / "bounding_box_train" / "Thumbs.db").write_bytes(b"x")
    target = tmp_path / "target"
    picture(target / "query" / "0007_c1s1_000001_00.jpg", 70)
    picture(target / "query" / "0008_c2s1_000001_00.jpg", 80)
    for name in ("0007_c1s1_000002_01", "0007_c3s2_000002_01", "0008_c1s1_000003_01", "0000_c1s1_000009_02"):
        picture(target / "bounding_box_test" / f"{name}.jpg", 10)
    picture(target / "bounding_box_test" / "-1_c4s1_000004_01.jpg", 5)
    return {name: tmp_path / name for name in ("north", "south", "target")}


def load(roots: dict[str, Path], **settings: Any) -> Dataset:
    sources = {name: str(root) for name, root in roots.items() if name != "target"}
    given = {"sources": sources, "target": str(roots["target"]), "height": 16, "width": 8, **settings}
    return load_source(Component(name="market", **given), 0)


def test_sources_are_domains_and_their_cameras_groups(roots: dict[str, Path]) -> None:
    dataset = load(roots)
    train, test = dataset.train, dataset.test
    assert train["image"].shape == (8, 3, 16, 8)
    assert train.domain_names == ("north", "south")
    assert train.group_names == ("north-c1", "north-c2", "south-c1", "south-c2")
    assert train.num_classes == 10
    assert len(test) == 12
    assert not set(train["label"]) & set(test["label"])
    for part in (train, test):
        for label, camera, domain in zip(part["label"], part["camera"], part["domain"], strict=True):
            assert part.class_names[label].split("-")[0] == part.domain_names[domain]
            assert part.group_names[camera].split("-")[0] == part.domain_names[domain]
    assert partition(dataset, make_steps([Component(name="domain")]), 0).names == ["north", "south"]
    # the red channel of a picture is its identity
    assert np.allclose(
        train["image"][:, 0].mean((1, 2)), [int(train.class_names[i].split("-")[1]) for i in train["label"]], atol=3
    )


def test_junk_is_left_out_and_distractors_stay(roots: dict[str, Path]) -> None:
    server = load(roots).server
    gallery = server["gallery"]
    assert [gallery.class_names[i] for i in gallery["label"]] == ["0000", "0007", "0007", "0008"]
    assert gallery["camera"].tolist() == [1, 1, 3, 1]
    assert server["query"]["camera"].tolist() == [1, 2]
    assert server.keys() == {"query", "gallery"}


def test_without_a_target_the_server_holds_nothing(roots: dict[str, Path]) -> None:
    assert load(roots, target=None).server == {}


def test_other_names_are_read_with_a_pattern_of_ones_own(roots: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "other" / "bounding_box_train"
    for identity in range(4):
        picture(folder / f"{identity:04d}_000_{identity % 2 + 1:02d}_0303morning.jpg", identity)
    dataset = load(
        {"other": tmp_path / "other", "target": roots["target"]},
        target=None,
        pattern=r"^(?P<identity>\d+)_\d+_(?P<camera>\d+)",
    )
    assert dataset.train.group_names == ("other-c1", "other-c2")


def test_held_out_identities_depend_on_the_data_seed_only(roots: dict[str, Path]) -> None:
    first, other = load(roots), load(roots, data_seed=3)
    assert load(roots).fingerprint == first.fingerprint
    assert other.fingerprint != first.fingerprint
    assert load(roots, validation=0.6).fingerprint == first.fingerprint


@pytest.mark.parametrize(("people", "held"), [(4, 2), (5, 2), (10, 2), (19, 2), (20, 2), (29, 2), (30, 3), (50, 5)])
def test_two_identities_at_least_make_the_test(tmp_path: Path, people: int, held: int) -> None:
    for identity, camera, shot in product(range(people), (1, 2), range(3)):
        picture(tmp_path / "one" / "bounding_box_train" / f"{identity:04d}_c{camera}s{shot}.jpg", identity)
    dataset = load({"one": tmp_path / "one", "target": tmp_path}, target=None)
    assert len(set(dataset.test["label"])) == held
    assert len(set(dataset.train["label"])) == people - held
    assert chance(dataset.test["label"], dataset.test["camera"]) < 0.52


def chance(labels: np.ndarray, cameras: np.ndarray) -> float:
    """What a thousand random rankings score."""
    rng, metric, n = np.random.default_rng(0), Retrieval(), len(labels)
    for _ in range(1000 // n):
        features = torch.from_numpy(rng.standard_normal((n, 16)))
        held = features, torch.from_numpy(labels), torch.from_numpy(cameras)
        metric.update(*held, *held)
    return metric.compute()["mAP"]


def test_more_identities_make_the_test_where_they_have_few_images(tmp_path: Path) -> None:
    # one right among three images: guessing scores (1 + 1/2 + 1/3) / 3 = 0.61 with two identities, 0.46 with three
    for identity, camera in product(range(8), (1, 2)):
        picture(tmp_path / "one" / "bounding_box_train" / f"{identity:04d}_c{camera}.jpg", identity)
    dataset = load({"one": tmp_path / "one", "target": tmp_path}, target=None)
    assert len(set(dataset.test["label"])) == 3


def test_a_source_whose_test_is_guessing_is_refused(tmp_path: Path) -> None:
    for identity, camera in product(range(4), (1, 2)):
        picture(tmp_path / "one" / "bounding_box_train" / f"{identity:04d}_c{camera}.jpg", identity)
    error = refused({"one": tmp_path / "one", "target": tmp_path}, target=None)
    assert error.key == "data.source.sources.one"
    assert "0.61" in str(error)


def refused(roots: dict[str, Path], **settings: Any) -> DataError:
    with pytest.raises(DataError) as raised:
        load(roots, **settings)
    return raised.value


def test_a_missing_folder_is_named(roots: dict[str, Path], tmp_path: Path) -> None:
    error = refused({**roots, "east": tmp_path / "east"})
    assert error.key == "data.source.sources.east"
    assert "bounding_box_train" in error.expected
    (roots["target"] / "query").rename(tmp_path / "moved")
    error = refused(roots)
    assert error.key == "data.source.target"
    assert "query/" in error.expected
    source = Component(name="market", sources={"east": str(tmp_path / "east")})
    assert str(tmp_path / "east") in str(build_source(source).missing())


def test_a_name_without_identity_and_camera_is_refused(roots: dict[str, Path]) -> None:
    picture(roots["north"] / "bounding_box_train" / "holiday.jpg", 1)
    error = refused(roots)
    assert "holiday.jpg" in str(error.value)
    assert "pattern" in error.fix


def test_too_few_identities_are_refused(roots: dict[str, Path], tmp_path: Path) -> None:
    for identity in (1, 2):
        picture(tmp_path / "tiny" / "bounding_box_train" / f"{identity:04d}_c1.jpg", 1)
    assert "at least 4" in refused({"tiny": tmp_path / "tiny", "target": roots["target"]}).expected


def test_an_empty_folder_is_refused(roots: dict[str, Path]) -> None:
    for path in (roots["south"] / "bounding_box_train").glob("*.jpg"):
        path.unlink()
    assert refused(roots).key == "data.source.sources.south"


def test_queries_without_any_match_are_refused(roots: dict[str, Path]) -> None:
    for path in (roots["target"] / "bounding_box_test").glob("000[78]*"):
        path.unlink()
    assert "under another camera" in refused(roots).expected


def test_a_broken_picture_is_named(roots: dict[str, Path]) -> None:
    (roots["north"] / "bounding_box_train" / "0002_c1s1_000451_03.jpg").write_bytes(b"no picture")
    assert "0002_c1s1_000451_03.jpg" in str(refused(roots).value)


@pytest.mark.parametrize("pattern", [r"^(\d+)_c(\d+)", r"(?P<identity>\d+", r"(?P<identity>\d+)"])
def test_a_pattern_without_both_names_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigErrors, match="pattern"):
        build_source(Component(name="market", sources={"a": "b"}, pattern=pattern))


def test_junk_and_other_files_are_counted(roots: dict[str, Path]) -> None:
    (roots["north"] / "bounding_box_train" / "notes.txt").write_text("x")
    found = {left.what: left.count for left in load(roots).left_out}
    assert found == {"files": 1, "pictures": 1}
