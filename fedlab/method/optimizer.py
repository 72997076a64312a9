"""The optimizer of local training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from fedlab.errors import FedLabError

_OPTIMIZER_SETTINGS = {"optimizer", "lr", "momentum", "betas", "eps", "weight_decay", "clip_norm", "clip"}


class NotFiniteError(FedLabError):
    """A loss became NaN or infinite."""


class Optimizer:
    """A torch optimizer whose parameter groups can follow a schedule.

    Args:
        optimizer: the wrapped optimizer.
        clip_norm: largest L2 norm of the gradient, None for no limit.
        clip: ``global`` bounds the norm over all parameters, ``tensor`` each parameter's by itself.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        clip_norm: float | None = None,
        clip: Literal["global", "tensor"] = "global",
    ) -> None:
        self.torch, self.clip_norm, self._clip = optimizer, clip_norm, clip
        self.initial: list[Mapping[str, Any]] = [
            {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
        ]

    @property
    def parameters(self) -> list[Tensor]:
        return [p for group in self.torch.param_groups for p in group["params"]]

    def clip_gradients(self) -> None:
        """Scale gradients down to `clip_norm`."""
        if self.clip_norm is None:
            return
        for bounded in [self.parameters] if self._clip == "global" else [[p] for p in self.parameters]:
            torch.nn.utils.clip_grad_norm_(bounded, self.clip_norm)

    def set(self, values: Callable[[Mapping[str, Any]], Mapping[str, float]]) -> None:
        """Set each group to what `values` makes of the group's initial settings."""
        for group, initial in zip(self.torch.param_groups, self.initial, strict=True):
            group.update(values(initial))
