"""A method's loss as a function of the network state, so that `torch.func` can differentiate and batch it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedlab.clients.trainer import LocalTrainer
from fedlab.method import Batch, Step

_NETWORKS = "networks."


class MethodLoss(nn.Module):
    """A loss whose parameters and buffers can be replaced. It is a module, because `functional_call` needs one.

    Args:
        networks: the networks whose state is replaced.
        trainer: its method computes the loss, in its precision.
    """

    def __init__(self, networks: nn.ModuleDict, trainer: LocalTrainer) -> None:
        super().__init__()
        self.networks, self._trainer = networks, trainer

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        with self._trainer.autocast():
            return self._trainer.method.loss(self.networks, batch, step)

    def of(self, state: Mapping[str, Tensor], batch: Mapping[str, Tensor], step: Step) -> dict[str, Tensor]:
        """The terms of the loss, computed with `state` in place of the networks' own parameters and buffers.

        Args:
            state: parameters and buffers by their names in the networks; those that are missing are not replaced.
            batch: the batch.
            step: the step that the loss is told of.
        """
        replaced = {f"{_NETWORKS}{name}": value for name, value in state.items()}
        terms: dict[str, Tensor] = torch.func.functional_call(self, replaced, (dict(batch), step))
        return terms
