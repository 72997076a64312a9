"""The losses of LGViT: of exits and last classifier together (§3.3), and of the last layer as teacher (§3.4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.distill.precision import full_precision
from fedlab.distill.soft_labels import soft_label_kl
from fedlab.methods.lgvit.networks import GLOBAL, LOCAL, STRIDES, Seen, subsampled
from fedlab.methods.lgvit.settings import Kind


def joint_terms(exits: Sequence[Tensor], layers: Sequence[int], final: Tensor, depth: int) -> dict[str, Tensor]:
    """[Σ_i ℓ(i) CE_i + L CE_final] / (Σ_i ℓ(i) + L), where ℓ(i) is the number of an exit's layer (§3.3).

    Args:
        exits: CE_i of every exit.
        layers: ℓ(i).
        final: CE_final.
        depth: L.

    Returns:
        The part of the exits and that of the last classifier, which add up to the loss.

    Source: the authors' code, mode ``alternating_weighted``, which has 12 for every L.
    """
    total = sum(layers) + depth
    terms = {"joint_final": depth * final / total}
    if exits:
        weights = torch.tensor(layers, dtype=final.dtype, device=final.device)
        terms["joint_exits"] = (weights * torch.stack([*exits])).sum() / total
    return terms


def prediction_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KD = T² / (B K) Σ p_T log(p_T / p) of softmaxes of temperature T, divided by samples and classes (§3.4).

    Args:
        logits: of an exit, (B, K).
        teacher: logits of the last classifier, (B, K), which get no gradient.
        temperature: T.
    """
    return soft_label_kl(logits, teacher, temperature, squared=True) / logits.shape[1]


def channel_distance(features: Tensor, targets: Tensor) -> Tensor:
    """D(Φ, Y) = 1/B Σ over samples and tokens of KL(softmax(Y) ‖ softmax(Φ)) over the channels (§3.4).

    Args:
        features: Φ (B, M, C).
        targets: Y (B, M, C), which get no gradient.
    """
    with full_precision(features, targets.detach()) as (φ, y):
        return F.kl_div(F.log_softmax(φ, 2), F.log_softmax(y, 2), reduction="sum", log_target=True) / len(φ)


def taught(seen: Sequence[Seen]) -> Iterator[Seen]:
    """The exits whose features the last layer teaches: the first and the last of each family of heads."""
    for family in (LOCAL, GLOBAL):
        members = _of(family, seen)
        yield from members[:1]
        yield from members[1:][-1:]


def hete_loss(seen: Sequence[Seen], last: Tensor, grid: tuple[int, int]) -> Tensor:
    """L_hete = Σ D(Φ, P_L) over the first and last head of each family, with P_L sub-sampled as the head does (§3.4).

    Args:
        seen: of the exits, in order.
        last: P_L, patch tokens after the last layer, (B, N, C).
        grid: rows and columns of the patches.
    """
    found = [channel_distance(one.features, subsampled(last, grid, STRIDES[one.kind])) for one in taught(seen)]
    return torch.stack(found).sum() if found else last.new_zeros(())


def homo_loss(seen: Sequence[Seen], detach: bool = False) -> Tensor:
    """L_homo: the last head of a family teaches the others, by their features if they are local perception heads, and
    by ΦᵀΦ (C × C) if they are global aggregation heads, whose numbers of tokens differ (§3.4).

    Args:
        seen: of the exits, in order.
        detach: whether the last heads get no gradient from it.
    """
    found = []
    for family in (LOCAL, GLOBAL):
        members = _of(family, seen)
        for one in members[:-1]:
            with full_precision(one.features, members[-1].features) as (student, teacher):
                pair = (student, teacher) if family == LOCAL else (_gram(student), _gram(teacher))
                found.append(F.mse_loss(pair[0], pair[1].detach() if detach else pair[1]))
    return torch.stack(found).sum() if found else torch.zeros((), device=seen[0].logits.device)


def _gram(features: Tensor) -> Tensor:
    """ΦᵀΦ of every sample, (B, C, C)."""
    return features.transpose(1, 2) @ features


def _of(family: Sequence[Kind], seen: Sequence[Seen]) -> list[Seen]:
    return [one for one in seen if one.kind in family]
