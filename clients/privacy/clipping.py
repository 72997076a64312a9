"""A client's update, clipped before it leaves the client."""

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
    """The state to send, at most C away from what was received in the L2 norm over all tensors, and metrics.

    Without a clip norm in the settings, and where the update is within it, the state is sent as it is.

    Args:
        sent: state after local training.
        received: state the server sent.
        settings: of the message.
    """
    limit = settings.get(CLIP)
    if not isinstance(limit, float):
        return dict(sent), {}
    start = {name: torch.from_numpy(np.array(received[name])).to(value.device) for name, value in sent.items()}
    norm = _distance(sent, start)
    if norm <= limit:
        return dict(sent), {WITHIN: 1.0}
    if not math.isfinite(norm):  # let the average refuse it: it names client and tensor
        return dict(sent), {WITHIN: 0.0}
    factor, slack = limit / norm, 2.0**-20
    short = _towards(start, sent, factor)
    while _distance(short, start) > limit:  # rounding x + factor·Δ to float32 may lead out of the ball again
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
