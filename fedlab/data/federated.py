"""All clients' data: one copy of the samples, each client's part made ready when it is asked for."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedlab.config import DataConfig
from fedlab.data.normalise import check_statistics, denormaliser, normalise
from fedlab.data.partition import partition
from fedlab.data.samples import Dataset, Samples
from fedlab.errors import DataError, did_you_mean
from fedlab.seeding import derive_seed

_CACHE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class ClientData:
    """One client's samples, images corrupted as the partition says and normalised.

    Args:
        id: FedLab client id.
        name: from the partition.
        train: ``image`` as float32 (n, C, H, W).
        test: likewise.
    """

    id: int
    name: str
    train: Samples
    test: Samples

    @property
    def fingerprint(self) -> str:
        """Hash of the training samples as the client sees them."""
        return self.train.fingerprint

    @property
    def nbytes(self) -> int:
        return sum(values.nbytes for part in (self.train, self.test) for values in part.columns.values())


class FederatedData:
    """A data set and its partition. Pickles without the prepared parts; arrays travel out of band.

    Args:
        dataset: samples of all clients.
        config: partition and normalisation.
        seed: the run's seed.

    Raises:
        DataError: the partition is impossible, or the data is empty.
        ConfigError: statistics that do not fit the data.
    """

    def __init__(self, dataset: Dataset, config: DataConfig, seed: int) -> None:
        if not len(dataset.train):
            raise DataError("data.source", dataset.name, "training samples: there are none")
        self.dataset, self.config, self.seed = dataset, config, seed
        for samples in (dataset.train, *dataset.server.values()):
            if "image" in samples.columns:
                check_statistics(config, samples["image"].shape[1], samples.domain_names)
        self.partition = partition(dataset, config.partition, seed)
        self._ready: OrderedDict[int, ClientData] = OrderedDict()
        self._server: dict[str, Samples] = {}

    @property
    def columns(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Every column's dtype and shape per sample, as clients see it: images are float32."""
        return {
            name: ("float32" if name == "image" else values.dtype.name, values.shape[1:])
            for name, values in self.dataset.train.columns.items()
        }

    @property
    def num_clients(self) -> int:
        return len(self.partition)

    @property
    def num_classes(self) -> int:
        return self.dataset.train.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.dataset.train.class_names

    def num_train(self, client: int) -> int:
        """Training samples of a client."""
        return int(self.partition.train.sizes[client])

    def num_test(self, client: int) -> int:
        """Test samples of a client."""
        return int(self.partition.test.sizes[client])

    def client(self, client: int) -> ClientData:
        """A client's data; the parts used last are kept ready, up to half a gigabyte."""
        if client in self._ready:
            self._ready.move_to_end(client)
            return self._ready[client]
        part = self.partition[client]
        train = self._prepare(self.dataset.train, part.train, part.corruption, "train")
        test = self._prepare(self.dataset.test, part.test, part.corruption, "test")
        data = ClientData(client, part.name, train, test)
        self._ready[client] = data
        held = sum(other.nbytes for other in self._ready.values())
        while held > _CACHE_BYTES and len(self._ready) > 1:
            held -= self._ready.popitem(last=False)[1].nbytes
        return data

    def server(self, name: str) -> Samples:
        """Samples the server holds, normalised as the clients' are.

        Raises:
            DataError: the data set has none of that name.
        """
        held = self.dataset.server
        if name not in held:
            raise DataError("server data", name, "samples the data set keeps for the server", did_you_mean(name, held))
        if name not in self._server:
            self._server[name] = self._prepare(held[name], np.arange(len(held[name])), None, name)
        return self._server[name]

    def denormalise(self, images: Any) -> Any:
        """Normalised images → [0, 1], clipped; for pictures."""
        return denormaliser(self.config)(images)

    def _prepare(
        self, samples: Samples, indices: np.ndarray, corruption: tuple[str, int] | None, split: str
    ) -> Samples:
        chosen = samples.select(indices)
        if "image" not in chosen.columns:
            return chosen
        images = chosen["image"]
        if corruption is not None and len(images):
            from fedlab.data.corruptions import corrupt

            # corruption belongs to the data, not to the run: the same picture is spoilt alike under every seed
            seed = derive_seed(0, "corruption", split)
            images = corrupt(images, *corruption, seed, indices)
        ready = normalise(images, chosen.columns.get("domain"), samples.domain_names, self.config)
        return Samples({**chosen.columns, "image": ready}, chosen.class_names, chosen.domain_names, chosen.group_names)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": OrderedDict(), "_server": {}}
