"""Plain local training: minimize cross-entropy on the client's own samples (FedAvg's ClientUpdate).

The algorithm, in the order in which it runs, and the hook that does each line::

    every round, every client, for every batch:  step on CE(model(x), y)    loss
    server: average by numbers of samples                                   exchange (the default)
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.method import Batch, Method, Step, Task, model_input


class Supervised(Method):
    """Local supervised training (McMahan et al. 2017, algorithm 1, ClientUpdate)."""

    title = "Supervised local training"
    paper = "McMahan et al. 2017, arXiv 1602.05629"
    learns_from = "labels only: the baseline, FedAvg"
    per_example_loss = True
    functional_loss = True
    augments = True

    def build(self, task: Task) -> dict[str, nn.Module]:
        return {"model": task.model()}

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        return {"ce": F.cross_entropy(networks["model"](model_input(batch)), batch["label"])}


METHOD = Supervised
