"""Mean and deviation of filter banks, and inputs that are normalized with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fedlab.distill.windows import clip_lengths, cut
from fedlab.models.filterbank import FilterBank


def filterbank_sums(bank: FilterBank, batches: Iterable[Mapping[str, Tensor]]) -> Tensor:
    """Count, sum and sum of squares of the filter bank over every frame of some clips, (3,) float64.

    Args:
        bank: the filter bank.
        batches: clips in a column ``audio`` (n, T), with their true lengths in ``length`` if they are padded. Each
            clip's own mean is removed, and frames of padding do not count, since they say nothing about the microphone.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    for batch in batches:
        length = clip_lengths(batch)
        whole = cut(batch["audio"], length, torch.zeros_like(length), max(bank.frame, batch["audio"].shape[1]))
        x = bank(whole - whole.mean(1, keepdim=True)).double()
        last = ((length - bank.frame) // bank.shift).clamp(min=0)
        x = x[torch.arange(x.shape[1], device=x.device) <= last[:, None]]
        sums = sums + torch.tensor([x.numel(), float(x.sum()), float(x.square().sum())], dtype=torch.float64)
    return sums


class Normalizer(nn.Module):
    """Filter bank x → (x − mean) / (2 std): the normalization of AST, whose factor 2 is on purpose.

    Args:
        mean: initial mean.
        std: initial standard deviation.

    Source: Gong et al. 2021, arXiv 2104.01778.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / (2 * self.std)

    @torch.no_grad()
    def set(self, sums: Tensor) -> None:
        """Take mean and std from (count, sum, sum of squares), float64; a constant input keeps the std at hand."""
        count, total, squares = sums.tolist()
        if count:
            mean = total / count
            variance = squares / count - mean**2
            self.mean.fill_(mean)
            if variance > 0:
                self.std.fill_(variance**0.5)
