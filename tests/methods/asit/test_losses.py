"""ASiT's maths: losses, networks, what teacher and student see, schedules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedlab.method import Step
from fedlab.methods.asit import evaluation, views
from fedlab.methods.asit.method import ASiT
from fedlab.methods.asit.settings import ASiTSettings

SMALL: dict[str, Any] = {
    "rate": 8000, "view_seconds": 0.66, "bins": 32, "patch": 8, "width": 16, "depth": 2, "heads": 2, "hidden": 16,
    "bottleneck": 8, "reconstruction_width": 8, "class_prototypes": 6, "patch_prototypes": 5, "drop_path": 0.0,
}  # fmt: skip
AUDIO = {"audio": ("float32", (12_800,)), "label": ("int64", ())}


class Lab:
    """ASiT's networks and a batch of views, without an engine."""

    def __init__(self, **settings: Any) -> None:
        self.method = ASiT(ASiTSettings(**{**SMALL, **settings}))
        self.s: ASiTSettings = self.method.settings
        torch.manual_seed(0)
        task: Any = SimpleNamespace(columns=AUDIO, num_classes=3)
        self.nets: Any = nn.ModuleDict(self.method.build(task))
        clips = torch.randn(6, 12_800, generator=torch.Generator().manual_seed(1))
        self.columns = {"audio": clips, "length": torch.full((6,), 12_800)}
        self.batch = views.pretraining_views(self.s, self.columns, torch.Generator().manual_seed(2))
        self.scratch: dict[str, Any] = {}

    def step(self, at: int = 0, per_round: int = 10, rounds: int = 10, **plan: Any) -> Step:
        plan = {"stage": "pretrain", "stage_round": 1 + at // per_round, "stage_rounds": rounds, **plan}
        return Step(
            1 + at // per_round, 0, at % per_round, per_round, at, per_round * rounds, plan, {}, self.scratch,
            lambda name, value: None,
        )  # fmt: skip

    def loss(self, at: int = 0) -> dict[str, Tensor]:
        return self.method.loss(self.nets, self.batch, self.step(at))


@pytest.fixture
def lab() -> Callable[..., Lab]:
    return Lab


# losses


def test_the_reconstruction_weighs_two_in_the_total(lab: Callable[..., Lab]) -> None:
    terms, plain = lab().loss(), lab(reconstruction_weight=1.0).loss()
    assert set(terms) == {"l_cls", "l_dat", "l_rec"}
    torch.testing.assert_close(terms["l_rec"], 2 * plain["l_rec"])
    torch.testing.assert_close(terms["l_cls"], plain["l_cls"])
    assert set(lab(class_weight=0.0, patch_weight=0.0).loss()) == {"l_rec"}


# networks


def test_the_papers_networks_have_the_papers_sizes(paper_networks: Callable[..., nn.ModuleDict]) -> None:
    nets: Any = paper_networks("asit", {"audio": ("float32", (320_000,))}, [str(c) for c in range(50)])

    def size(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    gains = 8192 + 1024  # of the release's weight normalization; they are 1 for ever, and here no parameters
    for role in ("student", "teacher"):
        assert size(nets[role].backbone) == 85_482_240
        assert size(nets[role].projection) + gains == 8_664_320
    assert size(nets["student"].reconstruction) == 1_312_385
    assert not hasattr(nets["teacher"], "reconstruction")
    x = torch.empty(4, 592, 128, device="meta")
    assert nets["student"].backbone(x[:, None]).shape == (4, 297, 768)
    logits, reconstruction = nets["student"].outputs(x)
    assert logits.classes.shape == (4, 8192)
    assert logits.patches.shape == (4 * 296, 1024)
    assert reconstruction.shape == (4, 592, 128)


def test_teacher_starts_as_the_student_and_the_mlp_is_shared_by_both_kinds_of_token(lab: Callable[..., Lab]) -> None:
    nets = lab().nets
    student, teacher = nets["student"].state_dict(), nets["teacher"].state_dict()
    assert teacher
    assert all(torch.equal(value, student[name]) for name, value in teacher.items())
    assert [name for name, _ in nets["student"].projection.named_children()] == ["mlp", "classes", "patches"]
    tokens = torch.randn(2, 5, 16)
    logits = nets["student"].projection(tokens)
    assert float(logits.classes.abs().max()) <= 1 + 1e-6  # cosines
    scaled = nets["student"].projection.mlp[-1]
    with torch.no_grad():
        for p in scaled.parameters():
            p.mul_(3)
    torch.testing.assert_close(nets["student"].projection(tokens).patches, logits.patches)


def test_only_the_student_learns(lab: Callable[..., Lab]) -> None:
    it = lab()
    torch.stack(list(it.loss().values())).sum().backward()
    assert all(p.grad is not None for p in it.nets["student"].parameters())
    assert all(p.grad is None and not p.requires_grad for p in it.nets["teacher"].parameters())
    assert not list(it.nets["centers"].parameters())
    for head in (it.nets["student"].projection.classes, it.nets["student"].projection.patches):
        torch.testing.assert_close(head.directions().norm(dim=1), torch.ones(len(head.weight)))


def test_stochastic_depth_is_the_students_alone(lab: Callable[..., Lab]) -> None:
    nets = lab(drop_path=0.1).nets
    assert [b.drop_path for b in nets["student"].backbone.blocks] == pytest.approx([0, 0.1])
    assert [b.drop_path for b in nets["teacher"].backbone.blocks] == [0, 0]


# a step


def test_teacher_sees_clean_views_and_student_corrupted_ones(
    lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    it, seen = lab(), {}
    for role in ("student", "teacher"):
        backbone, forward = it.nets[role].backbone, it.nets[role].backbone.forward
        monkeypatch.setattr(backbone, "forward", lambda x, r=role, f=forward: (seen.__setitem__(r, x[:, 0]), f(x))[1])
    it.loss()
    clean = it.nets["normalizer"](it.batch["fbank"])
    assert torch.equal(seen["teacher"], clean)
    assert torch.equal(seen["student"] != clean, it.batch["mask"] & (seen["student"] != clean))
    assert torch.equal(seen["student"], views.corrupted(clean, it.batch))
    assert 0.25 < float((seen["student"] != clean).float().mean()) < 0.8


@pytest.mark.parametrize(("epoch", "temperature"), [(0, 0.04), (10, 0.04 + 0.03 * 10 / 29), (29, 0.07), (60, 0.07)])
def test_the_teachers_temperature_rises_over_thirty_epochs(
    lab: Callable[..., Lab], epoch: int, temperature: float
) -> None:
    """L_cls = ½ Σ over crossed views of H(softmax((t − c)/τ_t), softmax(s/0.1)), one step an epoch."""
    it = lab()
    with torch.no_grad():
        clean = it.nets["normalizer"](it.batch["fbank"])
        t, s = it.nets["teacher"](clean), it.nets["student"].outputs(views.corrupted(clean, it.batch))[0]

        def cross_entropy(teacher: Tensor, student: Tensor) -> Tensor:
            return -(torch.softmax(teacher / temperature, 1) * torch.log_softmax(student / 0.1, 1)).sum(1).mean()

        (t0, t1), (s0, s1) = t.classes.chunk(2), s.classes.chunk(2)
        expected = {
            "l_cls": (cross_entropy(t0, s1) + cross_entropy(t1, s0)) / 2,
            "l_dat": cross_entropy(t.patches, s.patches),
        }
        found = it.loss(epoch)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=0)


def test_the_loss_uses_the_old_center_and_the_step_moves_it(lab: Callable[..., Lab]) -> None:
    it = lab()
    first = it.loss()["l_cls"]
    assert not it.nets["centers"].classes.value.any()
    with torch.no_grad():
        logits = it.nets["teacher"](it.nets["normalizer"](it.batch["fbank"]))
    it.method.after_step(it.nets, it.step())
    torch.testing.assert_close(it.nets["centers"].classes.value, 0.1 * logits.classes.mean(0))
    torch.testing.assert_close(it.nets["centers"].patches.value, 0.1 * logits.patches.mean(0))
    assert not torch.equal(it.loss()["l_cls"], first)


def test_the_teacher_follows_with_a_momentum_that_goes_on_across_rounds(lab: Callable[..., Lab]) -> None:
    it = lab(momentum=0.996)
    assert it.method._teacher.momentum(0, 100) == pytest.approx(0.996)
    assert it.method._teacher.momentum(50, 100) == pytest.approx(0.998)
    with torch.no_grad():
        for p in it.nets["student"].parameters():
            p.add_(1.0)
    before = copy.deepcopy(it.nets["teacher"].state_dict())
    it.loss(50)
    it.method.after_step(it.nets, it.step(50))
    moved = {name: float((value - before[name]).mean()) for name, value in it.nets["teacher"].state_dict().items()}
    assert moved["backbone.class_token"] == pytest.approx(0.002, rel=1e-3)


def values_at(it: Lab, at: int, **step: Any) -> list[Mapping[str, float]]:
    groups = [
        {"lr": 2.5e-4, "weight_decay": 0.0, "decays": True},
        {"lr": 2.5e-4, "weight_decay": 0.0, "decays": False},
    ]
    return [it.method.schedule(it.step(at, **step), group) for group in groups]


@pytest.mark.parametrize("per_round", [10, 100, 1000])
def test_schedules_do_not_restart_with_rounds(lab: Callable[..., Lab], per_round: int) -> None:
    it, rounds = lab(), 1000 // per_round
    lr = [values_at(it, at, per_round=per_round, rounds=rounds)[0]["lr"] for at in (0, 99, 100, 999)]
    assert lr == pytest.approx([0, 2.5e-4, 2.5e-4, 1.0008e-6], rel=1e-4)
    decay = [values_at(it, at, per_round=per_round, rounds=rounds) for at in (0, 500)]
    assert [found[0]["weight_decay"] for found in decay] == pytest.approx([0.04, 0.22])
    assert [found[1]["weight_decay"] for found in decay] == [0, 0]
    assert [it.method._epoch(it.step(at, per_round, rounds)) for at in (0, 9, 10, 299, 300)] == [0, 0, 1, 29, 30]


def test_biases_and_vectors_are_not_decayed(lab: Callable[..., Lab]) -> None:
    it = lab()
    decayed, others = it.method.param_groups(it.nets, {"stage": "pretrain"})
    names = {id(p): name for name, p in it.nets["student"].named_parameters()}
    assert len(names) == len(decayed["params"]) + len(others["params"])
    assert {names[id(p)] for p in decayed["params"]} >= {"backbone.class_token", "projection.classes.weight"}
    assert all("bias" in names[id(p)] or "norm" in names[id(p)] for p in others["params"])


def test_prototypes_rest_in_the_first_epochs_if_asked_to(lab: Callable[..., Lab]) -> None:
    it = lab(freeze_prototypes_epochs=1)
    head = it.nets["student"].projection.classes
    for at, learns in ((0, False), (1, True)):
        head.weight.grad = None
        torch.stack(list(it.loss(at).values())).sum().backward()
        assert (head.weight.grad is not None) == learns
    default = lab()
    torch.stack(list(default.loss(0).values())).sum().backward()
    assert default.nets["student"].projection.classes.weight.grad is not None


@pytest.mark.parametrize("way", ["distinct", "constant", "uniform", "single"])
def test_targets_that_do_not_differ_raise_the_alarm(lab: Callable[..., Lab], way: str) -> None:
    it, clips = lab(), torch.randn(24, 12_800, generator=torch.Generator().manual_seed(3))
    clips *= torch.linspace(0.01, 1, 24)[:, None]
    head, centers = it.nets["teacher"].projection, it.nets["centers"]
    with torch.no_grad():
        for p in it.nets["teacher"].parameters():
            p.mul_(8)  # far from the untrained state, in which class tokens hardly differ
        if way != "distinct":
            head.mlp[-1].weight.zero_()
            head.mlp[-1].bias.fill_(1.0)
        if way == "uniform":
            for center, kind in ((centers.classes, head.classes), (centers.patches, head.patches)):
                center.value.copy_(kind.directions().sum(1) / 8**0.5)
        if way == "single":
            head.classes.weight[0] = 1.0
            head.classes.weight[1:] = -1.0
    data = {"test": {"audio": clips}}
    context: Any = SimpleNamespace(networks=it.nets, data=data, iterate=lambda columns, size: [columns], batch_size=24)
    measured = evaluation.collapse(context, it.s)
    assert measured["collapse_alarm"] == (way != "distinct")
    if way == "uniform":
        assert measured["target_entropy_classes"] == pytest.approx(1, abs=1e-5)
    if way == "single":
        assert measured["marginal_entropy_classes"] == pytest.approx(0, abs=1e-5)
