"""A result that is kept for later runs, together with the metrics that were logged while it was computed.

Without them a run that finds a result of an earlier run would report fewer metrics than one that computes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_RESULT, _LOGGED = "result/", "logged/"


def packed(result: Mapping[str, Tensor], logged: Mapping[str, Sequence[float]]) -> dict[str, Tensor]:
    """Both as tensors, from which `unpacked` makes the same again.

    Args:
        result: tensors by name.
        logged: all values of each metric, by its name.
    """
    kept = {f"{_RESULT}{name}": value for name, value in result.items()}
    for place, (name, values) in enumerate(logged.items()):  # a file does not keep the order of its tensors
        kept[f"{_LOGGED}{place:06d}/{name}"] = torch.tensor(list(values), dtype=torch.float64)
    return kept


def unpacked(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
    """The result and the logged values that `packed` was given."""
    result = {name.removeprefix(_RESULT): value for name, value in tensors.items() if name.startswith(_RESULT)}
    logged = {
        name.removeprefix(_LOGGED).partition("/")[2]: tensors[name].tolist()
        for name in sorted(tensors)
        if name.startswith(_LOGGED)
    }
    return result, logged
