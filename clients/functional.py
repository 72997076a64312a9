"""A method's loss as a function of network state, which is what `torch.func` differentiates and batches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedlab.clients.trainer import LocalTrainer
from fedlab.method import Batch, Step

_NETWORKS = "networks."


class MethodLoss(nn.Module):
    """A loss whose parameters and buffers can be replaced; a module, because `torch.func` calls modules.

    Args:
        networks: whose state is replaced.
        trainer: whose method and precision it is.
    """

    def __init__(self, networks: nn.ModuleDict, trainer: LocalTrainer) -> None:
        super().__init__()
        self.networks, self._trainer = networks, trainer

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        with self._trainer.autocast():
            return self._trainer.method.loss(self.networks, batch, step)

    def of(self, state: Mapping[str, Tensor], batch: Mapping[str, Tensor], step: Step) -> dict[str, Tensor]:
        """Terms with this state of the networks, by its names there."""
        replaced = {f"{_NETWORKS}{name}": value for name, value in state.items()}
        terms: dict[str, Tensor] = torch.func.functional_call(self, replaced, (dict(batch), step))
        return terms
