"""The losses of GPFM towards experts, and iBOT's over masked patches only (§3.3)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from fedlab.distill.prototypes import cross_entropies
from fedlab.distill.spread import koleo

_COSINE, _SMOOTH = 0.9, 0.1  # parts of L_patch


def masked_patch_loss(targets: Tensor, logits: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """L_ibot = Σ_i (1 / |M_i|) Σ_{j ∈ M_i} H(q_ij, p_ij) / n, over all n images, masked or not.

    Args:
        targets: q of the masked patches alone, (M, K), image by image.
        logits: of the student for the same patches, (M, K).
        mask: (n, N) truth values, M of which are true.
        temperature: τ_s.
    """
    counts = mask.sum(1)
    weights = (1 / counts.clamp(min=1))[mask.nonzero()[:, 0]]
    rows = cross_entropies(targets, F.log_softmax(logits.float() / temperature, dim=-1))
    return (weights * rows).sum() / len(mask)


def spread_loss(features: Tensor) -> Tensor:
    """L_koleo: the sum of `fedlab.distill.spread.koleo` over both blocks of crops, so that crops of a tile never meet.

    Args:
        features: class tokens of the student before the head, (2B, D), the block of the first crops first.
    """
    first, second = features.chunk(2)
    return koleo(first) + koleo(second)


def cls_loss(made: Tensor, wanted: Tensor, kind: str = "cosine") -> Tensor:
    """L_cls = 1 − mean cos(g(f(x)), E(x)), or the mean KL(softmax E(x) ‖ softmax g(f(x))).

    Args:
        made: what the distillation head makes of class tokens, (n, d).
        wanted: class tokens of the expert, (n, d).
        kind: ``cosine`` or ``kl``.
    """
    made, wanted = made.float(), wanted.detach().float()
    if kind == "kl":
        return F.kl_div(made.log_softmax(-1), wanted.log_softmax(-1), reduction="batchmean", log_target=True)
    return 1 - F.cosine_similarity(made, wanted, dim=-1).mean()


def patch_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """L_patch = 0.9 (1 − mean cos(u, v)) + 0.1 SmoothL1(u, v), over all patches of all crops, masked or not.

    Args:
        made: u, what the distillation head makes of patch tokens, (n, N, d).
        wanted: v, patch tokens of the expert on the same grid, (n, N, d); see `resized`.
    """
    u, v = made.float(), wanted.detach().float()
    cosine = 1 - F.cosine_similarity(u, v, dim=-1).mean()
    return _COSINE * cosine + _SMOOTH * F.smooth_l1_loss(u, v)


def resized(tokens: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Patch tokens (n, N, d) of a grid, row by row, interpolated bicubically for another grid: (n, N', d)."""
    if grid == wanted:
        return tokens
    maps = tokens.transpose(1, 2).reshape(len(tokens), tokens.shape[2], *grid)
    return F.interpolate(maps, size=wanted, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)


def code_gap(targets: Tensor, logits: Tensor, temperature: float) -> float:
    """ΔH: mean H(p of another sample, s) − mean H(p of the same sample, s), over all pairs; 0 if a code tells nothing.

    Args:
        targets: p of n held-out samples, (n, K).
        logits: s of the same samples, (n, K).
        temperature: τ_s.
    """
    costs = -targets @ F.log_softmax(logits.float() / temperature, dim=-1).T
    matched = costs.diagonal()
    others = (costs.sum() - matched.sum()) / (len(costs) * (len(costs) - 1))
    return float(others - matched.mean())
