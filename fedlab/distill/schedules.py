"""Schedules over the steps of a whole run, as self-distillation uses them."""

from __future__ import annotations

import math


def cosine(step: float, total: float, start: float = 1.0, end: float = 0.0) -> float:
    """Half a cosine wave from `start` at step 0 to `end` at step `total`. By default it is a factor from 1 to 0.

    Source: Caron et al. 2021, arXiv 2104.14294 (``cosine_scheduler``).
    """
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / total))


def warmup_cosine(step: int, total: int, peak: float, end: float, warmup: int) -> float:
    """A straight line from 0 to `peak` over `warmup` steps, then `cosine` to `end` at step `total`.

    The last step of the warm-up and the first step after it have the value `peak`. If the warm-up has only one step,
    that step has the value 0.

    Source: Caron et al. 2021, arXiv 2104.14294 (``cosine_scheduler``).
    """
    if step < warmup:
        return peak * step / (warmup - 1) if warmup > 1 else 0.0
    return cosine(step - warmup, max(1, total - warmup), peak, end)


def linear(step: int, steps: int, start: float, end: float) -> float:
    """A straight line from `start` at step 0 to `end` at step ``steps - 1``, and `end` after that."""
    if step >= steps - 1:
        return end
    return start + (end - start) * step / (steps - 1)
