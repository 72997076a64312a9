"""Small runs of DCGLR: variants, heterogeneity, one's own shapes, pictures, and the sizes of the published networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fedlab
from benchmarks.small_runs import METHODS
from fedlab.config import load_config
from fedlab.experiment.start import method_folder
from fedlab.storage.checkpoint import NETWORK, load_checkpoint
from fedlab.studies.acceptance import load_acceptance

Run = Callable[..., fedlab.Run]
SMALL = METHODS["dcglr"]


@pytest.fixture(scope="module")
def run(runner: Callable[..., Run]) -> Run:
    sections = {
        **SMALL, "method": {"name": "dcglr", **SMALL["method"]}, "federation": {"rounds": 2},
        "evaluation": {"every": 2}, "engine": {"name": "inline", "device": "cpu"},
    }  # fmt: skip
    return runner("dcglr", sections)


@pytest.fixture(scope="module")
def reference(run: Run) -> fedlab.Run:
    return run()


def state(made: fedlab.Run) -> Mapping[str, torch.Tensor]:
    return load_checkpoint(made.checkpoint)[0]


def test_a_run_measures_what_is_said_of_it(reference: fedlab.Run) -> None:
    server = reference.metrics["server"]
    for kind in ("svm", "svm_partial", "svm_kernel"):
        assert server[f"{kind}_gain"] == pytest.approx(server[f"{kind}_accuracy"] - server[f"start_{kind}_accuracy"])
    assert {"delta_h", "matched_h", "target_entropy", "marginal_entropy", "feature_deviation_ratio"} <= server.keys()
    assert server["collapse_alarm"] in (0, 1)
    assert {"delta_h", "matched_h"} == reference.metrics["pooled"].keys()
    assert {"l_kd", "l_con", "class_entropy"} <= reference.history.rounds[0]["train"].keys()


def test_counters_of_batch_normalization_never_travel(reference: fedlab.Run) -> None:
    counters = [value for name, value in state(reference).items() if name.endswith("num_batches_tracked")]
    assert counters
    assert all(int(value) == 0 for value in counters)


def test_the_classes_of_a_client_are_told_beside_its_losses(run: Run, reference: fedlab.Run) -> None:
    alone = run("data.partition=[{name: pathological, clients: 10, classes: 1}]", "federation.rounds=1")
    assert alone.history.rounds[0]["train"]["class_entropy"] == pytest.approx(0)
    assert reference.history.rounds[0]["train"]["class_entropy"] > 1.8


@pytest.mark.parametrize(
    "changes",
    [
        ["method.contrast=npair", "method.weak_second=true", "method.rotation=up", "method.teacher_sync=server_ema"],
        ["method.backbone=dgcnn", "method.neighbors=4", "data.source.sensors=[clean,scan]", "data.partition=[domain]"],
        [
            "method.backbone=vit", "method.depth=1", "method.heads=2", "method.resolutions=[]",
            "data.source.points=72", "data.partition=[{name: dirichlet, clients: 2, alpha: 0.1, min_samples: 4}]",
        ],
        ["method.teacher_sync=reset", "method.local_views=0", "method.contrast_weight=0"],
        [
            "method.teacher_sync=local", "method.distillation_weight=0", "data.source.rotate=false",
            "data.source.sensors=[uneven,noisy,y up]", "data.partition=[domain]",
        ],
    ],
    ids=["npair server_ema", "dgcnn sensors", "vit dirichlet", "reset distillation", "local contrast up axis"],
)  # fmt: skip
def test_every_variant_trains(run: Run, changes: list[str]) -> None:
    made = run(*changes, "federation.rounds=1", "method.freeze_prototypes_epochs=0", "method.warmup_epochs=0")
    assert made.history.end["status"] == "completed"
    values = {name: value for name, value in state(made).items() if value.is_floating_point()}
    assert all(bool(torch.isfinite(value).all()) for value in values.values())
    assert "delta_h" in made.metrics["pooled"]
    moved = [name for name in values if ".backbone." in name and name.endswith("weight") and "student" in name]
    assert any(not torch.equal(values[name], values[name.replace("student", "teacher")]) for name in moved) == (
        "method.teacher_sync=reset" not in changes
    )


def test_normalization_that_stays_on_the_clients_is_not_averaged(run: Run, reference: fedlab.Run) -> None:
    kept = run("exchange.local=[norm]")
    mean = f"{NETWORK}teacher.backbone.layers.1.running_mean"
    assert float(state(kept)[mean].abs().max()) == 0, "the server's is that of the start"
    assert float(state(reference)[mean].abs().max()) > 0
    assert kept.metrics["pooled"]["delta_h"] != reference.metrics["pooled"]["delta_h"]


def test_the_server_can_estimate_statistics_anew(run: Run, reference: fedlab.Run) -> None:
    anew, mean = run("method.reestimate=probe"), f"{NETWORK}teacher.backbone.layers.1.running_mean"
    assert not torch.equal(state(anew)[mean], state(reference)[mean])


def test_ones_own_shapes_are_trained_on(run: Run, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(24, 40, 3))
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=np.arange(24) % 2, x_test=x[:8], y_test=np.arange(8) % 2)
    made = run(f"data.source={{name: points, path: {tmp_path / 'mine.npz'}, points: 32}}", "federation.rounds=1")
    assert made.metrics["pooled"].keys() == {"delta_h", "matched_h"}


def test_the_pictures_show_shapes_and_views(reference: fedlab.Run) -> None:
    assert {path.name for path in reference.folder.figures.glob("*.png")} == {f"views-000{r}.png" for r in (0, 1, 2)}


# sizes


def sizes(networks: nn.ModuleDict) -> dict[str, int]:
    return {
        "backbone": sum(p.numel() for p in networks["student"].backbone.parameters()),
        "head": sum(p.numel() for p in networks["student"].projection.parameters()),
        "teacher": sum(p.numel() for p in networks["teacher"].parameters()),
        "center": networks["center"].value.numel(),
    }


@pytest.mark.parametrize(
    ("settings", "backbone"),
    [
        ({}, 42_176),
        ({"backbone": "dgcnn"}, 1_011_456),
        ({"backbone": "vit"}, 1_255_936),
        ({"backbone": "vit", "width": 512, "depth": 8, "heads": 8}, 17_159_232),
    ],
)
def test_the_published_networks(paper_networks: Callable[..., nn.ModuleDict], settings: Any, backbone: int) -> None:
    columns = {"points": ("float32", (1024, 3)), "label": ("int64", ())}
    found, width = sizes(paper_networks("dcglr", columns, ["a"], **settings)), settings.get("width", 192)
    head = (width + 1) * 2048 + 2049 * 2048 + 2049 * 256 + 512 * 256
    assert found == {"backbone": backbone, "head": head, "teacher": backbone + head, "center": 512}


def test_the_acceptance_experiment_is_that_of_the_configuration() -> None:
    spec, shipped = load_acceptance("dcglr"), load_config(method_folder("dcglr", "method") / "config.yaml")
    assert spec.config("federated", 0).method == shipped.method
    whole = spec.with_local_arms(range(2))
    assert {"local_0", "local_1"} < whole.arms.keys()
    for arm in whole.arms:
        config = whole.config(arm, 0)
        assert config.federation.rounds * (config.training.local_steps or 0) == 200, arm
