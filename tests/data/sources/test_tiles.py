"""Generated tiles: independent factors, slides that are never divided, laboratories that stain differently."""

from __future__ import annotations

import numpy as np
import pytest

from fedlab.config import Component, DataConfig, parse
from fedlab.data.federated import FederatedData
from fedlab.data.generated.tiles import LEVELS, SIDE, draw_tiles
from fedlab.data.samples import Dataset
from fedlab.data.sources import load_source


def loaded(seed: int = 0, **settings: object) -> Dataset:
    small = {"train": 320, "test": 160, "probe": 40, "server_test": 40, **settings}
    return load_source(Component(name="tiles", **small), seed)


def test_a_tile_shows_its_factors() -> None:
    """Red falls with the area of nuclei, which grows with their number and their size."""
    kinds = np.arange(400) % LEVELS
    tiles = draw_tiles(kinds, np.ones((400, 2)), 0.0, np.random.default_rng(0))
    assert tiles.pixels.shape == (400, 3, SIDE, SIDE)
    assert tiles.pixels.dtype == np.float32
    red = [float(tiles.pixels[kinds == kind, 0].mean()) for kind in range(LEVELS)]
    assert red[0] > red[1] > red[3]
    assert red[0] > red[2] > red[3]


@pytest.mark.parametrize(("direction", "axis"), [(0, 2), (2, 1)])
def test_fibers_run_in_their_direction(direction: int, axis: int) -> None:
    """Waves along one axis hardly vary along the other."""
    tiles = draw_tiles(np.zeros(200, int), np.ones((200, 2)), 0.0, np.random.default_rng(1))
    green = tiles.pixels[tiles.stroma == direction, 1].astype(float)
    along = np.abs(np.diff(green, axis=axis)).mean()
    across = np.abs(np.diff(green, axis=3 - axis)).mean()
    assert along > 2 * across


def test_the_second_factor_is_independent_of_the_first_and_of_the_slide() -> None:
    data = loaded(train=1600).train
    counts = np.zeros((LEVELS, LEVELS))
    np.add.at(counts, (data["nuclei"], data["stroma"]), 1)
    assert counts.min() > 60
    assert np.array_equal(data["label"], data["nuclei"] * LEVELS + data["stroma"])
    assert len(data.class_names) == 16


def test_a_slide_has_one_kind_of_nuclei_one_laboratory_and_one_client() -> None:
    for domains in ("nuclei", "laboratory"):
        dataset = loaded(domains=domains)
        for part in (dataset.train, dataset.test):
            for slide in np.unique(part["group"]):
                inside = part["group"] == slide
                assert len(np.unique(part["nuclei"][inside])) == 1
                assert len(np.unique(part["domain"][inside])) == 1
        config = parse(
            DataConfig, {"source": "tiles", "partition": ["domain"], "validation": {"share": 0.3, "by": "group"}}
        )
        federated = FederatedData(dataset, config, 0)
        owners: dict[int, set[tuple[int, str]]] = {}
        for client in range(federated.num_clients):
            data = federated.client(client)
            for name, samples in (("train", data.train), ("validation", data.validation)):
                for slide in np.unique(samples["group"]):
                    owners.setdefault(int(slide), set()).add((client, name))
        assert all(len(found) == 1 for found in owners.values())
        assert {name for found in owners.values() for _, name in found} == {"train", "validation"}


def test_laboratories_stain_differently() -> None:
    data = loaded(train=1600, domains="laboratory").train
    means = [data["image"][data["domain"] == lab].mean((0, 2, 3)) for lab in range(4)]
    assert means[0][1] < means[3][1], "the last laboratory uses less eosin, which takes green away"


def test_equal_seeds_draw_equal_tiles() -> None:
    assert loaded(1, data_seed=None).fingerprint == loaded(1, data_seed=1).fingerprint
    assert loaded(1, data_seed=None).fingerprint != loaded(2, data_seed=None).fingerprint
    assert loaded(1).fingerprint == loaded(2).fingerprint
