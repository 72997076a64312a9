"""Checks that a network that was given in Python, and the method, fit the data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedlab.assembly import build_networks, make_task
from fedlab.data.federated import FederatedData
from fedlab.errors import ConfigError
from fedlab.experiment.checks import Resolved
from fedlab.experiment.configuration import recorded
from fedlab.method import Method
from fedlab.method.columns import ANNOTATIONS, main_column

_RESERVED = frozenset({"image", "features", "points", *ANNOTATIONS})
_TRIED = 2  # samples: an output that has lost its first axis shows


def check_network(resolved: Resolved, federated: FederatedData, *, resumed: bool) -> Resolved:
    """Check that the network that was given takes the data and has an output for each class.

    The output is checked for methods with the default `Method.predict`, whose output are logits.

    Args:
        resolved: the components of the run, with such a network.
        federated: the data.
        resumed: whether the run has begun before, so that its configuration describes the network.

    Returns:
        The components with a configuration that describes the network.

    Raises:
        ConfigError: it does not, or a run that is resumed began with another network.
    """
    components = resolved.components
    config, method, network = components.config, components.method, components.network
    assert network is not None
    described = (federated.columns, federated.class_names, federated.num_clients, federated.vocabulary)
    task = make_task(config, *described, network=network)
    component = network.described(task.input_shape, task.num_classes)
    if not (method.overrides("predict") or method.overrides("evaluate")) and task.num_classes:
        networks = build_networks(method, task, config.seed, torch.device("cpu")).eval()
        batch = {
            name: torch.from_numpy(np.zeros((_TRIED, *shape), dtype))
            for name, (dtype, shape) in task.columns.items()
            if name not in ANNOTATIONS
        }
        shape = "x".join(map(str, ("n", *task.input_shape)))
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                logits: object = method.predict(networks, batch)
        except Exception as error:  # whatever the network raises
            reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            dtype = task.columns[main_column(task.columns) or ""][0]
            expected = f"a network that takes samples of shape {shape}, {dtype}"
            raise ConfigError("model", network.title, expected, reason) from error
        if not isinstance(logits, Tensor) or tuple(logits.shape) != (_TRIED, task.num_classes):
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ConfigError(
                "model",
                f"{network.title} with the output {found} for {_TRIED} samples",
                f"logits of shape (n, {task.num_classes}): one for each class of the data",
                "give its last layer as many outputs as there are classes; a factory is told num_classes",
            )
    if resumed:
        return resolved
    return replace(
        resolved, components=components.with_config(recorded(config.model_copy(update={"model": component})))
    )


@contextmanager
def missing_column(method: Method, federated: FederatedData) -> Iterator[None]:
    """A context in which asking for a column that the data does not have is an error of the input.

    Args:
        method: the method that is tried.
        federated: the data.

    Raises:
        ConfigError: the method has asked for a reserved column, such as ``image``, and the data has none.
    """
    try:
        yield
    except KeyError as error:
        wanted = error.args[0] if error.args else None
        if wanted not in _RESERVED or wanted in federated.columns:
            raise
        title = method.title or type(method).__name__
        raise ConfigError(
            "data.source",
            f"{federated.dataset.name}, with the columns {', '.join(sorted(federated.columns))}",
            f"data with a column {wanted!r}, which {title} asks for",
            "choose other data, or another method (see `fedlab list methods`)",
        ) from error
