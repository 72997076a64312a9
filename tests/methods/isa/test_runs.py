"""Small runs of ISA from beginning to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

import fedlab
from benchmarks.hashes import METHODS
from fedlab.storage.checkpoint import NETWORK, load_checkpoint
from fedlab.studies.acceptance import load_acceptance

Run = Callable[..., fedlab.Run]
FEDERATION = {"federation": {"rounds": 2}, "evaluation": {"every": 2}, "engine": {"name": "inline", "device": "cpu"}}


@pytest.fixture(scope="module")
def run(runner: Callable[..., Run]) -> Run:
    entry = METHODS["isa"]
    return runner("isa", {**entry, **FEDERATION, "method": {"name": "isa", **entry["method"]}}, report=False)


@pytest.fixture(scope="module")
def reference(run: Run) -> fedlab.Run:
    return run()


def test_a_run_measures_on_clients_and_server(reference: fedlab.Run) -> None:
    assert set(reference.metrics["pooled"]) == {"gcd_loss", "lar_loss", "match_own", "match_other", "match_margin"}
    server = reference.metrics["server"]
    assert {"recall@1", "recall@5", "recall@1_red", "map@5", "recall@1_oracle", "gain_over_mean"} <= set(server)
    assert all(value == value for value in server.values())
    assert {"gcd", "lar"} <= reference.history.rounds[0]["train"].keys()


def test_the_light_side_alone_travels(reference: fedlab.Run) -> None:
    for event in reference.history.rounds:
        assert {group for group, size in event["bytes"].items() if any(size.values())} == {"query"}


def test_counters_of_batch_normalization_never_travel(reference: fedlab.Run) -> None:
    tensors, _ = load_checkpoint(reference.checkpoint)
    counters = [value for name, value in tensors.items() if name.endswith("num_batches_tracked")]
    assert counters
    assert all(int(value) == 0 for value in counters)
    means = [value for name, value in tensors.items() if name.endswith("running_mean")]
    assert any(float(value.abs().max()) > 0 for value in means)


def test_the_run_folder_holds_what_a_device_needs(reference: fedlab.Run) -> None:
    query = safetensors.torch.load_file(reference.folder.artifacts / "query.safetensors")
    tensors, _ = load_checkpoint(reference.checkpoint)
    assert {name.partition(".")[0] for name in query} == {"encoder", "learner"}
    assert all(torch.equal(value, tensors[f"{NETWORK}{name}"]) for name, value in query.items())
    index = safetensors.torch.load_file(reference.folder.artifacts / "index.safetensors")["vectors"]
    assert index.shape == (96, 64)
    assert torch.allclose(index.norm(dim=1), torch.ones(96), atol=1e-5)


def test_pictures_are_drawn(reference: fedlab.Run) -> None:
    names = {file.name for file in reference.folder.figures.glob("*.png")}
    assert {"retrieved-0000.png", "retrieved-0002.png", "attention-0002.png"} <= names


@pytest.mark.parametrize(
    "changes",
    [
        ["method.query=large", "method.contrast=soft", "method.keep_tokens=false"],
        ["method.learner.kind=pooled", "method.lambda_lar=0", "method.anchors=4"],
        ["method.encoder.norm=group", "method.symmetric=true", "method.lar=positive", "exchange.local=[norm]"],
    ],
    ids=["symmetric", "pooled", "group"],
)
def test_every_variant_trains(run: Run, changes: list[str]) -> None:
    made = run(*changes, "federation.rounds=1")
    assert made.history.end["status"] == "completed"
    assert all(torch.isfinite(value).all() for value in load_checkpoint(made.checkpoint)[0].values())
    assert 0 <= made.metrics["server"]["recall@1"] <= 1


def test_photos_from_a_folder_are_enough_for_clients(run: Run, tmp_path: Path) -> None:
    from PIL import Image

    for split in ("train", "test"):
        for name in ("one", "two"):
            for number in range(4):
                file = tmp_path / split / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (40, 30), (50 * number, 10, 200)).save(file)
    made = run(
        f"data.source={{name: folder, path: {tmp_path}}}", "data.partition=[{name: iid, clients: 2}]",
        "federation.rounds=1",
    )  # fmt: skip
    assert set(made.metrics["pooled"]) == {"gcd_loss", "lar_loss", "match_own", "match_other", "match_margin"}
    assert not made.metrics.get("server")


def test_the_acceptance_experiment_gives_every_model_the_same_steps() -> None:
    spec = load_acceptance("isa")
    for arm in spec.arms:
        config = spec.config(arm, 0)
        assert config.federation.rounds * (config.training.local_steps or 0) == 160, arm
        assert config.data.source.model_dump()["data_seed"] is None
