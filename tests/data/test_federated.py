from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch

from fedlab.config import DataConfig, parse
from fedlab.data import federated as module
from fedlab.data.federated import FederatedData
from fedlab.data.normalize import denormalizer, normalize
from fedlab.data.partition.partition import summary
from fedlab.data.samples import Dataset, Samples
from fedlab.errors import ConfigError, DataError

Make = Callable[..., Dataset]
LABELS = np.arange(60) % 3


def config(partition: object = ({"name": "iid", "clients": 4},), **settings: object) -> DataConfig:
    return parse(DataConfig, {"source": "none", "partition": partition, **settings})


class TestNormalize:
    IMAGES = np.random.default_rng(0).random((6, 3, 4, 5), dtype=np.float32)

    @pytest.mark.parametrize("mean", [(0.5,), (0.1, 0.2, 0.3)])
    def test_denormalizing_undoes_it(self, mean: tuple[float, ...]) -> None:
        data = config(mean=mean, std=(0.25, 0.5, 2.0))
        there = normalize(self.IMAGES, None, ("all",), data)
        back = denormalizer(data)(torch.from_numpy(there))
        assert torch.allclose(back, torch.from_numpy(self.IMAGES), atol=1e-6)
        assert there.std() > self.IMAGES.std()

    def test_known_answers(self) -> None:
        data = config(mean=[0.5], std=[0.5])
        whole = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1)
        assert normalize(whole, None, ("all",), data).ravel().tolist() == pytest.approx([-1, -0.6, 1])
        assert normalize(whole / np.float32(255), None, ("all",), data).ravel().tolist() == pytest.approx([-1, -0.6, 1])

    def test_every_domain_has_its_own_statistics(self) -> None:
        data = config(mean={"a": [0.0], "b": [0.1, 0.2, 0.3]}, std={"b": [2.0], "a": [1.0]})
        there = normalize(self.IMAGES, np.array([0, 1] * 3), ("a", "b"), data)
        assert np.array_equal(there[::2], self.IMAGES[::2])
        shifted = (self.IMAGES[1::2] - np.array([0.1, 0.2, 0.3], np.float32)[:, None, None]) / 2
        assert np.allclose(there[1::2], shifted, atol=1e-6)
        picture = denormalizer(data)(torch.zeros(1, 3, 2, 2))
        assert torch.allclose(picture[0, :, 0, 0], torch.tensor([0.05, 0.10, 0.15]))

    @pytest.mark.parametrize(
        ("settings", "hint"),
        [
            ({"mean": [0.1, 0.2]}, "1 or 3 numbers"),
            ({"mean": []}, "1 or 3 numbers"),
            ({"std": [0.0]}, "above 0"),
            ({"std": [0.5, -1, 1]}, "above 0"),
            ({"mean": {}}, r"missing: \['d0', 'd1'\]"),
            ({"std": {"d0": [1.0], "d2": [1.0]}}, r"missing: \['d1'\]"),
            ({"std": {"d0": [1.0], "d1": [1.0, 2.0]}}, "1 or 3 numbers"),
        ],
    )
    def test_statistics_that_do_not_fit_are_refused(
        self, make_dataset: Make, settings: dict[str, object], hint: str
    ) -> None:
        with pytest.raises(ConfigError, match=hint):
            FederatedData(make_dataset(LABELS, domains=2, images=(3, 8, 8)), config(**settings), 0)


class TestClients:
    def test_a_client_gets_its_normalized_images_and_its_other_columns(self, make_dataset: Make) -> None:
        dataset = make_dataset(LABELS, images=(3, 8, 8))
        data = FederatedData(dataset, config(), 0)
        mine = data.client(2)
        part = data.partition[2]
        assert np.array_equal(mine.train["x"], part.train)
        expected = dataset.train["image"][part.train].astype(np.float32) / 255 * 2 - 1
        assert np.allclose(mine.train["image"], expected, atol=1e-6)
        assert (len(mine.train), len(mine.test)) == (data.num_train(2), data.num_test(2)) == (15, 15)

    def test_data_without_images_or_labels_passes_through(self) -> None:
        columns = {
            "tokens": np.arange(40).reshape(20, 2),
            "mask": np.ones((20, 3, 3), bool),
            "audio": np.zeros((20, 9), np.float32),
            "domain": np.arange(20) % 2,
            "group": np.arange(20) % 5,
        }
        samples = Samples(columns, (), ("a", "b"), tuple("vwxyz"))
        for steps, clients in (("iid", 4), ("natural", 5), ("domain", 2), ("size", 4)):
            step = {"name": steps, "clients": clients} if steps in ("iid", "size") else steps
            data = FederatedData(Dataset("d", samples, samples), config([step]), 0)
            assert data.num_clients == clients
            assert sum(len(data.client(i).train) for i in range(clients)) == 20
            mine = data.client(1).train
            assert {name: mine[name].dtype for name in columns} == {name: v.dtype for name, v in columns.items()}
            told = summary(data.partition, data.dataset)
            assert told["classes"] == ["unlabeled"]
            assert sum(client["train"][0] for client in told["clients"]) == 20

    @pytest.mark.parametrize("name", ["dirichlet", "pathological", "shard"])
    def test_label_skew_needs_labels(self, name: str) -> None:
        samples = Samples({"tokens": np.zeros((20, 2), np.int64)})
        with pytest.raises(DataError, match="labeled data"):
            FederatedData(Dataset("d", samples, samples), config([{"name": name, "clients": 2}]), 0)

    def test_a_corruption_touches_only_its_clients_images(self, make_dataset: Make) -> None:
        dataset = make_dataset(LABELS, images=(3, 8, 8))
        steps = [{"name": "corruption", "corruptions": ["contrast", "fog"], "images": "repeat", "severity": 5}]
        data = FederatedData(dataset, config(steps, mean=[0.0], std=[1.0]), 0)
        contrast, fog = (data.client(i).train for i in range(2))
        clean = dataset.train["image"].astype(np.float32) / 255
        assert contrast["image"].std() < 0.3 * clean.std()
        assert not np.array_equal(contrast["image"], fog["image"])
        assert np.array_equal(contrast["label"], fog["label"])
        again = FederatedData(dataset, config(steps, mean=[0.0], std=[1.0]), 99).client(1).train
        assert np.array_equal(again["image"], fog["image"])

    def test_the_fingerprint_is_of_what_the_client_sees(self, make_dataset: Make) -> None:
        dataset = make_dataset(LABELS, images=(1, 8, 8))
        prints = {
            FederatedData(dataset, config(mean=[m]), 0).client(i).fingerprint for m in (0.5, 0.4) for i in range(4)
        }
        assert len(prints) == 8

    def test_prepared_parts_are_kept_up_to_a_bound(self, make_dataset: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        data = FederatedData(make_dataset(LABELS, images=(3, 8, 8)), config(), 0)
        assert data.client(0) is data.client(0)
        monkeypatch.setattr(module, "_CACHE_BYTES", int(2.5 * data.client(0).nbytes))
        kept = data.client(0), data.client(1)
        data.client(0)
        data.client(2)  # drops client 1, which was used longest ago
        assert data.client(0) is kept[0]
        assert data.client(1) is not kept[1]
        monkeypatch.setattr(module, "_CACHE_BYTES", 1)
        assert len(data.client(3).train) == 15

    def test_it_pickles_without_what_it_prepared(self, make_dataset: Make) -> None:
        data = FederatedData(
            make_dataset(LABELS, images=(3, 8, 8), server={"public": make_dataset(LABELS).train}), config(), 0
        )
        before = len(pickle.dumps(data))
        data.client(0)
        data.server("public")
        assert len(pickle.dumps(data)) == before
        buffers: list[pickle.PickleBuffer] = []
        assert len(pickle.dumps(data, protocol=5, buffer_callback=buffers.append)) < 10_000
        assert np.array_equal(pickle.loads(pickle.dumps(data)).client(0).train["image"], data.client(0).train["image"])

    def test_no_training_samples_are_refused(self, make_dataset: Make) -> None:
        with pytest.raises(DataError, match="this one has none"):
            FederatedData(make_dataset(LABELS[:0], LABELS), config(), 0)


class TestServer:
    def test_its_samples_are_normalized_and_not_divided(self, make_dataset: Make) -> None:
        public = make_dataset(LABELS[:7], domains=2, images=(3, 8, 8)).train
        dataset = make_dataset(LABELS, images=(3, 8, 8), server={"public": public})
        data = FederatedData(dataset, config(), 0)
        assert np.allclose(data.server("public")["image"], public["image"].astype(np.float32) / 127.5 - 1, atol=1e-6)
        assert np.array_equal(data.server("public")["x"], public["x"])
        assert sum(len(data.client(i).train) for i in range(4)) == 60

    def test_a_name_it_does_not_hold_is_refused(self, make_dataset: Make) -> None:
        data = FederatedData(make_dataset(LABELS, server={"public": make_dataset(LABELS).train}), config(), 0)
        with pytest.raises(DataError, match="did you mean 'public'"):
            data.server("publik")

    def test_its_domains_need_statistics_too(self, make_dataset: Make) -> None:
        public = make_dataset(LABELS, domains=2, images=(3, 8, 8)).train
        dataset = make_dataset(LABELS, images=(3, 8, 8), server={"public": public})
        with pytest.raises(ConfigError, match="missing"):
            FederatedData(dataset, config(mean={"d0": [0.5]}), 0)
