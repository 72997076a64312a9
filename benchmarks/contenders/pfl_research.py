"""pfl-research's simulation of federated averaging, in one process. Needs the package ``pfl``, but not FedLab."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch.nn import functional as F

from benchmarks.contenders.bare import simple_cnn
from benchmarks.pace import Pace
from benchmarks.work import Work


class Model(torch.nn.Module):
    """The network with the two functions that pfl calls."""

    def __init__(self) -> None:
        super().__init__()
        self.network = simple_cnn()

    def loss(self, images: torch.Tensor, labels: torch.Tensor, eval: bool = False) -> torch.Tensor:
        """Mean cross-entropy of a batch."""
        self.train(not eval)
        return F.cross_entropy(self.network(images), labels)

    def metrics(self, images: torch.Tensor, labels: torch.Tensor, eval: bool = False) -> dict[str, Any]:
        """Asked for in the first round only, which is not measured."""
        return {"loss": Weighted(float(self.loss(images, labels, eval)) * len(labels), len(labels))}


class Paced(TrainingProcessCallback):
    """Lets iterations begin when it is their turn."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def on_train_begin(self, *, model: Any) -> Metrics:
        self._pace.tick()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        return not self._pace.tick(), Metrics()


def main(work: Work) -> None:
    """The simulation."""
    torch.set_num_threads(1)
    images, labels = (torch.from_numpy(values.copy()) for values in work.data())

    def user(index: int) -> PyTorchTensorDataset:
        part = slice(index * work.samples, (index + 1) * work.samples)
        order = torch.from_numpy(np.random.permutation(work.samples))
        return PyTorchTensorDataset(tensors=(images[part][order], labels[part][order]))

    data = FederatedDataset(user, get_user_sampler("random", range(work.clients)))
    network = Model()
    model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0))
    FederatedAveraging().run(
        NNAlgorithmParams(work.rounds + 1, work.rounds + 1, work.cohort, 0),
        SimulatedBackend(data, data),
        model,
        NNTrainHyperParams(local_batch_size=work.batch, local_num_epochs=1, local_learning_rate=work.lr),
        NNEvalHyperParams(local_batch_size=work.batch),
        callbacks=[Paced(Pace(work.rounds))],
    )
