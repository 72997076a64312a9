"""What every contender does, and the data it does it on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

SHAPE, CLASSES = (3, 32, 32), 10


@dataclass(frozen=True)
class Work:
    """One workload.

    Args:
        name: of the workload.
        folder: where the data lies and a contender may write.
        clients: of the federation.
        cohort: clients of a round.
        rounds: rounds of a process, the one to warm up included.
        heats: how often all processes start anew. Where its code and memory happen to lie makes a process several per
            cent faster or slower for as long as it lives, which more rounds do not average out.
        samples: images of a client.
        batch: batch size of one local epoch of SGD.
        lr: its learning rate.
        payload: float32 values of a model that clients send back as they got it; 0 trains `simple_cnn`.
        indices: samples of the federation whose clients only echo, at least one each.
    """

    name: str
    folder: str
    clients: int = 1000
    cohort: int = 50
    rounds: int = 6
    heats: int = 1
    samples: int = 50
    batch: int = 10
    lr: float = 0.1
    payload: int = 0
    indices: int = 0

    def to_json(self) -> str:
        """What a contender is given on its command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Work:
        return cls(**json.loads(text))

    def write_data(self) -> None:
        """Make the images, N(0, 1), and labels of all clients."""
        if self.payload:
            return
        rng = np.random.default_rng(0)
        shape = (self.clients * self.samples, *SHAPE)
        images = np.lib.format.open_memmap(self._file("images"), mode="w+", dtype=np.float32, shape=shape)
        for start in range(0, len(images), 1000):
            part = images[start : start + 1000]
            part[:] = rng.standard_normal(part.shape, dtype=np.float32)
        images.flush()
        np.save(self._file("labels"), rng.integers(0, CLASSES, len(images)))

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Images (n, 3, 32, 32) and labels (n,) of all clients; client i has samples i·samples to (i + 1)·samples.

        The file is mapped, so that contenders share its memory.
        """
        return np.load(self._file("images"), mmap_mode="r"), np.load(self._file("labels"))

    def of_clients(self, clients: range) -> tuple[np.ndarray, np.ndarray]:
        """Images (n, samples, 3, 32, 32) and labels (n, samples) of consecutive clients, copied."""
        images, labels = self.data()
        part = slice(clients.start * self.samples, clients.stop * self.samples)
        each = (len(clients), self.samples)
        return np.array(images[part]).reshape(*each, *SHAPE), np.array(labels[part]).reshape(each)

    def _file(self, name: str) -> Path:
        return Path(self.folder) / f"{name}.npy"
