"""Small federations with LGViT: what travels in which stage, who trains which exit, what is measured and drawn."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import fedlab
from fedlab.assembly import make_method
from fedlab.config import Config, parse
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.methods.lgvit import evaluation
from fedlab.storage.checkpoint import load_checkpoint
from tests.methods.lgvit.conftest import SMALL, Lab

Start = Callable[..., fedlab.Run]
EXITS = (2, 3, 4, 5)
THREE_STAGES = ("method.finetune_rounds=1", "federation.rounds=3")


@pytest.fixture(scope="module")
def lgvit(runner: Callable[..., Start]) -> Start:
    return runner("lgvit", {**SMALL, "evaluation": {"every": 1}})


@pytest.fixture(scope="module")
def reference(lgvit: Start) -> fedlab.Run:
    return lgvit()


@pytest.fixture(scope="module")
def staged(lgvit: Start) -> fedlab.Run:
    """All three stages, and a round more in the last one."""
    return lgvit(*THREE_STAGES, "federation.rounds=4", "tracking.checkpoint_every=1")


def weights(path: Path) -> dict[str, Tensor]:
    tensors, _ = load_checkpoint(path)
    return {name: value for name, value in tensors.items() if name.startswith("network/")}


def nbytes(run: fedlab.Run, role: str) -> int:
    parts = [value for name, value in weights(run.checkpoint).items() if name.startswith(f"network/{role}.")]
    return sum(value.numel() * value.element_size() for value in parts if value.is_floating_point())


# what travels (§6)


def test_the_backbone_is_sent_once_more_after_stage_1_and_then_never(staged: fedlab.Run) -> None:
    fixed = {role: 2 * nbytes(staged, role) for role in ("backbone", "final")}
    exits = {f"heads.{layer}": 2 * nbytes(staged, f"heads.{layer}") for layer in EXITS}
    both = {group: {"down": size, "up": size} for group, size in fixed.items()}
    heads = {group: {"down": size, "up": size} for group, size in exits.items()}
    once = {group: {"down": size, "up": 0} for group, size in fixed.items()}
    sent = [
        {group: size for group, size in round["bytes"].items() if any(size.values())} for round in staged.history.rounds
    ]
    assert sent == [both, {**both, **heads}, {**once, **heads}, heads]


# §8, check 10


def test_stage_2_leaves_backbone_and_last_classifier_as_they_are(reference: fedlab.Run, lgvit: Start) -> None:
    before, after = weights(lgvit(until=1).checkpoint), weights(reference.checkpoint)
    for name in before:
        fixed = name.startswith(("network/backbone.", "network/final."))
        if before[name].is_floating_point() and fixed:
            assert torch.equal(before[name], after[name]), name
        elif name.endswith(("classifiers.0.weight", "running_mean")) and "heads" in name:
            assert not torch.equal(before[name], after[name]), name
    first, last = (event["pooled"] for event in reference.history.evaluations)
    assert first["final_accuracy"] == last["final_accuracy"]


def test_stage_2_and_every_stage_have_learning_rates_that_fall_from_their_own_start(lab: Callable[..., Lab]) -> None:
    method = lab(distill_lr=0.5).method
    assert method.training({"stage": "distill"}) == {"lr": 0.5}
    assert method.training({"stage": "joint"}) == {}
    small = lab()
    rates = [
        small.method.schedule(small.step("distill", index, stage_round), {"lr": 2.0})["lr"]
        for stage_round in (1, 2)
        for index in range(3)
    ]
    assert rates == pytest.approx([2 * (1 - at / 12) for at in range(6)])
    assert lab(decay="constant").method.schedule(small.step("distill", 2), {"lr": 2.0}) == {"lr": 2.0}


# weak devices


def test_an_exit_is_averaged_over_the_clients_that_hold_it(lgvit: Start, reference: fedlab.Run) -> None:
    held = "data.holds={'0': [exit_2, exit_4], '*': [exit_2, exit_3, exit_4, exit_5]}"
    run = lgvit(held)
    for round in run.history.rounds:
        for layer in EXITS:
            size = nbytes(run, f"heads.{layer}")
            assert round["bytes"][f"heads.{layer}"]["up"] == size * (2 if layer in (2, 4) else 1)
    clients = run.metrics["clients"]
    weak, strong = clients["0"], clients["1"]
    assert "exit_3_accuracy" in strong
    assert "exit_3_accuracy" not in weak
    reasons = {left.why for left in run.history.left_out if left.what == "metric values of clients"}
    assert reasons == {
        "they are of assets that these clients do not hold (data.holds), so that means are over those that do"
    }
    assert weak["left_at_3"] == weak["left_at_5"] == 0
    assert "exit_5_accuracy" in run.metrics["pooled"]
    nobody = lgvit("data.holds={'*': [exit_2]}")
    found, built = weights(nobody.checkpoint), weights(lgvit("data.holds={'*': [exit_2]}", until=1).checkpoint)
    untouched = [name for name in found if name.startswith("network/heads.3.")]
    assert untouched
    assert all(torch.equal(found[name], built[name]) for name in untouched)


def test_a_client_that_holds_no_exit_is_refused(lgvit: Start) -> None:
    with pytest.raises(ConfigErrors, match=r"an exit \(exit_2"):
        lgvit("data.holds={'0': [exit_2]}")


# what is measured (§7)


def test_what_is_measured_adds_up(reference: fedlab.Run) -> None:
    pooled, clients = reference.metrics["pooled"], reference.metrics["clients"]
    shares = [pooled[f"left_at_{layer}"] for layer in (*EXITS, 6)]
    assert sum(shares) == pytest.approx(1)
    layer = sum(share * at for share, at in zip(shares, (*EXITS, 6), strict=True))
    assert pooled["mean_exit_layer"] == pytest.approx(layer)
    assert pooled["speedup"] == pytest.approx(6 / layer)
    assert pooled["accuracy"] == pooled["accuracy@0.5"]
    assert pooled["speedup"] == pytest.approx(pooled["speedup@0.5"])
    assert pooled["speedup@0.2"] >= pooled["speedup@0.5"] >= pooled["speedup@0.9"]
    assert pooled["mean_exit_accuracy"] == pytest.approx(sum(pooled[f"exit_{at}_accuracy"] for at in EXITS) / 4)
    assert pooled["macs_speedup"] < pooled["speedup"]
    assert pooled["threshold"] == 0.5
    assert pooled["accuracy"] == pytest.approx(sum(values["accuracy"] for values in clients.values()) / 2)


def test_before_there_are_exits_only_the_last_classifier_is_measured(staged: fedlab.Run) -> None:
    first, *_ = [event["pooled"] for event in staged.history.evaluations]
    assert first["accuracy"] == first["final_accuracy"]
    assert first["speedup"] == 1
    assert not {"mean_exit_accuracy", "feature_distance", "exit_divergence"} & first.keys()


def test_wall_time_is_in_the_timings_and_in_no_metric(reference: fedlab.Run) -> None:
    events = [event for event in reference.history.events if event["event"] == "timing"]
    names = {event["name"] for event in events}
    assert {evaluation.WHOLE, evaluation.STOPPING} <= names
    assert not any("time" in name or "second" in name for name in reference.metrics["pooled"])


def test_pictures_are_drawn(reference: fedlab.Run) -> None:
    names = {path.name for path in reference.folder.figures.glob("*.png")}
    assert {f"{kind}-000{round}.png" for kind in ("speed", "exit_map", "exits") for round in (0, 1, 2)} <= names


# thresholds


def test_a_client_chooses_the_fastest_threshold_that_its_validation_samples_allow(lgvit: Start) -> None:
    chosen = lgvit("method.tolerance=1.0", "data.validation=0.25")
    assert chosen.metrics["pooled"]["threshold"] == 0.2  # everything is allowed, and this is the fastest
    strict = lgvit("method.tolerance=0.0", "data.validation=0.25")
    values = strict.metrics["pooled"]
    assert 0.2 <= values["threshold"] <= 1.0


def test_thresholds_need_validation_samples(lgvit: Start) -> None:
    with pytest.raises((ConfigError, ConfigErrors), match=r"method.tolerance"):
        lgvit("method.tolerance=0.01")


# settings


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"exits": [2, 6]}, "below depth = 6"),
        ({"exits": [3, 2]}, "exits that rise"),
        ({"exits": [2, 3, 4]}, "kinds, one for each exit"),
        ({"kinds": ["lph"]}, "4 kinds"),
        ({"heads": 3}, r"divisor of method.width = 16"),
        ({"aggregation_heads": 5}, r"divisor of method.width = 16"),
        ({"joint_rounds": 3}, "federation.rounds"),
    ],
)
def test_settings_that_cannot_work_are_refused(lgvit: Start, wrong: Mapping[str, Any], told: str) -> None:
    with pytest.raises((ConfigError, ConfigErrors), match=told):
        lgvit(*(f"method.{key}={value}" for key, value in wrong.items()))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"training.local_steps": None}, "different numbers of steps"),
        ({"training.local_steps": 1}, "half of the rounds"),
        ({"method.joint_rounds": 2}, "never teaches"),
        ({"method.joint_rounds": 0}, "random network"),
        ({"training.optimizer": "sgd"}, "adamw"),
    ],
)
def test_what_is_probably_not_intended_is_warned_about(changes: Mapping[str, Any], told: str) -> None:
    config = parse(Config, SMALL).with_overrides(changes)
    assert any(told in warning for warning in make_method(config.method).check(config))


# data of one's own


def test_a_folder_of_pictures_of_sites(tmp_path: Path, lgvit: Start) -> None:
    generator = torch.Generator().manual_seed(0)
    for site in ("north", "south"):
        for name, light in (("dark", 60), ("light", 200)):
            folder = tmp_path / "pictures" / site / name
            folder.mkdir(parents=True)
            for number in range(12):
                pixels = torch.randint(light - 40, light + 40, (20, 26, 3), generator=generator).byte()
                Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    source = {"name": "folder", "path": str(tmp_path / "pictures"), "clients": True, "size": 14}
    run = lgvit(f"data.source={json.dumps(source)}", "data.partition=[natural]")
    assert set(run.metrics["clients"]) == {"north", "south"}
    assert run.metrics["pooled"]["speedup"] >= 1
