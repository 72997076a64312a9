"""BatchNorm statistics: a target for synthesizing images, and how they are averaged over clients.

Source: Yin et al. 2020, arXiv 1912.08795 (DeepInversion), Eq. 4, with the weights of Yin and Shen 2023,
arXiv 2311.18838.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

BatchNorm: TypeAlias = nn.modules.batchnorm._BatchNorm
"""Base class of BatchNorm1d, BatchNorm2d and BatchNorm3d."""


def batch_norms(model: nn.Module) -> list[BatchNorm]:
    """The BatchNorm layers that keep running statistics, in module order."""
    return [m for m in model.modules() if isinstance(m, BatchNorm) and m.track_running_stats]


class BatchNormMatching:
    """Distance between the statistics of a batch in a model's BatchNorm layers and their running statistics.

    This is a context manager. Inside it, every forward pass of the model replaces the recorded distances, and `loss`
    returns their weighted sum. The model must be in evaluation mode, because a forward pass in training mode would
    change its running statistics.

    Args:
        model: a model with BatchNorm layers that keep running statistics.
        first_weight: weight of the first layer; the others have weight 1.
    """

    def __init__(self, model: nn.Module, first_weight: float = 10.0) -> None:
        self._layers = batch_norms(model)
        self._weights = [first_weight if index == 0 else 1.0 for index in range(len(self._layers))]
        self._distances: dict[int, Tensor] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> BatchNormMatching:
        for index, layer in enumerate(self._layers):
            self._handles.append(layer.register_forward_pre_hook(self._recorder(index)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _recorder(self, index: int) -> Any:
        def record(layer: BatchNorm, inputs: tuple[Tensor, ...]) -> None:
            self._distances[index] = statistics_distance(inputs[0], layer)

        return record

    def loss(self) -> Tensor:
        """Σ_l w_l·(‖σ²_l − var_l‖₂ + ‖μ_l − mean_l‖₂) of the last forward pass, over the layers l; a scalar."""
        return torch.stack([self._weights[index] * d for index, d in sorted(self._distances.items())]).sum()


def statistics_distance(x: Tensor, layer: BatchNorm) -> Tensor:
    """‖σ² − var‖₂ + ‖μ − mean‖₂ between a batch and the running statistics, a scalar.

    Args:
        x: (n, C, …), the layer's input; μ and the biased σ² are per channel, over the batch and all further dimensions.
        layer: BatchNorm over C channels.
    """
    with torch.autocast(x.device.type, enabled=False):
        variance, mean = torch.var_mean(x.float(), dim=(0, *range(2, x.ndim)), correction=0)
        running_mean, running_var = cast(Tensor, layer.running_mean), cast(Tensor, layer.running_var)
        off = torch.linalg.vector_norm
        distance: Tensor = off(variance - running_var) + off(mean - running_mean)
        return distance


@torch.no_grad()
def to_second_moments(model: nn.Module) -> None:
    """Replace every running variance by E[x²] = var + mean², which can be averaged over clients."""
    for layer in batch_norms(model):
        cast(Tensor, layer.running_var).add_(cast(Tensor, layer.running_mean).square())


@torch.no_grad()
def from_second_moments(model: nn.Module) -> None:
    """The reverse of `to_second_moments`.

    Applied to averages over clients with weights p_i, it yields the variance of all clients' data together,
    Σ_i p_i(var_i + mean_i²) − mean². Negative values, which rounding can cause, become 0.
    """
    for layer in batch_norms(model):
        cast(Tensor, layer.running_var).sub_(cast(Tensor, layer.running_mean).square()).clamp_(min=0)


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics to the plain averages of the statistics of these batches.

    Afterwards all modules have their earlier modes, and the BatchNorm layers their earlier momenta.

    Args:
        model: in any mode; meanwhile its BatchNorm layers are in training mode, all other modules in evaluation mode.
        batches: inputs of the model.
    """
    layers = batch_norms(model)
    modes, momenta = {module: module.training for module in model.modules()}, [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.train()
        layer.momentum = None
    for batch in batches:
        model(batch)
    for module, training in modes.items():
        module.training = training
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
