"""What a client and the server do with DCGLR's networks; settings that cannot work; evaluation with known answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedlab.assembly import make_method, make_task
from fedlab.errors import ConfigError, ConfigErrors, DataError
from fedlab.experiment.checks import resolve
from fedlab.experiment.start import configure
from fedlab.method import Group, ServerContext
from fedlab.methods.dcglr import evaluation
from fedlab.methods.dcglr.networks import Encoder, estimate_statistics
from fedlab.methods.dcglr.settings import DCGLRSettings
from fedlab.storage.cache import ResultCache
from tests.methods.dcglr.conftest import Lab

Made = Callable[..., Lab]


def state(network: nn.Module, kind: str) -> dict[str, Tensor]:
    named = network.named_parameters() if kind == "parameters" else network.named_buffers()
    return {name: value.detach().clone() for name, value in named}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


# the teacher


def test_both_networks_start_equal(lab: Made) -> None:
    one = lab()
    student, teacher = one.networks["student"], one.networks["teacher"]
    assert same(student.state_dict(), teacher.state_dict())
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_teacher_of_full_momentum_keeps_its_parameters_while_its_statistics_move(lab: Made) -> None:
    one = lab(momentum=1.0)
    teacher = one.networks["teacher"]
    parameters, buffers = state(teacher, "parameters"), state(teacher, "buffers")
    one.trained()
    assert same(state(teacher, "parameters"), parameters)
    moved = state(teacher, "buffers")
    means = [name for name in buffers if name.endswith("running_mean")]
    assert len(means) == 3
    assert not any(torch.equal(moved[name], buffers[name]) for name in means)


def test_a_teacher_without_momentum_is_the_student_but_for_its_statistics(lab: Made) -> None:
    one = lab(momentum=0.0)
    one.trained()
    student, teacher = one.networks["student"], one.networks["teacher"]
    assert same(state(teacher, "parameters"), state(student, "parameters"))
    mean = "backbone.layers.1.running_mean"
    assert not torch.equal(teacher.state_dict()[mean], student.state_dict()[mean]), "they saw different views"


def test_the_momentum_rises_to_one(lab: Made) -> None:
    one = lab(momentum=0.9)
    moved = {}
    for at in (0, 99):
        fresh = lab(momentum=0.9)
        with torch.no_grad():
            for p in fresh.networks["student"].parameters():
                p += 1
        before = state(fresh.networks["teacher"], "parameters")
        fresh.method.after_step(fresh.networks, _after(fresh, at))
        after = state(fresh.networks["teacher"], "parameters")
        moved[at] = float((after["backbone.layers.0.weight"] - before["backbone.layers.0.weight"]).mean())
    assert moved[0] == pytest.approx(0.1, abs=1e-4)
    assert moved[99] < 1e-3
    assert one.method.settings.momentum == 0.9


def _after(one: Lab, at: int) -> Any:
    step = one.step(at)
    step.scratch["mean"] = torch.zeros(10)
    return step


def test_the_center_follows_all_teacher_rows_after_the_loss(lab: Made) -> None:
    one = lab(center_momentum=0.75)
    step, center = one.step(), one.networks["center"]
    batch = one.batch()
    with torch.no_grad():
        _, t = one.networks["teacher"].of_views(batch["views"][:1])
    one.loss(batch, step)
    assert bool((center.value == 0).all()), "the loss uses the center of before"
    one.method.after_step(one.networks, step)
    assert torch.allclose(center.value, 0.25 * torch.cat(t).mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("sync", "teacher", "center"),
    [("average", "average", "average"), ("server_ema", "server", "average"), ("reset", "local", "average"),
     ("local", "local", "local")],
)  # fmt: skip
def test_what_travels(lab: Made, sync: str, teacher: str, center: str) -> None:
    groups = {group.name: group for group in lab(teacher_sync=sync).method.exchange({})}
    assert {name: group.mode for name, group in groups.items()} == {
        "student": "average", "teacher": teacher, "center": center,
    }  # fmt: skip
    assert all(isinstance(group, Group) and group.buffers == "average" for group in groups.values())


# schedules


def test_the_learning_rate_rises_and_falls_and_only_matrices_decay(lab: Made) -> None:
    one = lab(epochs=10, warmup_epochs=2)
    groups = one.method.param_groups(one.networks, {})
    assert [group["decays"] for group in groups] == [True, False]
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert all(p.ndim == 1 for p in groups[1]["params"])
    rates = [one.method.schedule(one.step(at), {"lr": 0.5, **groups[0]}) for at in range(100)]
    assert rates[0]["lr"] == 0
    assert rates[19]["lr"] == rates[20]["lr"] == 0.5
    assert rates[60]["lr"] == pytest.approx(1e-5 + (0.5 - 1e-5) / 2)
    assert rates[99]["lr"] < 1e-3
    assert [rates[at]["weight_decay"] for at in (0, 50)] == pytest.approx([0.04, 0.22])
    assert one.method.schedule(one.step(50), {"lr": 0.5, **groups[1]})["weight_decay"] == 0


# statistics of BatchNorm


def test_reestimated_statistics_are_those_of_the_clouds() -> None:
    backbone = Encoder(DCGLRSettings(width=4, pointnet_widths=(4,), hidden=4, bottleneck=4, prototypes=4)).backbone
    clouds = 3 + torch.randn(20, 30, 3)
    weights = state(backbone, "parameters")
    estimate_statistics(backbone, clouds)
    first, norm = backbone.layers[0], backbone.layers[1]
    rows = first(clouds.flatten(0, 1)).detach()
    assert torch.allclose(norm.running_mean, rows.mean(0), atol=1e-5)
    assert torch.allclose(norm.running_var, rows.var(0), atol=1e-4)
    assert norm.momentum == 0.1
    assert same(state(backbone, "parameters"), weights)
    assert not backbone.training


# what cannot work


def refused(overrides: list[str]) -> None:
    resolve(configure("dcglr", overrides))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"backbone": "vit", "width": 130, "heads": 4}, "a divisor of method.width = 130"),
        ({"distillation_weight": 0, "contrast_weight": 0}, "a loss"),
        ({"local_crop": "[0.5, 0.2]"}, "the smaller first"),
        ({"global_crop": "[0, 0.2]"}, "above 0"),
        ({"contrast": "simclr"}, "infonce"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], said: str) -> None:
    overrides = [f"method.{key}={value}" for key, value in settings.items()]
    with pytest.raises((ConfigErrors, ConfigError), match=said):
        refused(overrides)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"resolutions": [64]}, "at most 40"),
        ({"backbone": "dgcnn", "neighbors": 21}, "at least 21"),
        ({"backbone": "vit", "width": 12, "heads": 3}, "at least 32"),
    ],
)
def test_shapes_with_too_few_points_are_refused(lab: Made, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        lab(**settings)


def test_data_without_points_is_refused() -> None:
    config = configure("dcglr", ["data.source={name: digits}"])
    task = make_task(config, {"image": ("float32", (3, 8, 8)), "label": ("int64", ())}, ["a"], 2)
    method = make_method(config.method)
    with pytest.raises(DataError, match="use the source shapes"):
        method.build(task)


def test_what_probably_should_not_be_used_is_warned_of(lab: Made) -> None:
    method = lab().method
    plain = configure("dcglr", [])
    assert method.check(plain) == []
    doubtful = [
        "training.batch_size=8", "training.optimizer=sgd", "training.clip_norm=null",
        "federation.sampler={name: uniform, fraction: 0.5}",
    ]  # fmt: skip
    kept = lab(teacher_sync="local").method.check(configure("dcglr", doubtful))
    assert [text.split(":")[0].split(" =")[0] for text in kept] == [
        "training.batch_size", "training.optimizer", "training.clip_norm is not set", "method.teacher_sync",
    ]  # fmt: skip


def test_a_teacher_that_hardly_moves_is_warned_of(lab: Made) -> None:
    slow = lab(momentum=0.996).method.check(configure("dcglr", []))
    assert len(slow) == 1
    assert "the teacher hardly moves" in slow[0]


# evaluation


def test_pairs_of_codes_have_their_cross_entropies() -> None:
    p = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    log_q = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log()
    matched, pairs, mismatched, others = evaluation.pair_sums(p, log_q)
    assert matched == pytest.approx(-math.log(0.9) - math.log(0.8))
    assert mismatched == pytest.approx(-math.log(0.2) - math.log(0.1))
    assert (pairs, others) == (2, 2)
    measured = evaluation.values({evaluation.KEY: np.array([matched, 2, mismatched, 2, 2 * math.log(2)])})
    assert measured["matched_h"] == pytest.approx((-math.log(0.9) - math.log(0.8)) / 2 / math.log(2))
    assert measured["delta_h"] == pytest.approx((-math.log(0.02) + math.log(0.72)) / 2)


@pytest.mark.parametrize("code", [torch.full((6, 4), 0.25), torch.eye(4)[:1].expand(6, 4) * 0.97 + 0.0075])
def test_codes_that_tell_nothing_have_no_difference_of_entropies(code: Tensor) -> None:
    sums = evaluation.pair_sums(code, code.log())
    assert evaluation.values({evaluation.KEY: np.append(sums, 6 * math.log(4))})["delta_h"] == pytest.approx(
        0, abs=1e-9
    )


def test_sums_of_clients_add_up() -> None:
    sums = np.array([2.0, 2, 9, 4, 2 * math.log(10)])
    assert evaluation.values({evaluation.KEY: 3 * sums}) == pytest.approx(evaluation.values({evaluation.KEY: sums}))
    assert evaluation.values({evaluation.KEY: np.zeros(5)}) == {}
    assert "delta_h" not in evaluation.values({evaluation.KEY: np.array([1.0, 1, 0, 0, 2])})


def server(one: Lab, folder: Path, held: dict[str, dict[str, Tensor]], private: dict[str, Tensor]) -> ServerContext:
    return ServerContext(
        before={}, after=one.networks.state_dict(), shared={}, private=private, data=held, results={}, batch_size=16,
        cache=ResultCache(folder, lambda: "held", 0, torch.device("cpu")), task=one.task, networks=one.networks,
        training=one.config.training, device=torch.device("cpu"), seed=0, round=1, rounds=1, plan={},
    )  # fmt: skip


def sets(n: int = 60) -> dict[str, dict[str, Tensor]]:
    """Flat and long clouds, whichever way they are turned, which any features tell apart."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name in ("probe", "test"):
        label = torch.arange(n) % 2
        points = torch.randn(n, 40, 3, generator=generator)
        points[label == 1] *= torch.tensor([1.0, 0.02, 0.02])
        found[name] = {"points": points, "label": label}
    return found


def test_the_features_of_the_teachers_backbone_are_probed_on_whole_and_on_partial_shapes(
    lab: Made, tmp_path: Path
) -> None:
    one = lab()
    one.trained(3)
    ctx = server(one, tmp_path, sets(), {})
    evaluation.remember_start(ctx, one.method.settings)
    measured = evaluation.server_evaluate(ctx, one.method.settings)
    assert measured["svm_accuracy"] > 0.9
    assert measured["svm_kernel_accuracy"] > 0.9
    assert 0 < measured["svm_partial_accuracy"] <= measured["svm_accuracy"]
    assert measured["svm_gain"] == measured["svm_partial_gain"] == 0
    assert measured["feature_deviation_ratio"] == 1
    features = evaluation.features(one.networks, ctx.data["test"]["points"])
    assert features.shape == (60, 12)
    assert torch.allclose(features.norm(dim=1), torch.ones(60), atol=1e-5)
    with torch.no_grad():  # the student and the heads have no say
        for p in [*one.networks["student"].parameters(), *one.networks["teacher"].projection.parameters()]:
            p += 1
    assert evaluation.server_evaluate(ctx, one.method.settings)["svm_accuracy"] == measured["svm_accuracy"]


def test_without_labels_of_two_classes_nothing_is_classified(lab: Made, tmp_path: Path) -> None:
    one, held = lab(), sets()
    held["probe"]["label"].zero_()
    measured = evaluation.server_evaluate(server(one, tmp_path, held, {}), one.method.settings)
    assert "delta_h" in measured
    assert "svm_accuracy" not in measured
    del held["test"]["label"]
    assert "svm_accuracy" not in evaluation.server_evaluate(server(one, tmp_path, held, {}), one.method.settings)
    assert evaluation.server_evaluate(server(one, tmp_path, {}, {}), one.method.settings) == {}


def test_the_alarm_sounds_when_targets_or_features_are_all_alike(lab: Made, tmp_path: Path) -> None:
    one = lab(prototypes=512)
    one.trained(2)
    ctx = server(one, tmp_path, sets(), {})
    evaluation.remember_start(ctx, one.method.settings)
    with torch.no_grad():
        one.networks["teacher"].backbone.layers[-2].weight.zero_()  # the same features for every shape
        logits = one.networks["teacher"].eval()(ctx.data["test"]["points"]).logits
        one.networks["center"].value.copy_(logits[0])  # the center has converged to them: uniform targets
    ctx.alarms.clear()
    measured = evaluation.server_evaluate(ctx, one.method.settings)
    assert measured["feature_deviation"] == pytest.approx(0, abs=1e-4)
    assert measured["target_entropy"] == pytest.approx(1, abs=1e-4)
    assert measured["delta_h"] == pytest.approx(0, abs=1e-5)
    assert measured["matched_h"] >= 1 - 1e-6, "ln K at the best"
    assert measured["collapse_alarm"] == 1
    assert ctx.alarms == [evaluation.COLLAPSE]


def test_a_healthy_network_raises_no_alarm(lab: Made, tmp_path: Path) -> None:
    one = lab()
    ctx = server(one, tmp_path, sets(), {})
    evaluation.remember_start(ctx, one.method.settings)
    assert evaluation.server_evaluate(ctx, one.method.settings)["feature_deviation_ratio"] == 1


def test_a_set_that_the_server_does_not_hold_is_named(lab: Made, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="probe, test"):
        evaluation.reestimate(server(lab(), tmp_path, sets(), {}), DCGLRSettings(reestimate="public"))
