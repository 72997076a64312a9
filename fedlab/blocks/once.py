"""What a client computes of its samples once and keeps, such as the features of a frozen network."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fedlab.method import FitContext

_KEPT = "once/"  # before the names in the client's state
_SAMPLES = f"{_KEPT}samples"  # says of which samples the rest is


def kept_by_client(ctx: FitContext, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that `compute` returns, computed when they are first needed and kept in the client's state.

    Nothing of the state is sent. The tensors are computed again only if the client has other samples, as in drift.

    Args:
        ctx: the client's context.
        compute: returns tensors by name; always the same names, and none of them ``samples``.
    """
    mark = ctx.place(torch.tensor(list(ctx.fingerprint.encode()), dtype=torch.uint8))
    if _SAMPLES not in ctx.state or not torch.equal(ctx.state[_SAMPLES], mark):
        for name, value in compute().items():
            ctx.state[f"{_KEPT}{name}"] = value
        ctx.state[_SAMPLES] = mark
    kept = (name for name in ctx.state if name.startswith(_KEPT) and name != _SAMPLES)
    return {name.removeprefix(_KEPT): ctx.state[name] for name in kept}
