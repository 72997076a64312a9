"""Small runs of Hybrid Distillation: stages, teachers from everywhere, variants, pictures, the paper's sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fedlab
from benchmarks.small_runs import METHODS
from fedlab.config import load_config
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.experiment.start import method_folder
from fedlab.storage.checkpoint import NETWORK, load_checkpoint
from fedlab.studies.acceptance import load_acceptance

Run = Callable[..., fedlab.Run]
SMALL = METHODS["hybrid_distill"]
FIVE = "federation.rounds=5"
SERVER = ["method.feature_teacher.rounds=0", "method.relation_teacher.rounds=0", "method.feature_teacher.steps=2"]
BOTH = ("feature_teacher", "relation_teacher")


@pytest.fixture(scope="module")
def run(runner: Callable[..., Run]) -> Run:
    sections = {
        **SMALL, "method": {"name": "hybrid_distill", **SMALL["method"]}, "evaluation": {"every": 1},
        "engine": {"name": "inline", "device": "cpu"},
    }  # fmt: skip
    return runner("hybrid_distill", sections, checkpoint_every=1)


@pytest.fixture(scope="module")
def staged(run: Run) -> fedlab.Run:
    """Both teachers in rounds of their own, two rounds of distillation, one of fine-tuning."""
    return run(FIVE, "method.finetune_rounds=1", whole=True)


def state(made: fedlab.Run, role: str) -> Mapping[str, Tensor]:
    prefix = f"{NETWORK}{role}."
    tensors, _ = load_checkpoint(made.checkpoint)
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def test_every_stage_sends_what_it_trains_and_each_teacher_is_sent_once(staged: fedlab.Run) -> None:
    sent = [{group: sizes for group, sizes in r["bytes"].items() if any(sizes.values())} for r in staged.history.rounds]
    moved = [{group: {way for way in sizes if sizes[way]} for group, sizes in groups.items()} for groups in sent]
    both, down = {"down", "up"}, {"down"}
    assert moved == [
        {"relation_teacher": both, "decoder": both},
        {"feature_teacher": both, "classifier": both},
        {"student": both, "projector": both, "relation_teacher": down, "feature_teacher": down},
        {"student": both, "projector": both},
        {"student": both, "head": both},
    ]


def test_every_stage_measures_what_it_trains(staged: fedlab.Run) -> None:
    names = [set(event["pooled"]) for event in staged.history.evaluations]
    assert "masked_l1_ratio" in names[0]
    assert "accuracy" in names[1]
    assert "accuracy" in names[4]
    hybrid = {
        "feature_distance", "relation_distance", "relation_kl", "attention_distance", "attention_spread", "nmi",
    }  # fmt: skip
    assert names[2] == names[3] == hybrid
    server = staged.metrics["server"]
    assert hybrid <= server.keys()
    assert {f"{role}_nmi" for role in BOTH} <= server.keys()
    trained = [set(event["train"]) - {"seconds"} for event in staged.history.rounds]
    assert trained == [{"mae"}, {"ce"}, {"token_share", "l_c", "l_m"}, {"token_share", "l_c", "l_m"}, {"ce"}]


def test_clients_and_server_measure_the_same_distances(staged: fedlab.Run) -> None:
    """The server's test set has the same images as all clients together."""
    event = next(event for event in staged.history.evaluations if event["round"] == 4)
    for name, value in event["pooled"].items():
        assert event["server"][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_a_teacher_that_rests_or_teaches_does_not_change(run: Run, staged: fedlab.Run) -> None:
    """Each stage is resumed into the next; what is frozen in one must be what the stage before made."""
    first = run(FIVE, "method.finetune_rounds=1", until=1)
    second = run(FIVE, "method.finetune_rounds=1", until=2)
    for role, made in (("relation_teacher", first), ("feature_teacher", second)):
        before, after = state(made, role), state(staged, role)
        assert all(torch.equal(value, after[name]) for name, value in before.items()), role
    assert any(
        not torch.equal(value, state(staged, "feature_teacher")[name])
        for name, value in state(first, "feature_teacher").items()
    )


def test_the_pictures_show_attention_and_surviving_patches(staged: fedlab.Run) -> None:
    names = {path.name for path in staged.folder.figures.glob("*.png")}
    assert names == {f"{name}-000{round}.png" for name in ("attention", "patches") for round in (0, 1, 5)}


@pytest.mark.parametrize(
    "changes",
    [
        ["method.relation_distance=kl", "method.relations=[qk,vv]", "method.class_token=false"],
        ["method.mask=random", "method.drop_schedule=upfront", "method.whiten=false"],
        ["method.mask=none", "method.feature_weight=0", "method.relation_scale=false"],
        ["method.relation_weight.smooth_l1=0", "method.pooling=class", "method.score_from=relation_teacher"],
        ["method.projector=identity", "method.crop=[0.2, 1]", "method.flip=true", "data.partition=[domain]",
         "data.source.styles=[sketch,gray]"],
        ["method.student={width: 8, heads: 4, depth: 3}", "method.relation_heads=4",
         "data.partition=[{name: dirichlet, clients: 2, alpha: 0.1, min_samples: 4}]"],
    ],
    ids=["kl vv", "random upfront", "relations alone", "features alone", "domains", "sizes dirichlet"],
)  # fmt: skip
def test_every_variant_trains(run: Run, changes: list[str]) -> None:
    made = run(*SERVER, *changes, "federation.rounds=1", "method.warmup_epochs=0", "evaluation.every=1")
    assert made.history.end["status"] == "completed"
    assert all(bool(value.isfinite().all()) for value in state(made, "student").values())
    assert made.metrics["pooled"].keys() >= {"feature_distance", "relation_distance"}


def test_distillation_brings_the_student_nearer_to_both_teachers(run: Run) -> None:
    made = run(
        *SERVER, "federation.rounds=1", "training.local_steps=30", "training.lr=0.01", "method.warmup_epochs=0",
        "method.init_std=0.2", "method.mask=none", "data.partition=[{name: iid, clients: 1}]",
    )  # fmt: skip
    before = run(*SERVER, "federation.rounds=1", "training.lr=1e-12", "method.init_std=0.2", "method.mask=none")
    for name, share in (("relation_distance", 0.5), ("feature_distance", 0.9)):
        assert made.metrics["server"][name] < share * before.metrics["server"][name], name


# teachers


def test_teachers_trained_on_the_server_are_those_of_an_equal_earlier_run(run: Run) -> None:
    one, other = (run(*SERVER, "federation.rounds=1", f"method.mask={mask}") for mask in ("none", "random"))
    for role in BOTH:
        first, second = state(one, role), state(other, role)
        assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert one.history.rounds[0]["bytes"]["relation_teacher"]["down"] > 0


def test_teachers_of_an_earlier_run_are_loaded_and_never_sent(run: Run, staged: fedlab.Run) -> None:
    init = [f"init.{role}={staged.path}#{source}" for role, source in zip(BOTH, ("student", BOTH[1]), strict=True)]
    untrained = [
        "method.feature_teacher.rounds=0",
        "method.relation_teacher.rounds=0",
        "method.relation_teacher.steps=0",
    ]
    made = run(*init, *untrained, "federation.rounds=1")
    assert set(made.history.rounds[0]["bytes"]) & {"student", *BOTH} == {"student"}
    taken = state(staged, "student")
    assert all(torch.equal(value, taken[name]) for name, value in state(made, "feature_teacher").items())


def test_a_teacher_is_loaded_from_a_checkpoint(run: Run, tmp_path: Path) -> None:
    from transformers import ViTMAEConfig, ViTMAEModel

    config = ViTMAEConfig(
        image_size=24, patch_size=6, hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    model = ViTMAEModel(config)
    model.save_pretrained(tmp_path)
    untrained = [
        "method.relation_teacher.rounds=0",
        "method.relation_teacher.steps=0",
        "method.feature_teacher.rounds=0",
    ]
    given = f"method.relation_teacher.pretrained={tmp_path}"
    made = run(*untrained, given, "method.feature_teacher.steps=1", "federation.rounds=1")
    weights = state(made, "relation_teacher")
    assert torch.equal(weights["blocks.1.out.weight"], model.state_dict()["layers.1.attention.o_proj.weight"])
    assert "relation_teacher" not in made.history.rounds[0]["bytes"]
    with pytest.raises((ConfigError, ConfigErrors), match=r"method\.relation_teacher\.pretrained"):
        run(*untrained, f"method.relation_teacher.pretrained={tmp_path / 'none'}", "method.feature_teacher.steps=1")


def test_a_server_without_samples_cannot_train_teachers(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"data\.held\.teacher"):
        run(*SERVER, "data.source.teacher=0", "federation.rounds=1")
    held = run(*SERVER, "data.source.teacher=0", "data.held.teacher.share=0.25", "federation.rounds=1")
    assert held.history.end["status"] == "completed"


# the paper's sizes, and the experiment


def test_the_papers_networks(paper_networks: Callable[..., nn.ModuleDict]) -> None:
    columns = {"image": ("float32", (3, 224, 224)), "label": ("int64", ())}
    untrained: dict[str, Any] = {f"{role}.pretrained": None for role in BOTH}
    networks = paper_networks("hybrid_distill", columns, ["a", "b"], **untrained)
    sizes = {role: sum(p.numel() for p in one.parameters()) for role, one in networks.items()}
    vit = 85_798_656  # ViT-B/16 without a classifier
    assert sizes == {"relation_teacher": vit, "feature_teacher": vit, "student": vit, "projector": 768 * 769}
    method = load_config(method_folder("hybrid_distill", "method") / "paper.yaml").method
    assert method.settings["relation_layers"] == [11]


def test_the_acceptance_experiment_is_that_of_the_configuration() -> None:
    spec, shipped = (
        load_acceptance("hybrid_distill"),
        load_config(method_folder("hybrid_distill", "method") / "config.yaml"),
    )
    assert spec.config("federated", 0).method == shipped.method
    whole = spec.with_local_arms(range(4))
    steps = shipped.federation.rounds * (shipped.training.local_steps or 0)
    for arm in whole.arms:
        config = whole.config(arm, 0)
        assert config.federation.rounds * (config.training.local_steps or 0) == steps, arm
