"""The optimizer of local training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from fedlab.errors import FedLabError

_OPTIMIZER_SETTINGS = {"optimizer", "lr", "momentum", "betas", "eps", "weight_decay", "clip_norm", "clip"}


class NotFiniteError(FedLabError):
    """The loss is NaN or infinite."""


class Optimizer:
    """A torch optimizer with clipping, whose parameter groups can follow a schedule. The attribute `torch` holds it.

    Args:
        optimizer: the torch optimizer. A parameter group with a ``clip_norm`` of its own is clipped to that norm, apart
            from all other parameters but those of groups with the same ``clip_with``, which is a name.
        clip_norm: the largest L2 norm that a gradient may have; None for no limit.
        clip: ``global`` limits the norm of the gradient of all parameters together (or of all of a group with a norm of
            its own), ``tensor`` that of each parameter by itself.
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
        """Scale down gradients whose norm is larger than `clip_norm`, or than the ``clip_norm`` of their group."""
        together: dict[object, tuple[list[Tensor], float | None]] = {}
        for place, group in enumerate(self.torch.param_groups):
            own = "clip_norm" in group
            key = group.get("clip_with", place) if own else None
            parameters, _ = together.setdefault(key, ([], group["clip_norm"] if own else self.clip_norm))
            parameters += group["params"]
        for parameters, limit in together.values():
            if limit is not None:
                for bounded in [parameters] if self._clip == "global" else [[p] for p in parameters]:
                    torch.nn.utils.clip_grad_norm_(bounded, limit)

    def set(self, values: Callable[[Mapping[str, Any]], Mapping[str, float]]) -> None:
        """Set new values of each parameter group.

        Args:
            values: called with the initial settings of a group, without its parameters; returns the settings to change.
        """
        for group, initial in zip(self.torch.param_groups, self.initial, strict=True):
            group.update(values(initial))


def with_rate(group: Any, lr: float) -> Any:
    """A parameter group with its learning rate if it has a factor of it; any other group, or a tensor, as it is."""
    return {"lr": lr * group["lr_factor"], **group} if isinstance(group, dict) and "lr_factor" in group else group
