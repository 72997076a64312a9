"""Predictions of trained networks for samples in memory, which are prepared as those of the run were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedlab.config import DataConfig
from fedlab.data.adapters.forms import read_table
from fedlab.data.normalize import check_statistics
from fedlab.data.samples import Dataset, Samples
from fedlab.data.server_sets import normalized
from fedlab.errors import DataError, did_you_mean
from fedlab.method import Method, Task
from fedlab.method.columns import ANNOTATIONS, main_column


def predict(
    method: Method,
    networks: nn.ModuleDict,
    task: Task,
    data: DataConfig,
    samples: Any,
    *,
    domain: str | Sequence[str] | None = None,
    batch_size: int = 256,
) -> Tensor:
    """What a method predicts for samples, such as logits (n, K).

    Args:
        method: of the run.
        networks: its networks, in evaluation mode.
        task: facts about the data that they were trained on.
        data: the run's section ``data``, whose ``mean`` and ``std`` the images are normalized with.
        samples: samples in any form that `fedlab.as_dataset` accepts for one split; annotations are not used.
        domain: the domain of all samples or of each, for runs whose domains are normalized differently.
        batch_size: number of samples that are predicted at once.

    Raises:
        DataError: the samples are not like those of the run, or their domain is not known.
        TypeError: the method's prediction is no tensor.
    """
    columns = _columns(samples, task)
    (count,) = {len(values) for values in columns.values()}
    prepared = normalized(_with_domain(columns, count, data, domain), data)
    tensors = {name: torch.from_numpy(values) for name, values in prepared.columns.items() if name != "domain"}
    found = []
    with torch.no_grad():
        for start in range(0, count, batch_size):
            output: object = method.predict(networks, {k: v[start : start + batch_size] for k, v in tensors.items()})
            if not isinstance(output, Tensor):
                raise TypeError(f"{type(method).__name__}.predict returns {type(output).__name__}, no tensor")
            found.append(output)
    return torch.cat(found)


def _columns(samples: Any, task: Task) -> dict[str, np.ndarray]:
    """The columns of samples without annotations, of the shapes that the run's samples have."""
    if isinstance(samples, Dataset):
        raise DataError("samples", samples.name, "one split of the data set", "give data.test or data.train")
    found = samples.columns if isinstance(samples, Samples) else read_table(samples, "samples").columns
    columns = {name: values for name, values in found.items() if name not in ANNOTATIONS}
    main = main_column(task.columns)
    for name, values in columns.items():
        if name not in task.columns:
            continue
        dtype, shape = task.columns[name]
        if values.shape[1:] != shape:
            raise DataError(
                "samples",
                f"{name} of shape {_shown(values.shape[1:])}",
                f"samples like those of the run, {name} of shape {_shown(shape)}",
                "give several samples, with the samples as first axis, in the size that the run was trained on",
            )
        if name != "image":
            columns[name] = values.astype(dtype, copy=False)
    if main is None or main not in columns:
        known = ", ".join(sorted(columns)) or "none"
        raise DataError("samples", f"columns: {known}", f"a column {main!r}, as the samples of the run have")
    return columns


def _with_domain(
    columns: Mapping[str, np.ndarray], count: int, data: DataConfig, domain: str | Sequence[str] | None
) -> Samples:
    """Samples with codes of their domains, if the domains are normalized differently."""
    given = next((each for each in (data.mean, data.std) if isinstance(each, dict)), None)
    names = tuple(sorted(given)) if given is not None and "image" in columns else ("all",)
    codes = np.zeros(count, np.int64)
    if given is not None and "image" in columns:
        asked = [domain] * count if isinstance(domain, str) else list(domain or ())
        if len(asked) != count:
            expected = f"the domain of the samples, by which the run normalizes them: one of {', '.join(names)}"
            raise DataError("domain", domain, expected, "name one for all samples, or one for each")
        for name in dict.fromkeys(asked):
            if name not in names:
                raise DataError("domain", name, f"one of {', '.join(names)}", did_you_mean(str(name), names))
        codes = np.array([names.index(name) for name in asked], np.int64)
    if "image" in columns:
        check_statistics(data, columns["image"].shape[1], names)
    return Samples({**columns, "domain": codes}, domain_names=names)


def _shown(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a single number"
