"""How crops and step size change while images are recovered (§ "Curriculum Data Synthesis")."""

from __future__ import annotations

from typing import Literal, assert_never

from fedlab.distill.schedules import cosine

Curriculum = Literal["cosine", "linear", "step", "constant", "reverse"]


def crop_bound(t: int, steps: int, mode: Curriculum, milestone: float, smallest: float = 0.08) -> float:
    """α_t, the smallest share of the area a crop may keep at iteration t of T; the largest is always 1.

    From the whole image (easy) to small patches (hard) until t = milestone·T, then small patches. ``constant``, and
    any mode with a milestone of 0, is SRe²L. ``reverse`` goes from small patches to whole images and stays there;
    its form is a reconstruction, as the paper's was not found.

    Args:
        t: from 0.
        steps: T.
        mode: the curriculum.
        milestone: share of T.
        smallest: bound of the smallest patches.
    """
    if mode == "constant" or milestone == 0:
        return smallest
    done = min(1.0, t / (milestone * steps))
    match mode:
        case "step":
            eased = float(done < 1)
        case "linear":
            eased = 1 - done
        case "cosine":
            eased = cosine(done, 1)
        case "reverse":
            eased = cosine(done, 1, 0.0, 1.0)
        case _:
            assert_never(mode)
    return smallest + (1 - smallest) * eased


def warm_cosine(t: float, total: float, warmup: float, start: float = 0.01) -> float:
    """½(1 + cos(π·t/T)), after a linear rise from `start` over the first `warmup` units of t."""
    if t < warmup:
        return start + (1 - start) * t / warmup
    return cosine(t - warmup, max(total - warmup, 1e-9))
