"""What is measured on a client: inference that stops, every exit alone, thresholds, and wall time (§3.6, §7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlab.distill.soft_labels import soft_label_kl
from fedlab.method import Batch, EvaluationContext, Task, network
from fedlab.methods.lgvit.losses import channel_distance, taught
from fedlab.methods.lgvit.networks import STRIDES, Backbone, Whole, run_all, subsampled
from fedlab.methods.lgvit.settings import LGViTSettings, Rule
from fedlab.methods.lgvit.stopping import costs, first_exit, leave
from fedlab.metrics import Classification
from fedlab.metrics.exits import ExitCurve, ExitHistogram

_GRID = 2.0**20  # sums of multiples of 1/2²⁰ are exact, so that they do not depend on the order of clients
WHOLE, STOPPING = "inference to the last layer", "inference with early exits"


def stays(rule: Rule, exits: int) -> float:
    """A threshold at which no sample leaves early."""
    return {"confidence": 1.0, "entropy": 0.0, "patience": exits + 1.0, "patient_and_confident": 0.0}[rule]


class _Exits:
    """What every exit gets right, if all samples leave there, and how far it is from the last layer.

    Args:
        count: number of exits.
    """

    def __init__(self, count: int) -> None:
        self.right, self.seen = np.zeros(count + 1, np.int64), np.zeros(count + 1, np.int64)
        self.divergence, self.distance = np.zeros(count), np.zeros(2)

    def update(
        self, whole: Whole, places: Sequence[int], labels: Tensor, targets: Tensor, grid: tuple[int, int]
    ) -> None:
        """Add a batch.

        Args:
            whole: of the batch.
            places: numbers of the exits in it.
            labels: (n,).
            targets: P_L, patch tokens after the last layer.
            grid: of the patches.
        """
        at, n = [*places, len(self.right) - 1], len(labels)
        for place, logits in zip(at, [*(one.logits for one in whole.exits), whole.final], strict=True):
            self.right[place] += int((logits.argmax(1) == labels).sum())
            self.seen[place] += n
        for place, one in zip(places, whole.exits, strict=True):
            self.divergence[place] += _exact(n * soft_label_kl(one.logits, whole.final, 1.0))
        for one in taught(whole.exits):
            y = subsampled(targets, grid, STRIDES[one.kind])
            self.distance += [_exact(n * channel_distance(one.features, y) / y.shape[1]), n]

    def state(self) -> dict[str, np.ndarray]:
        return {"right": self.right, "seen": self.seen, "divergence": self.divergence, "distance": self.distance}


def evaluate(ctx: EvaluationContext, s: LGViTSettings, layers: Sequence[int]) -> Mapping[str, np.ndarray]:
    """Sums over a client's test samples, which leave at the exits after `layers` only."""
    places = [s.exits.index(layer) for layer in layers]
    at = torch.tensor([*places, len(s.exits)], device=ctx.device)
    threshold = chosen_threshold(ctx, s, layers)
    stopped, histogram = Classification(ctx.task.num_classes), ExitHistogram(s.exits, s.depth)
    curve, exits = ExitCurve(s.curve, s.exits, s.depth), _Exits(len(s.exits))
    cost = costs(s, _shape(ctx.task), ctx.task.num_classes)
    macs = [0] * (len(s.exits) + 1)
    for place, spent in zip([*places, len(s.exits)], cost.of(layers), strict=True):
        macs[place] = spent
    for batch in ctx.batches():
        x, labels = batch["image"], batch["label"]
        with ctx.autocast():
            left, whole = leave(ctx.networks, x, layers, s.rule, threshold), run_all(ctx.networks, x, layers)
        stopped.update(left.logits, labels)
        histogram.update(at[left.places], left.logits.argmax(1) == labels, macs, cost.whole)
        logits = every_logits(whole)
        for τ, one in curve.at.items():
            out = first_exit(logits[:, :-1], s.rule, τ)
            guesses = logits[torch.arange(len(x), device=ctx.device), out].argmax(1)
            one.update(at[out], guesses == labels)
        backbone = network(ctx.networks, "backbone", Backbone)
        exits.update(whole, places, labels, whole.last[:, backbone.specials :], backbone.grid_of(x))
    time_inference(ctx, s, layers, threshold)
    parts: dict[str, Any] = {"stopped": stopped, "left": histogram, "curve": curve, "exits": exits}
    sums = {f"{part}.{name}": value for part, one in parts.items() for name, value in one.state().items()}
    return sums | {"threshold": np.array([threshold, 1.0])}


def every_logits(whole: Whole) -> Tensor:
    """Logits (n, E + 1, K) of the exits and of the last classifier."""
    return torch.stack([*(one.logits for one in whole.exits), whole.final], dim=1).float()


def chosen_threshold(ctx: EvaluationContext, s: LGViTSettings, layers: Sequence[int]) -> float:
    """The threshold of the settings, or the fastest that the client's validation samples allow; see `tolerance`.

    A client without validation samples uses that of the settings. If no threshold is allowed, no sample leaves early.
    """
    held = ctx.validation
    count = len(held.get("label", ()))
    if s.tolerance is None or not count or not layers:
        return s.limit
    curve, final = ExitCurve(s.curve, layers, s.depth), 0
    for batch in ctx.iterate(held, ctx.batch_size):
        with ctx.autocast():
            logits = every_logits(run_all(ctx.networks, batch["image"], layers))
        right = logits.argmax(2) == batch["label"][:, None]
        final += int(right[:, -1].sum())
        for τ, one in curve.at.items():
            out = first_exit(logits[:, :-1], s.rule, τ)
            one.update(out, right[torch.arange(len(out), device=ctx.device), out])
    allowed = {τ: one.speedup for τ, one in curve.at.items() if one.accuracy >= final / count - s.tolerance}
    return max(allowed, key=lambda τ: allowed[τ]) if allowed else stays(s.rule, len(layers))


def time_inference(ctx: EvaluationContext, s: LGViTSettings, layers: Sequence[int], threshold: float) -> None:
    """Measure the wall time of some test samples, one by one, through all layers without exits and with exits."""
    some = {name: values[: s.timed] for name, values in ctx.data.items()}
    for number, batch in enumerate(ctx.iterate(some, 1)):
        x = batch["image"]
        with ctx.autocast():
            if number == 0:  # what is prepared at the first call of each size does not count
                run_all(ctx.networks, x, ())
                leave(ctx.networks, x, layers, s.rule, threshold)
            with ctx.timed(WHOLE):
                run_all(ctx.networks, x, ())
            with ctx.timed(STOPPING):
                leave(ctx.networks, x, layers, s.rule, threshold)


def values(sums: Mapping[str, np.ndarray], s: LGViTSettings, classes: int) -> dict[str, float]:
    """What follows from the sums of one client or of several; empty without samples.

    ``accuracy`` and its like are of inference that stops.
    """
    parts: dict[str, Any] = {
        "stopped": Classification(classes),
        "left": ExitHistogram(s.exits, s.depth),
        "curve": ExitCurve(s.curve, s.exits, s.depth),
    }
    for part, one in parts.items():
        one.merge({name[len(part) + 1 :]: value for name, value in sums.items() if name.startswith(f"{part}.")})
    found: dict[str, float] = parts["stopped"].compute()
    if not found:
        return {}
    right, seen = sums["exits.right"], sums["exits.seen"]
    alone = {layer: float(right[i] / seen[i]) for i, layer in enumerate(s.exits) if seen[i]}
    found["final_accuracy"] = float(right[-1] / seen[-1])
    found["accuracy_minus_final"] = found["accuracy"] - found["final_accuracy"]
    found |= {f"exit_{layer}_accuracy": value for layer, value in alone.items()}
    if alone:
        count = max(1, seen[:-1].sum())
        found["mean_exit_accuracy"] = sum(alone.values()) / len(alone)
        found["exit_divergence"] = float(sums["exits.divergence"].sum() / count)
    distance, compared = sums["exits.distance"].tolist()
    if compared:
        found["feature_distance"] = distance / compared
    threshold, clients = sums["threshold"].tolist()
    left: dict[str, float] = parts["left"].compute() | parts["curve"].compute()
    return found | left | {"threshold": threshold / clients}


def predict(networks: torch.nn.ModuleDict, batch: Batch, s: LGViTSettings, layers: Sequence[int]) -> Tensor:
    """Logits (n, K) with which samples leave."""
    return leave(networks, batch["image"], layers, s.rule, s.limit).logits


def _exact(value: Tensor) -> float:
    return float((value.double() * _GRID).round() / _GRID)


def _shape(task: Task) -> tuple[int, int, int]:
    channels, height, width = task.input_shape
    return channels, height, width
