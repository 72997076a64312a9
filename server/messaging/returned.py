"""Checks of the arrays that a strategy returned, before they are copied into the model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import torch
from flwr.app import Message
from torch import Tensor

from fedlab.errors import FedLabError
from fedlab.protocol.sums import peak_of
from fedlab.server.messaging.replies import sent_names


@torch.no_grad()
def take_over(
    state: Mapping[str, Tensor], arrays: Mapping[str, np.ndarray], given: Iterable[Message], strategy: str, round: int
) -> None:
    """Copy a strategy's arrays into the network state. If one of them does not fit, nothing is changed.

    Args:
        state: the network state by name; it is changed in place.
        arrays: the arrays that the strategy returned.
        given: the replies that the strategy was given. It must return every array that is in one of them.
        strategy: the strategy's class name, for error messages.
        round: the round, for error messages.

    Raises:
        FedLabError: an array is missing or unknown, has another shape, has floats in place of integers or the reverse,
            or holds values that are NaN, infinite or too large for the model's type.
    """
    who = f"the strategy {strategy} returned"
    if problem := missing_arrays(strategy, round, sent_names(given), arrays):
        raise problem
    for name, values in arrays.items():
        if name not in state:
            raise FedLabError(f"{who} an array {name!r} in round {round} that the model does not have")
        held = state[name]
        if values.shape != tuple(held.shape):
            raise FedLabError(
                f"{who} {name!r} of shape {values.shape} in round {round}, but the model's is {tuple(held.shape)}"
            )
        if values.dtype.kind not in ("f" if held.is_floating_point() else "iub"):
            raise FedLabError(f"{who} {name!r} as {values.dtype} in round {round}, but the model's is {held.dtype}")
        if not np.isfinite(values).all():
            raise FedLabError(f"{who} NaN or infinite values in {name!r} in round {round}")
        if values.size and held.dtype != torch.bool and not peak_of(values) <= _largest(held.dtype):
            raise FedLabError(f"{who} values in {name!r} in round {round} that are too large for {held.dtype}")
    for name, values in arrays.items():
        state[name].copy_(torch.from_numpy(np.array(values)))


def _largest(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).max if dtype.is_floating_point else torch.iinfo(dtype).max)


def missing_arrays(strategy: str, round: int, wanted: Collection[str], given: Collection[str]) -> FedLabError | None:
    """The error to raise when a strategy has not returned all arrays that it should; None if it has.

    Args:
        strategy: its class name.
        round: the round.
        wanted: names of the arrays that it must return.
        given: names of those that it has returned.
    """
    missing = sorted(set(wanted) - set(given))
    if not missing:
        return None
    return FedLabError(
        f"the strategy {strategy} returned {len(wanted) - len(missing)} of {len(wanted)} arrays in round {round}; "
        f"missing: {_listed(missing)}. They would stay as they were: return every array that was averaged, or let the "
        "method's exchange() put them into a group that is not averaged"
    )


def no_model(strategy: str, round: int, answers: Collection[Message]) -> FedLabError:
    """The error to raise when a strategy has returned no model for the replies of a round."""
    return FedLabError(f"the strategy {strategy} returned no model in round {round} from {len(answers)} replies")


def _listed(names: Collection[str], most: int = 10) -> str:
    shown = [repr(name) for name in list(names)[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")
