"""Which way is better: known names, and the names of every registered method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fedlab.assembly import METHODS
from fedlab.clients.runtime import ClientRuntime
from fedlab.clients.setup import ClientSetup
from fedlab.experiment.checks import check_data, resolve
from fedlab.experiment.rehearsal import preflight
from fedlab.experiment.start import configure
from fedlab.method import ServerContext
from fedlab.metrics.direction import best_of, headline, ranked

# figures that describe and do not judge; of two values none is better
NEUTRAL = {
    "accuracy_std", "mean_abs", "student_minus_teacher", "text_only",
    "center_norm_classes", "center_norm_patches", "marginal_entropy_classes", "marginal_entropy_patches",
    "target_entropy_classes", "target_entropy_patches", "center_norm", "marginal_entropy", "target_entropy", "delta_h",
    "threshold", "threshold_random", "objects", "small_objects", "intra", "inter", "gap", "matched_h",
    "feature_deviation", "feature_deviation_ratio", "few_shot_std",
    "left_at_2", "left_at_3", "left_at_4", "left_at_5", "left_at_6", "mean_exit_layer", "mean_macs", "exit_divergence",
    "accuracy_minus_final",
    *(f"{role}{name}" for role in ("", "feature_teacher_", "relation_teacher_")
      for name in ("nmi", "attention_distance", "attention_spread")),
    "alignment_spread", "match_own", "match_other",
    *(f"{name}_{kind}" for name in ("target_entropy", "marginal_entropy", "center_norm")
      for kind in ("instance", "semantic")),
}  # fmt: skip

# as few samples as a batch needs, by source: what is measured has the same names for any number of them
FEWER = {
    "digits": {"train_per_domain": 64, "test_per_domain": 20},
    "scenes": {"train": 64, "test": 16, "teacher": 16, "server_test": 8},
    "sounds": {"train": 400, "test": 32, "probe": 40},
    "faces": {"pretrain": 40, "train": 40, "test": 20, "server": 10},
    "edited_scenes": {"train": 96, "test": 48, "references": 1},
    "tiles": {"train": 200, "test": 32, "probe": 48, "server_test": 32},
    "rectangles": {"train": 24, "test": 6, "server_test": 4},
}
QUICKER = {"gpfm": ["method.experts.nuclei.steps=1", "method.experts.stroma.steps=1"]}


@pytest.mark.parametrize(
    "name",
    [
        "accuracy",
        "mAP",
        "rank1",
        "recall@5",
        "miou_present",
        "retention_per_class",
        "probe_knn",
        "speedup@0.9",
        "tpr_at_fpr1",
        "ap",
        "uniap_ar",
        "start_joined",
    ],
)
def test_more_is_better(name: str) -> None:
    assert best_of(name) is max


@pytest.mark.parametrize(
    "name",
    [
        "loss",
        "teacher_loss",
        "masked_l1_ratio",
        "rmse",
        "collapse_alarm",
        "overlap",
        "frame_eer",
        "hter_at_test_eer",
        "mean_rank",
        "fid_floor",
    ],
)
def test_less_is_better(name: str) -> None:
    assert best_of(name) is min


@pytest.mark.parametrize(
    "name",
    [
        "temperature",
        "accuracy_std",
        "student_minus_teacher",
        "probe_few_shot_std",
        "probe_linear_strength",
    ],
)
def test_nobody_knows(name: str) -> None:
    assert best_of(name) is None


def test_metrics_are_shown_best_known_first_and_losses_last() -> None:
    names = ["loss", "zeta", "rmse", "map", "probe_knn", "f1_macro", "accuracy"]
    assert ranked(names) == ["accuracy", "f1_macro", "map", "rmse", "probe_knn", "zeta", "loss"]
    assert headline(names[:3]) == "rmse"
    assert headline([]) == ""


@pytest.mark.parametrize("name", METHODS.names())
def test_every_metric_of_a_registered_method_has_a_direction_or_is_known_to_have_none(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the preflight of the method's own configuration evaluates, on the client and on the server."""
    found: set[str] = set()
    evaluate, source = ClientRuntime.evaluate, configure(name).data.source.name
    config = configure(name, [f"data.source.{key}={value}" for key, value in FEWER.get(source, {}).items()])
    config = configure(config, QUICKER.get(name, []))
    resolved = resolve(config)
    method, data = resolved.components.method, check_data(resolved)

    def noted(self: ClientRuntime, *arguments: Any) -> Any:
        answer = evaluate(self, *arguments)
        found.update(answer.values)
        return answer

    monkeypatch.setattr(ClientRuntime, "evaluate", noted)
    if method.overrides("server_evaluate"):
        measure = type(method).server_evaluate

        def noted_too(self: Any, ctx: ServerContext) -> Mapping[str, float]:
            values = measure(self, ctx)
            found.update(values)
            return values

        monkeypatch.setattr(type(method), "server_evaluate", noted_too)
    preflight(ClientSetup(resolved.components, data, Path(), tmp_path), resolved.device)
    assert found
    unknown = {metric for metric in found if best_of(metric) is None}
    # DeGLA's means over the kinds of a family, and its control without the image, are named by the data's kinds
    assert {m for m in unknown - NEUTRAL if not m.startswith(("mean_", "text_only_"))} == set()
    assert best_of(headline(found)) is not None


def test_numbers_in_names_are_sorted_by_their_values_behind_the_names_without() -> None:
    names = [
        "accuracy@0.5",
        "accuracy@0.25",
        "final_accuracy",
        "exit_10_accuracy",
        "exit_2_accuracy",
        "f1_label",
        "map",
    ]
    assert ranked(names) == [
        "f1_label",
        "final_accuracy",
        "map",
        "accuracy@0.25",
        "accuracy@0.5",
        "exit_2_accuracy",
        "exit_10_accuracy",
    ]
    assert ranked(["rank10", "rank5", "mAP", "rank1"]) == ["mAP", "rank1", "rank5", "rank10"]
