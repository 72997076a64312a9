"""The two terms of Hybrid Distillation: features of one teacher, relations between the tokens of the other (§3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from fedlab.distill.precision import full_precision

Kind = Literal["qk", "vv"]
Distance = Literal["smooth_l1", "kl"]


def feature_loss(projected: Tensor, target: Tensor, whiten: bool = True) -> Tensor:
    """L_c = SmoothL1(P(S(x)), LN0(T_c(x))), mean over images, tokens and channels.

    LN0 is a layer normalization without scale and shift, so that every target has mean 0 and mean square 1.

    Args:
        projected: the student's tokens after the projector, (n, T, d).
        target: the teacher's tokens after its last normalization, (n, T, d); they get no gradient.
        whiten: whether the targets are normalized; False takes them as they are.

    Source: arXiv 2306.15876, whose choice of D and of the normalization of targets is not known.
    """
    with full_precision(projected, target.detach()) as (made, wanted):
        if whiten:
            wanted = F.layer_norm(wanted, wanted.shape[-1:])
        return F.smooth_l1_loss(made, wanted)


def token_relations(
    vectors: tuple[Tensor, Tensor, Tensor], heads: int, kinds: Sequence[Kind] = ("qk",), scale: bool = True
) -> list[Tensor]:
    """Relations between all tokens before the softmax: R = Q Kᵀ / √d_r, or V Vᵀ / √d_r, for each of A_r heads.

    The vectors of all heads are joined and split again into `heads` parts of d_r = d / A_r channels, so that models of
    different widths and numbers of heads can be compared. With the model's own number of heads nothing changes.

    Args:
        vectors: queries, keys and values of a block, (n, A, T, d / A) each.
        heads: A_r, a divisor of d.
        kinds: which relations; ``qk`` of queries to keys, ``vv`` of values to values.
        scale: whether to divide by √d_r.

    Returns:
        (n, A_r, T, T) for each kind.

    Source: Wang et al. 2021, arXiv 2012.15828 (MiniLMv2), Eq. 3 and 4.
    """
    with full_precision(*vectors) as exact:
        query, key, value = (_split(part, heads) for part in exact)
        pairs = {"qk": (query, key), "vv": (value, value)}
        factor = query.shape[-1] ** -0.5 if scale else 1.0
        return [factor * (pairs[kind][0] @ pairs[kind][1].transpose(2, 3)) for kind in kinds]


def _split(vectors: Tensor, heads: int) -> Tensor:
    """(n, A, T, d / A) → (n, A_r, T, d / A_r)."""
    joined = vectors.transpose(1, 2).flatten(2)
    return joined.reshape(*joined.shape[:2], heads, -1).transpose(1, 2)


def relation_loss(student: Tensor, teacher: Tensor, distance: Distance = "smooth_l1") -> Tensor:
    """L_m of one layer and one kind of relation, mean over images, heads and pairs of tokens, or over rows.

    Args:
        student: relations R_S, (n, A_r, T, T).
        teacher: relations R_Tm of the same tokens, of the same shape; they get no gradient.
        distance: ``smooth_l1``: SmoothL1(R_S, R_Tm); ``kl``: KL(softmax(R_Tm) ‖ softmax(R_S)) of each row. Both
            softmaxes are over the tokens that are given, and not over tokens that the student does not have.

    Source: arXiv 2306.15876 for the use of relations; ``kl`` is the form of MiniLM, Wang et al. 2020, arXiv 2002.10957.
    """
    with full_precision(student, teacher.detach()) as (made, wanted):
        if distance == "smooth_l1":
            return F.smooth_l1_loss(made, wanted)
        taught, rows = wanted.log_softmax(-1), made.shape[:-1].numel()
        return F.kl_div(made.log_softmax(-1), taught, reduction="sum", log_target=True) / rows
