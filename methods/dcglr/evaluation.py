"""Evaluation: what a part of a shape tells of the whole, collapse, and support vector machines on features (§7)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.data.clouds import parts
from fedlab.distill.collapse import SPREAD, feature_deviation, features_collapsed, target_figures
from fedlab.distill.prototypes import Center, sharpened
from fedlab.errors import ConfigError
from fedlab.method import EvaluationContext, ServerContext, network
from fedlab.methods.dcglr.networks import Encoder, estimate_statistics
from fedlab.methods.dcglr.settings import DCGLRSettings
from fedlab.methods.dcglr.views import local_view
from fedlab.probes.margins import few_shot_accuracy, svm_accuracy

KEY = "parts"
COLLAPSE = (
    "collapse: the teacher's targets are nearly equal for all shapes, or its features vary less than "
    f"{SPREAD:g} times as much as before training (collapse_alarm)"
)
_START = "start"
_CROP = (0.2, 0.5)  # of parts of held-out shapes, whatever crops are trained on, so that runs can be compared
_SVM = {"": False, "_partial": False, "_kernel": True}  # whether it is the support vector machine with a kernel


def features(networks: nn.ModuleDict, clouds: Tensor, role: str = "teacher") -> Tensor:
    """L2-normalized features (n, D) of the backbone, before the head, of whole clouds (n, N, 3) (§3.5)."""
    return F.normalize(network(networks, role, Encoder).backbone(clouds), dim=1)


def codes(
    s: DCGLRSettings, networks: nn.ModuleDict, clouds: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The teacher's logits t of whole shapes, and the student's log-probabilities of a local view of each, (n, K)."""
    student, teacher = (network(networks, role, Encoder) for role in ("student", "teacher"))
    seen = student(local_view(s, clouds, generator, _CROP)).logits.float()
    return teacher(clouds).logits.float(), F.log_softmax(seen / s.student_temperature, dim=1)


def pair_sums(p: Tensor, log_q: Tensor) -> np.ndarray:
    """Sum of H(p_i, q_i) and its number of pairs, sum of H(p_i, q_j) over i ≠ j and its number, (4,) float64.

    Args:
        p: targets, (n, K).
        log_q: log-probabilities, (n, K).
    """
    h = -(p.double() @ log_q.double().T)
    n, matched = len(h), float(h.diagonal().sum())
    return np.array([matched, n, float(h.sum()) - matched, n * (n - 1)], np.float64)


# on the clients


def evaluate(ctx: EvaluationContext, s: DCGLRSettings) -> Mapping[str, np.ndarray]:
    """`pair_sums` over the test shapes, within each batch of evaluation; the last number is ln K of every pair."""
    sums, generator = np.zeros(5), ctx.generator("parts")
    center = network(ctx.networks, "center", Center).value
    for batch in ctx.batches():
        t, log_q = codes(s, ctx.networks, batch["points"], generator)
        found = pair_sums(sharpened(t, center, s.teacher_temperature), log_q)
        sums += [*found, found[1] * math.log(s.prototypes)]
    return {KEY: sums}


def values(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """``matched_h``, H(p, s) of a shape and a part of it over ln K, and ``delta_h``, by how many nats H is larger if
    the part is another shape's. ΔH is 0 for codes that tell nothing of the shape, whatever their distribution.
    """
    matched, pairs, mismatched, others, top = sums[KEY].tolist()
    if not pairs:
        return {}
    measured = {"matched_h": matched / top}
    return measured | ({"delta_h": mismatched / others - matched / pairs} if others else {})


# on the server


def reestimate(ctx: ServerContext, s: DCGLRSettings) -> None:
    """Estimate the teacher's running statistics anew on the shapes of the setting ``reestimate``, if it names any.

    Raises:
        ConfigError: the server holds no sample set of this name.
    """
    if s.reestimate is None:
        return
    if s.reestimate not in ctx.data:
        known = ", ".join(ctx.data) or "none"
        expected = f"a sample set that the server holds: {known}"
        raise ConfigError("method.reestimate", s.reestimate, expected, "choose one of these")
    estimate_statistics(network(ctx.networks, "teacher", Encoder).backbone, ctx.data[s.reestimate]["points"])


def remember_start(ctx: ServerContext, s: DCGLRSettings) -> None:
    """Measure the network before training, for comparison with what is learned."""
    measured = server_evaluate(ctx, s)
    for name in ("feature_deviation", *(f"svm{kind}_accuracy" for kind in _SVM)):
        if name in measured:
            ctx.private[f"{_START}_{name}"] = torch.tensor(measured[name], dtype=torch.float64)


@torch.no_grad()
def server_evaluate(ctx: ServerContext, s: DCGLRSettings) -> dict[str, float]:
    """Figures of the held-out shapes ``test``, and accuracies of classifiers that are trained on ``probe``."""
    ctx.networks.eval()
    measured = _figures(ctx, s) if "test" in ctx.data else {}
    measured |= _classified(ctx) if _labeled(ctx) else {}
    for name, start in sorted(ctx.private.items()):
        kind = name.removeprefix(f"{_START}_")
        if kind in measured and kind != "feature_deviation":
            measured |= {name: float(start), f"{kind.removesuffix('_accuracy')}_gain": measured[kind] - float(start)}
    return measured


def _figures(ctx: ServerContext, s: DCGLRSettings) -> dict[str, float]:
    """ΔH over all pairs of test shapes, and signs of collapse."""
    generator, clouds = ctx.generator("parts"), ctx.data["test"]["points"]
    pairs = ctx.computed(
        {"points": clouds}, lambda b: torch.stack(codes(s, ctx.networks, b["points"], generator), dim=1), ctx.batch_size
    )
    t, log_q = pairs.unbind(1)
    # where centers are the clients' own, the mean of the test shapes stands in
    center = t.mean(0) if s.teacher_sync == "local" else network(ctx.networks, "center", Center).value
    sums = pair_sums(sharpened(t, center, s.teacher_temperature), log_q)
    found = target_figures(t, center, s.teacher_temperature)
    deviation = feature_deviation(torch.from_numpy(_features(ctx, clouds)))
    measured = values({KEY: np.append(sums, sums[1] * math.log(s.prototypes))})
    measured |= {**found._asdict(), "feature_deviation": deviation}
    start = ctx.private.get(f"{_START}_feature_deviation")
    if start is not None:
        alarm = found.collapsed or features_collapsed(deviation, float(start))
        measured |= {"feature_deviation_ratio": deviation / float(start), "collapse_alarm": float(alarm)}
        if alarm:
            ctx.alarm(COLLAPSE)
    return measured


def _labeled(ctx: ServerContext) -> bool:
    """Whether the server holds labeled test shapes, and others of at least two classes to train classifiers on."""
    held = all("label" in ctx.data.get(name, {}) for name in ("probe", "test"))
    return held and len(torch.unique(ctx.data["probe"]["label"])) > 1


def _classified(ctx: ServerContext) -> dict[str, float]:
    """Accuracies of support vector machines on whole and partial shapes, and of few-shot episodes on ``probe``."""
    labels = {name: ctx.data[name]["label"].numpy(force=True) for name in ("probe", "test")}
    train = _features(ctx, ctx.data["probe"]["points"]), labels["probe"]
    whole = _features(ctx, ctx.data["test"]["points"]), labels["test"]
    part = _features(ctx, parts(ctx.data["test"]["points"])), labels["test"]
    measured = {
        f"svm{kind}_accuracy": svm_accuracy(*train, *(part if kind == "_partial" else whole), kernel=kernel)
        for kind, kernel in _SVM.items()
    }
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=ctx.generator("few shot"))))
    _, counts = np.unique(labels["probe"], return_counts=True)
    if (counts >= 30).sum() >= 5:
        mean, std = few_shot_accuracy(*train, rng)
        measured |= {"few_shot_accuracy": mean, "few_shot_std": std}
    return measured


def _features(ctx: ServerContext, clouds: Tensor) -> np.ndarray:
    found = ctx.computed({"points": clouds}, lambda batch: features(ctx.networks, batch["points"]), ctx.batch_size)
    values: np.ndarray = found.numpy(force=True)
    return values
