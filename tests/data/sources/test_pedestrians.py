"""The generated re-identification data."""

from __future__ import annotations

import numpy as np
import pytest

from fedlab.config import Component
from fedlab.data.partition.partition import make_steps, partition
from fedlab.data.samples import Dataset
from fedlab.data.sources import load_source
from fedlab.errors import DataError

SMALL = {"sites": 3, "identities": 5, "test_identities": 2, "target_identities": 6, "images": 4}


def load(**settings: object) -> Dataset:
    return load_source(Component(name="pedestrians", **{**SMALL, **settings}), 0)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load()


def test_identities_are_disjoint_between_sites_and_splits(dataset: Dataset) -> None:
    train, test = dataset.train, dataset.test
    assert len(train) == 3 * 5 * 4
    assert len(test) == 3 * 2 * 4
    assert not set(train["label"]) & set(test["label"])
    for part in (train, test):
        owners = {int(label): set(part["domain"][part["label"] == label]) for label in np.unique(part["label"])}
        assert all(len(sites) == 1 for sites in owners.values())
        for label in owners:  # dealt evenly to the two cameras
            assert np.unique(part["camera"][part["label"] == label], return_counts=True)[1].tolist() == [2, 2]


def test_the_target_has_cameras_and_people_of_its_own(dataset: Dataset) -> None:
    query, gallery = dataset.server["query"], dataset.server["gallery"]
    assert not set(query["camera"]) & set(dataset.train["camera"])
    assert set(query["camera"]) == set(gallery["camera"])
    assert set(query["label"]) == set(gallery["label"]) == set(range(6))
    assert not set(query.class_names) & set(dataset.train.class_names)
    for identity, camera in zip(query["label"], query["camera"], strict=True):
        assert ((gallery["label"] == identity) & (gallery["camera"] != camera)).sum() == 2


def test_the_probe_says_the_colors_of_the_bands(dataset: Dataset) -> None:
    probe = dataset.server["probe"]
    assert probe["colours"].shape == (3 * 5 * 2, 3)
    assert set(probe["label"]) == set(dataset.train["label"])
    for label in np.unique(probe["label"]):
        assert len(np.unique(probe["colours"][probe["label"] == label], axis=0)) == 1
    # its images are not those trained on
    pixels = {image.tobytes() for image in dataset.train["image"]}
    assert not pixels & {image.tobytes() for image in probe["image"]}


def test_no_two_people_dress_alike_but_share_parts() -> None:
    probe = load(strength=0.0).server["probe"]
    people = [tuple(probe["colours"][probe["label"] == label][0]) for label in np.unique(probe["label"])]
    for band in range(3):
        assert len({outfit[band] for outfit in people}) < len(people)


def test_bands_show_their_colors_and_cameras_change_them() -> None:
    plain, changed = load(strength=0.0), load()
    assert plain.fingerprint != changed.fingerprint
    images, colors = plain.server["probe"]["image"], plain.server["probe"]["colours"]
    red = images[:, :, 6:12, 10:14].mean((2, 3)) / 255
    shown = red[colors[:, 0] == 0]
    if len(shown):
        assert (shown[:, 0] > 1.5 * shown[:, 1]).all()
    blue = red[colors[:, 0] == 5]
    if len(blue):
        assert (blue[:, 2] > blue[:, 0]).all()
    assert len(shown) + len(blue) > 0


def test_it_depends_on_its_own_seed_only(dataset: Dataset) -> None:
    assert load_source(Component(name="pedestrians", **SMALL), 7).fingerprint == dataset.fingerprint
    assert load(data_seed=1).fingerprint != dataset.fingerprint


def test_sites_and_cameras_are_natural_partitions(dataset: Dataset) -> None:
    sites = partition(dataset, make_steps([Component(name="domain")]), 0)
    assert sites.names == ["site0", "site1", "site2"]
    assert sites.test.sizes.tolist() == [8, 8, 8]
    cameras = partition(dataset, make_steps([Component(name="natural")]), 0)
    assert cameras.names[:3] == ["site0-camera0", "site0-camera1", "site1-camera0"]


@pytest.mark.parametrize(
    ("settings", "key"), [({"identities": 8000}, "identities"), ({"images": 1, "cameras": 2}, "images")]
)
def test_impossible_sizes_are_refused(settings: dict[str, int], key: str) -> None:
    with pytest.raises(DataError) as raised:
        load(**settings)
    assert raised.value.key == f"data.source.{key}"
