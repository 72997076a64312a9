"""Clipping of a client's update before the client sends it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedlab.privacy import CLIP, WITHIN


@torch.no_grad()
def clipped(
    sent: Mapping[str, Tensor], received: Mapping[str, np.ndarray], settings: Mapping[str, object]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The state to send, whose distance from the received state is at most the clip norm C, and metrics.

    The distance is the L2 norm over all tensors together. The state is returned unchanged if the settings contain no
    clip norm, if the distance is at most C, or if it is not finite.

    Args:
        sent: state after local training.
        received: state that the server sent; it has all names of `sent`.
        settings: settings of the message, with C under `fedlab.privacy.CLIP`.

    Returns:
        The state, and the metric `fedlab.privacy.WITHIN`: 1 if the distance was at most C, otherwise 0. Without a clip
        norm there is no metric.
    """
    limit = settings.get(CLIP)
    if not isinstance(limit, float):
        return dict(sent), {}
    start = {name: torch.from_numpy(np.array(received[name])).to(value.device) for name, value in sent.items()}
    norm = _distance(sent, start)
    if norm <= limit:
        return dict(sent), {WITHIN: 1.0}
    if not math.isfinite(norm):  # averaging refuses it with an error that names client and tensor
        return dict(sent), {WITHIN: 0.0}
    factor, slack = limit / norm, 2.0**-20
    short = _towards(start, sent, factor)
    while _distance(short, start) > limit:  # rounding x + factor·Δ to float32 may exceed the norm again
        factor, slack = factor * (1 - slack), min(0.5, 2 * slack)
        short = _towards(start, sent, factor)
    return short, {WITHIN: 0.0}


def _distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return math.sqrt(math.fsum(float((a[name].double() - b[name].double()).square().sum()) for name in a))


def _towards(start: Mapping[str, Tensor], end: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    return {
        name: (start[name].double() + factor * (end[name].double() - start[name].double())).to(value.dtype)
        for name, value in end.items()
    }
