"""Small federations with GPFM: who holds what, what travels, what is measured, and data and experts of one's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fedlab
from fedlab.errors import ConfigError
from fedlab.methods.gpfm import evaluation
from fedlab.methods.gpfm.settings import GPFMSettings
from fedlab.metrics.ranking import average_ranks
from tests.methods.gpfm.conftest import SMALL
from tests.methods.gpfm.test_experts import saved
from tests.methods.states import weights

Start = Callable[..., fedlab.Run]
TASKS = {f"{few}accuracy_{name}" for few in ("", "few_") for name in ("nuclei", "stroma", "label")}
CODES = {"delta_h", "target_entropy", "marginal_entropy", "center_norm", "collapse_alarm"}


@pytest.fixture(scope="module")
def run(runner: Callable[..., Start]) -> Start:
    return runner("gpfm", SMALL)


@pytest.fixture(scope="module")
def reference(run: Start) -> fedlab.Run:
    return run("method.tasks=[nuclei,stroma,label]", whole=True)


def nbytes(run: fedlab.Run, prefix: str) -> int:
    return sum(value.numel() * value.element_size() for value in weights(run, prefix).values())


# who holds what, and what travels (§6)


def test_heads_travel_up_from_holders_only_and_experts_not_at_all(reference: fedlab.Run) -> None:
    """Client 0 holds one expert, client 1 both."""
    sizes = {
        group: nbytes(reference, prefix)
        for group, prefix in (
            ("student", "student.backbone."), ("proto_head", "student.head."), ("teacher", "teacher."),
            ("centers", "centers."), ("distill_head/nuclei", "experts.nuclei."),
            ("distill_head/stroma", "experts.stroma."),
        )
    }  # fmt: skip
    for round in reference.history.rounds:
        sent = {group: size for group, size in round["bytes"].items() if size["up"] or size["down"]}
        assert sent == {
            group: {"down": 2 * size, "up": (1 if group == "distill_head/stroma" else 2) * size}
            for group, size in sizes.items()
        }
    assert {name.split(".")[0] for name in weights(reference)} == {
        f"network/{role}" for role in ("student", "teacher", "centers", "experts")
    }


def test_a_head_that_nobody_trains_stays_as_it_was_built(run: Start, reference: fedlab.Run) -> None:
    none = run('data.holds={"*": [nuclei]}', "method.freeze_epochs=0", "method.warmup_epochs=0")
    some = run("method.freeze_epochs=0", "method.warmup_epochs=0")
    first = weights(run('data.holds={"*": [nuclei]}', "federation.rounds=1"), "experts.stroma.")
    last, trained = weights(none, "experts.stroma."), weights(some, "experts.stroma.")
    assert all(torch.equal(first[name], last[name]) for name in first)
    assert not all(torch.equal(first[name], trained[name]) for name in first)
    assert none.metrics["pooled"].keys() == {"cosine", "patch_cosine", "cosine_nuclei", "patch_cosine_nuclei"}
    assert "cosine_stroma" in reference.metrics["pooled"]


@pytest.mark.parametrize("sync", ["server_ema", "reset", "local"])
def test_other_ways_to_keep_a_teacher(run: Start, reference: fedlab.Run, sync: str) -> None:
    made = run(f"method.teacher_sync={sync}", "method.tasks=[nuclei,stroma,label]")
    size = 2 * nbytes(made, "teacher.")
    for round in made.history.rounds:
        assert round["bytes"].get("teacher", {"down": 0, "up": 0}) == {"down": size * (sync == "server_ema"), "up": 0}
    found, usual = weights(made, "teacher."), weights(reference, "teacher.")
    assert not all(torch.equal(found[name], usual[name]) for name in usual)


def test_laboratories_without_experts_distill_from_themselves(run: Start) -> None:
    made = run(
        "data.source.domains=laboratory", "data.source.train=64", "data.partition=[domain]", 'data.holds={"*": []}',
        "federation.rounds=1", "training.local_steps=1",
    )  # fmt: skip
    assert made.history.start["clients"] == 4
    assert made.history.rounds[0]["train"].keys() & {"l_dino", "cls_nuclei", "cls_stroma"} == {"l_dino"}


# what is measured (§7)


def test_what_is_measured(reference: fedlab.Run) -> None:
    server = reference.metrics["server"]
    assert set(server) == TASKS | CODES | {"rank_teacher", "rank_student", "rank_stroma"}
    assert sum(server[f"rank_{name}"] for name in ("teacher", "student", "stroma")) == pytest.approx(6)
    experts = {f"{kind}_{name}" for kind in ("cosine", "patch_cosine") for name in ("nuclei", "stroma")}
    pooled = reference.metrics["pooled"]
    assert set(pooled) == {*experts, "cosine", "patch_cosine"}
    assert pooled["cosine"] == pytest.approx((pooled["cosine_nuclei"] + pooled["cosine_stroma"]) / 2)
    losses = {"l_dino", "l_ibot", "l_koleo", "cls_nuclei", "patch_nuclei", "cls_stroma"}
    assert losses <= reference.history.rounds[0]["train"].keys()
    assert {p.name for p in reference.folder.figures.glob("*.png")} == {f"crops-000{r}.png" for r in (0, 1, 2)}


def test_an_expert_can_be_judged_like_the_methods_own_networks(run: Start, reference: fedlab.Run) -> None:
    """So that an arm of an experiment stands for an expert, and is ranked with the others."""
    judged = run("method.judged=stroma", "method.tasks=[nuclei,stroma,label]")
    assert {name: judged.metrics["server"][name] for name in judged.metrics["server"] if "rank" in name} == {
        name: reference.metrics["server"][name] for name in reference.metrics["server"] if "rank" in name
    }
    assert {task: judged.metrics["server"][task] for task in TASKS} != {
        task: reference.metrics["server"][task] for task in TASKS
    }


def test_ranks_are_shared_by_models_that_are_equally_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teacher and expert solve one task equally well, and nobody else is as good at the other one as the expert."""
    from types import SimpleNamespace

    scores = {"teacher": [0.9, 0.7], "student": [0.8, 0.6], "uni": [0.9, 0.9]}
    monkeypatch.setattr(evaluation, "_codes", lambda *_: {})
    monkeypatch.setattr(evaluation, "_vectors", lambda ctx, s, name, columns: name)
    monkeypatch.setattr(evaluation, "tasks", lambda s, name, *_: dict(zip("ab", scores[name], strict=True)))
    ctx = SimpleNamespace(data={"probe": {"x": 1}, "test": {"x": 1}}, holds=("uni",))
    found = evaluation.server_values(ctx, GPFMSettings())  # type: ignore[arg-type]  # all that it looks at
    assert found == {"a": 0.9, "b": 0.7, "rank_teacher": 1.75, "rank_student": 3.0, "rank_uni": 1.25}
    assert average_ranks(list(scores.values())).tolist() == [1.75, 3.0, 1.25]
    del ctx.data["probe"]
    assert evaluation.server_values(ctx, GPFMSettings()) == {}  # type: ignore[arg-type]  # as above


def test_few_labels_are_the_first_ones() -> None:
    rng = np.random.default_rng(0)
    labels = torch.arange(40) % 2
    vectors = rng.normal(size=(40, 3)) + 4 * labels[:, None].numpy()
    wrong = torch.cat([labels[:8], 1 - labels[8:]])
    settings = GPFMSettings(few=8)
    found = evaluation.tasks(settings, vectors, {"label": wrong}, vectors, {"label": labels})
    assert found["few_accuracy_label"] > 0.9
    assert found["accuracy_label"] < 0.3


# data and experts of one's own


def slides(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for slide in range(3):
        for kind in ("tumor", "stroma"):
            for number in range(6):
                path = root / f"slide-{slide}" / kind / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (30, 30, 3), np.uint8)).save(path)
    return root


def test_ones_own_slides_and_experts_are_trained_on(run: Start, tmp_path: Path) -> None:
    path = slides(tmp_path / "tiles")
    source = f"{{name: folder, path: {path}, clients: true, whole_clients: true, size: 24, test_fraction: 0.3}}"
    made = run(
        "method.experts={uni: {dim: 8}, phikon: {dim: 8, cls_weight: 0.5, patch_weight: 0.0}}",
        f"data.assets={{uni: {saved(tmp_path, 'vit')}, phikon: {saved(tmp_path, 'registers')}}}",
        f"data.source={source}", "data.partition=[natural]", "data.held={test: {split: test, keep: true}}",
        'data.holds={"slide-0": [uni], "*": [phikon]}', "data.server_holds=[]", "training.batch_size=4",
        "federation.rounds=1", whole=True,
    )  # fmt: skip
    assert len(made.history.rounds[0]["clients"]) == 2, "one slide is for tests"
    assert made.metrics["server"].keys() == CODES


def test_labels_that_the_data_lack_are_named(run: Start) -> None:
    with pytest.raises(ConfigError, match=r"method.tasks[\s\S]*nucleus[\s\S]*such as label, nuclei, stroma"):
        run("method.tasks=[nucleus]", whole=True)
