"""Computes the features that probes look at, and runs the probes on sets that lie on one machine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from fedlab.errors import ConfigError, FedLabError
from fedlab.method import Batch, EvaluationContext, Features, Method
from fedlab.probes.base import SCORE, Probed
from fedlab.probes.configured import ConfiguredProbe
from fedlab.seeding import numpy_generator

_Sets = Mapping[str, Mapping[str, Tensor]]


class FeatureBook:
    """The features of several sets of samples by the parts of one method, each computed once.

    Args:
        method: computes the features.
        networks: the networks by role.
        sets: columns of each set, by its name, on the device of the networks.
        batch_size: samples in a batch.
    """

    def __init__(self, method: Method, networks: nn.ModuleDict, sets: _Sets, batch_size: int) -> None:
        self._method, self._networks, self._sets, self._size = method, networks, sets, batch_size
        self._known: dict[tuple[str, str, bool], tuple[np.ndarray, np.ndarray | None, tuple[int, int] | None]] = {}

    def probed(self, one: ConfiguredProbe, name: str) -> Probed:
        """A set as a probe sees it.

        Args:
            one: the probe.
            name: of the set.

        Raises:
            ConfigError: the method has no such features.
        """
        tokens = one.probe.needs == "tokens"
        key = (name, one.part, tokens)
        if key not in self._known:
            found = list(_batches(self._sets[name], self._size))
            features = [checked(self._method, self._networks, batch, one) for batch in found]
            places = [part.tokens for part in features if part.tokens is not None] if tokens else []
            self._known[key] = (
                _joined([part.vectors for part in features]),
                _joined(places) if places else None,
                features[0].grid,
            )
        vectors, places_of, grid = self._known[key]
        columns = {column: values.numpy(force=True) for column, values in self._sets[name].items()}
        return Probed(name, vectors, columns.pop(one.settings.label), places_of, grid, columns)


def _joined(parts: Sequence[Tensor]) -> np.ndarray:
    joined: np.ndarray = torch.cat([part.float().cpu() for part in parts]).numpy()
    return joined


def _batches(columns: Mapping[str, Tensor], size: int) -> Iterator[Batch]:
    for start in range(0, len(next(iter(columns.values()), ())), size):
        yield {name: values[start : start + size] for name, values in columns.items()}


@torch.no_grad()
def checked(method: Method, networks: nn.ModuleDict, batch: Batch, one: ConfiguredProbe) -> Features:
    """The features of a batch, if they have the form that a probe needs.

    Raises:
        ConfigError: the method has no tokens, and the probe needs them.
        FedLabError: the features are of another form than `Features` says.
    """
    found, count = method.features(networks, batch, one.part), len(next(iter(batch.values())))
    shape = tuple(found.vectors.shape)
    if len(shape) != 2 or shape[0] != count:
        who = f"{type(method).__name__}.features()"
        raise FedLabError(f"{who} returned vectors of shape {shape} for {count} samples: ({count}, D) is expected")
    if one.probe.needs == "tokens" and found.tokens is None:
        expected = f"a part of the method with tokens, which {one.part!r} has not"
        raise ConfigError(f"{one.key}.part", one.part, expected, "choose another part, or another probe")
    return found


@contextmanager
def frozen(networks: nn.ModuleDict) -> Iterator[None]:
    """Evaluation mode inside the block, and the modes from before afterwards."""
    modes = {module: module.training for module in networks.modules()}
    networks.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def run_probes(
    probes: Sequence[ConfiguredProbe], method: Method, networks: nn.ModuleDict, sets: _Sets, batch_size: int, seed: int
) -> dict[str, float]:
    """Run all probes whose samples lie on this machine.

    Random choices of a probe depend on the seed and on the name of its metric, so that they are equal in every
    evaluation. If features are not finite, all values of the probe are NaN.

    Args:
        probes: the probes.
        method: computes the features.
        networks: the networks by role, on the device of the samples.
        sets: columns of each set of samples, by its name.
        batch_size: samples in a batch.
        seed: of random choices.

    Returns:
        Values by the names of the metrics.
    """
    values: dict[str, float] = {}
    with frozen(networks):
        book = FeatureBook(method, networks, sets, batch_size)
        for one in probes:
            if one.mergeable is None:
                fit = None if one.settings.fit is None else book.probed(one, one.settings.fit)
                values |= one.named(_run(one, fit, book.probed(one, one.settings.test), seed))
    return values


def _run(one: ConfiguredProbe, fit: Probed | None, test: Probed, seed: int) -> Mapping[str, float]:
    sides = [side for side in (fit, test) if side is not None]
    arrays = [array for side in sides for array in (side.vectors, side.tokens) if array is not None]
    if not all(np.isfinite(array).all() for array in arrays):
        return {SCORE: math.nan}
    return one.probe.run(fit, test, numpy_generator(seed, "probe", one.metric))


def try_probes(probes: Sequence[ConfiguredProbe], method: Method, networks: nn.ModuleDict, sets: _Sets) -> None:
    """Compute the features of a few samples of every set that probes ask for, so that mistakes show before a run.

    Raises:
        ConfigError: the method has no such features.
        Exception: whatever the method raises.
    """
    with frozen(networks):
        for one in probes:
            sides = () if one.mergeable is not None else (one.settings.fit, one.settings.test)
            for name in (side for side in sides if side is not None):
                for batch in islice(_batches(sets[name], 2), 1):
                    checked(method, networks, batch, one)


def client_sums(
    probes: Sequence[ConfiguredProbe],
    method: Method,
    ctx: EvaluationContext,
    fitted: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Sums of the probes that work on the clients' own samples, by the metric of the probe and their name.

    Args:
        probes: all probes of the run.
        method: computes the features.
        ctx: a client's samples and networks.
        fitted: what probes have been fitted to, named like the sums; they then count on the client's test samples.
            None gives the sums to which they are to be fitted.
    """
    sets: dict[str, Mapping[str, Tensor]] = {"test": ctx.data}
    if fitted is None:
        sets = {"train": ctx.train_data(), "validation": ctx.validation}
    if ctx.preflight:  # a trial: a few samples show every mistake
        sets = {name: {column: v[: ctx.batch_size] for column, v in columns.items()} for name, columns in sets.items()}
    sums: dict[str, np.ndarray] = {}
    with frozen(ctx.networks):
        book = FeatureBook(method, ctx.networks, sets, ctx.batch_size)
        for one in probes:
            probe, prefix = one.mergeable, f"{one.metric}/"
            side = one.settings.test if fitted is not None else one.settings.fit
            if probe is None or side is None or not len(next(iter(sets[side].values()), ())):
                continue
            if fitted is None:
                found = probe.sums(book.probed(one, side), ctx.task.num_classes)
            else:
                mine = {name.removeprefix(prefix): v for name, v in fitted.items() if name.startswith(prefix)}
                found = probe.count(mine, book.probed(one, side))
            sums |= {f"{prefix}{name}": values for name, values in found.items()}
    return sums
