"""Small federations with S2-UniSeg: what travels, what is measured, data of one's own, and refused settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fedlab
from fedlab.assembly import make_method
from fedlab.config import Config, parse
from fedlab.errors import ConfigError, ConfigErrors, DataError
from fedlab.methods.s2_uniseg.evaluation import UNIAP
from tests.methods.s2_uniseg.conftest import METHOD, SMALL, VIT, Lab
from tests.methods.states import weights

Start = Callable[..., fedlab.Run]
Made = Callable[..., Lab]


@pytest.fixture(scope="module")
def s2_uniseg(runner: Callable[..., Start]) -> Start:
    return runner("s2_uniseg", SMALL)


@pytest.fixture(scope="module")
def reference(s2_uniseg: Start) -> fedlab.Run:
    return s2_uniseg()


def nbytes(run: fedlab.Run, prefix: str) -> int:
    return sum(value.numel() * value.element_size() for value in weights(run, prefix).values())


def test_student_teacher_and_centers_travel_and_the_backbone_once(reference: fedlab.Run) -> None:
    sizes = {role: 2 * nbytes(reference, f"{role}.") for role in ("student", "teacher", "centers", "backbone")}
    assert sizes["centers"] == 2 * 2 * 10 * 4
    for round in reference.history.rounds:
        sent = {group: size for group, size in round["bytes"].items() if size["up"] or size["down"]}
        expected = {role: {"down": sizes[role], "up": sizes[role]} for role in ("student", "centers")}
        expected["teacher"] = {"down": sizes["teacher"], "up": 0}
        if round["round"] == 1:
            expected["backbone"] = {"down": sizes["backbone"], "up": 0}
        expected["results"] = {"down": 0, "up": 2 * 4}  # the number of steps, by which the server moves the teacher
        assert sent == expected
    moved = weights(reference, "teacher.")["network/teacher.project.weight"]
    assert not torch.equal(moved, weights(reference, "student.")["network/student.project.weight"])


def test_what_is_measured(reference: fedlab.Run) -> None:
    seen = {
        "ap", "ap50", "ar", "region_recall", "uniap_region_recall", "uniap_ar", "miou", "miou_present",
        "pixel_accuracy", "pq", "sq", "rq", "joined", "pseudo_dice", "matched_h", "delta_h",
    }  # fmt: skip
    kept = {"ap", "ar", "region_recall", "pixel_accuracy", "joined"}
    kinds = {f"{name}_{kind}" for name in ("target_entropy", "marginal_entropy", "center_norm")
             for kind in ("instance", "semantic")}  # fmt: skip
    server = reference.metrics["server"]
    assert set(server) == seen | {f"start_{n}" for n in kept} | {f"{n}_gain" for n in kept} | kinds | {"collapse_alarm"}
    assert set(reference.metrics["mean"]) == set(reference.metrics["pooled"]) == seen
    assert server["uniap_region_recall"] > 0.5
    assert server["ap_gain"] == pytest.approx(server["ap"] - server["start_ap"])
    logged = reference.history.rounds[0]["train"]
    assert {"l_q", "l_bce", "l_dice", "regions", "pairs", "target_entropy"} <= set(logged)
    assert {p.name for p in reference.folder.figures.glob("*.png")} == {f"regions-000{r}.png" for r in (0, 1, 2)}


def test_the_time_of_uniap_is_told_and_is_no_metric(reference: fedlab.Run) -> None:
    timed = [event for event in reference.history.events if event["event"] == "timing"]
    assert any(UNIAP in str(event) for event in timed)
    assert not any("UniAP" in name for name in reference.metrics["server"])


def test_evaluation_changes_nothing_and_says_the_same_twice(reference: fedlab.Run, s2_uniseg: Start) -> None:
    again = s2_uniseg("evaluation.every=1")
    assert again.metrics["server"] == reference.metrics["server"]
    assert all(torch.equal(value, weights(reference)[name]) for name, value in weights(again).items())


@pytest.mark.parametrize("sync", ["average", "reset", "local"])
def test_other_ways_to_keep_a_teacher(s2_uniseg: Start, reference: fedlab.Run, sync: str) -> None:
    run = s2_uniseg(f"method.teacher_sync={sync}")
    size = 2 * nbytes(run, "teacher.") * (sync == "average")
    for round in run.history.rounds:
        assert round["bytes"].get("teacher", {"down": 0, "up": 0}) == {"down": size, "up": size}
    assert run.metrics["server"].keys() == reference.metrics["server"].keys()


@pytest.mark.parametrize(
    "changes",
    [
        ("method.semantic_pooling=false", "method.query_weight=0", "method.pooling.side=8"),
        ("method.views.color=true", "method.views.flip=true", "method.pooling.repeat=false",
         "method.pooling.mask_mean=true"),
        ("method.backbone={kind: vit, patch: 4, width: 12, depth: 1, heads: 2, size: 64}",
         "training.precision=bfloat16", "method.views.color=true"),
    ],
)  # fmt: skip
def test_variants_train_and_are_measured(s2_uniseg: Start, changes: tuple[str, ...]) -> None:
    run = s2_uniseg(*changes, "federation.rounds=1", "evaluation.every=1")
    assert 0 < run.metrics["server"]["uniap_ar"] <= 1
    assert run.history.rounds[0]["train"]["l_dice"] > 0


# data of one's own


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def folder(root: Path, masks: bool = True) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 4), ("server/test", 3)):
        for site in ("north", "south"):
            for number in range(count):
                image, mask = np.full((64, 64, 3), 40, np.uint8), np.zeros((64, 64), np.uint8)
                for thing in (1, 2):
                    top, left = 4 * rng.integers(0, 3) + 32 * (thing - 1), 4 * rng.integers(0, 8)
                    image[top : top + 20, left : left + 20] = rng.integers(80, 255, 3)
                    mask[top : top + 20, left : left + 20] = thing
                save(root / part / "images" / site / f"{number}.png", image)
                if masks and part != "train":
                    save(root / part / "masks" / site / f"{number}.png", mask)


def test_pictures_and_masks_of_numbered_objects_of_ones_own(s2_uniseg: Start, tmp_path: Path) -> None:
    folder(tmp_path / "mine")
    source = f"data.source={{name: masks, path: {tmp_path / 'mine'}, contents: instances, size: [64, 64], stride: 1}}"
    run = s2_uniseg(source, "data.partition=[{name: domain}]", "federation.rounds=1", "evaluation.every=1")
    assert set(run.metrics["clients"]) == {"north", "south"}
    server = run.metrics["server"]
    assert {"ap", "ar", "pq", "uniap_ar"} <= set(server)
    assert "pixel_accuracy" not in server
    assert server["uniap_region_recall"] > 0.9


def test_pictures_without_masks_can_be_trained_on(s2_uniseg: Start, tmp_path: Path) -> None:
    for part in ("train", "test"):
        for kind in "ab":
            for number in range(4):
                image = np.full((32, 32, 3), 30, np.uint8)
                image[4 * number : 4 * number + 16, :16] = 200
                save(tmp_path / part / kind / f"{number}.png", image)
    run = s2_uniseg(f"data.source={{name: folder, path: {tmp_path}, size: 32}}", "federation.rounds=1")
    assert set(run.metrics["mean"]) == {"pseudo_dice", "matched_h", "delta_h"}
    assert "server" not in run.metrics or not run.metrics["server"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{name: shapes}", "images in a column 'image'"),
        ("{name: materials}", None),
        ("{name: tiles}", "sides that 32 divides"),
    ],
)
def test_samples_that_cannot_be_used_are_refused(s2_uniseg: Start, source: str, message: str | None) -> None:
    if message is None:
        assert s2_uniseg(f"data.source={source}", "federation.rounds=1", "data.source.train=16").metrics["mean"]
        return
    with pytest.raises((ConfigError, DataError, ConfigErrors), match=message):
        s2_uniseg(f"data.source={source}")


# settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": {**VIT, "heads": 5}}, "a divisor of method.backbone.width"),
        ({"backbone": {**METHOD["backbone"], "trained": True}}, "nothing to train|no weights to train"),
        ({"backbone": {**METHOD["backbone"], "pretrained": "some/vit"}}, "no checkpoint"),
        ({"decoder": {**METHOD["decoder"], "width": 40}}, "a multiple of 32"),
        ({"decoder": {**METHOD["decoder"], "heads": 3}}, "a divisor of method.decoder.width"),
        ({"pooling": {"thresholds": [0.5, 0.8]}}, "thresholds that fall"),
        ({"views": {**METHOD["views"], "size": 48}}, "a multiple of 32"),
        ({"views": {**METHOD["views"], "scale": [0.5, 0.2]}}, "the smaller one first"),
        ({"query_weight": 0, "mask_weight": 0, "dice_weight": 0}, "at least one weight"),
        ({"prototypes": 1}, "prototypes"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    config = parse(Config, {**SMALL, "method": {**METHOD, **changes}})
    with pytest.raises((ConfigError, ConfigErrors), match=message):
        make_method(config.method).check(config)


def test_normalized_pictures_are_refused() -> None:
    config = parse(Config, {**SMALL, "data": {**SMALL["data"], "mean": [0.5]}})
    with pytest.raises(ConfigError, match="images arrive in"):
        make_method(config.method).check(config)


@pytest.mark.parametrize(
    ("section", "change", "warning"),
    [
        ("training", {"optimizer": "sgd"}, "adamw"),
        ("training", {"local_steps": 2}, "hardly moves"),
        ("method", {"mask_weight": 0, "dice_weight": 0}, "find no regions"),
        ("method", {"backbone": VIT}, "random weights mean nothing"),
    ],
)
def test_doubtful_settings_are_warned_about(section: str, change: dict[str, Any], warning: str) -> None:
    fine = {**SMALL, "training": {**SMALL["training"], "local_steps": 200}}
    plain, doubtful = parse(Config, fine), parse(Config, {**fine, section: {**fine[section], **change}})
    assert make_method(plain.method).check(plain) == []
    (text,) = make_method(doubtful.method).check(doubtful)
    assert warning in text


def test_the_papers_networks_can_be_built(paper_networks: Callable[..., nn.ModuleDict]) -> None:
    """Of a ViT-B/8 with positions of 28 × 28 patches, whose published size is 85,807,872."""
    backbone = {"kind": "vit", "pretrained": None}
    networks = paper_networks("s2_uniseg", {"image": ("float32", (3, 448, 448))}, backbone=backbone)
    counts = {role: sum(p.numel() for p in module.parameters()) for role, module in networks.items()}
    teacher: Any = networks["teacher"]
    assert sum(p.numel() for p in teacher.backbone.parameters()) == 85_807_872
    assert counts["student"] > counts["teacher"] > 85_807_872
