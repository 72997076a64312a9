"""Relabeling and post-training of students."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.errors import FedLabError
from fedlab.method import ServerContext
from fedlab.methods.cda.post import PostTraining, ensemble, pack, unpack
from fedlab.methods.cda.quality import student_values
from fedlab.methods.cda.recover import recovered
from fedlab.metrics import Classification
from fedlab.storage.hashing import state_hash


def images_of(lab: Any, count: int = 8) -> tuple[Tensor, Tensor]:
    data = lab.data()
    return data["image"][:count], data["label"][:count]


# §3.3: relabeling


@pytest.mark.parametrize("relabel", ["online", "stored"])
def test_a_mixed_images_label_is_the_teachers_word_on_it(lab: Callable[..., Any], relabel: str) -> None:
    bench = lab(post={"relabel": relabel, "batch_size": 8})
    training = post_training(bench)
    for x, logits, *_ in training._batches(0, "student_0_0"):
        assert (logits - bench.networks["model"](x)).abs().max() < 1e-2
        assert not (x[None] == training.images[:, None]).flatten(2).all(2).any()  # views, not the images themselves


def post_training(bench: Any) -> PostTraining:
    ctx = bench.server(4)
    ctx.private.update(recovered(bench.server(3), bench.networks["model"], range(4), bench.method.settings.recover))
    return PostTraining(ctx, bench.method.settings.post)


@pytest.mark.parametrize("relabel", ["online", "stored"])
def test_students_can_see_shifted_images_instead_of_crops(lab: Callable[..., Any], relabel: str) -> None:
    """Pad and crop, without mixing: every view is an image moved by at most two pixels."""
    looks = {"crop": 1.0, "shift": 2, "flip": False, "mixing": "none"}
    training = post_training(lab(post={"relabel": relabel, **looks}))
    height, width = training.images.shape[2:]
    padded = F.pad(training.images, (2, 2, 2, 2), mode="replicate")
    moves = [padded[:, :, y : y + height, x : x + width] for y in range(5) for x in range(5)]
    every = torch.stack(moves)  # move, image, …
    used = set()
    for x, *_ in training._batches(0, "student_0_0"):
        for view in x:
            distance = (every - view).flatten(2).abs().amax(2)
            assert distance.min() < 1e-4
            used.add(int(distance.min(1).values.argmin()))
    assert len(used) > 2


# §3.4: post-training


@pytest.mark.parametrize(
    "post", [{}, {"relabel": "stored"}, {"optimizer": "sgd", "lr": 0.05}, {"labels": "hard"}, {"accumulation": 2}]
)
def test_blocks_of_rounds_share_the_epochs(lab: Callable[..., Any], post: dict[str, Any]) -> None:
    bench = lab(post=post)
    fresh = bench.weights()
    bench.private.update(recovered(bench.server(3), bench.networks["model"], range(4), bench.method.settings.recover))
    teacher = state_hash(bench.networks["model"])
    plans = [bench.method.plan(round, 5) for round in (4, 5)]
    assert [(plan["first"], plan["last"]) for plan in plans] == [(0, 2), (2, 4)]
    for round in (4, 5):
        ctx = bench.server(round)
        bench.method.server_update(ctx)
        assert math.isfinite(ctx.metrics["student_0_0_loss"])
        assert any(name.startswith("optimizer/") for name in ctx.private) == (round == 4)
    assert state_hash(bench.networks["model"]) == teacher
    assert not torch.equal(bench.weights()["student_0_0.head.weight"], fresh["student_0_0.head.weight"])
    assert not any(p.requires_grad for p in bench.networks["student_0_0"].parameters())


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_optimizer_goes_on_where_it_was(lab: Callable[..., Any], name: str) -> None:
    def trained(interrupted: bool) -> Tensor:
        torch.manual_seed(0)
        model, ctx = nn.Linear(3, 2), lab().server(4)
        state: dict[str, Tensor] = {}
        optimizer = ctx.optimizer(model.parameters(), optimizer=name, lr=0.1, momentum=0.9)
        for step in range(4):
            if step == 2 and interrupted:
                pack(optimizer, state, "o/", keep=True)
                optimizer = ctx.optimizer(model.parameters(), optimizer=name, lr=0.1, momentum=0.9)
                unpack(optimizer, state, "o/")
            ctx.step(model(torch.ones(4, 3)).square().mean(), optimizer)
        pack(optimizer, state, "o/", keep=False)
        assert not state
        return model.weight.detach()

    assert torch.equal(trained(True), trained(False))


def test_only_weights_of_more_than_one_dimension_decay(lab: Callable[..., Any]) -> None:
    training = post_training(lab(post={"weight_decay": 0.03, "epochs": 1}))
    student, made = training.ctx.networks["student_0_0"], []
    make = training.ctx.optimizer
    training.ctx.optimizer = lambda *args, **kwargs: made.append(make(*args, **kwargs)) or made[-1]  # type: ignore[method-assign,func-returns-value]
    training.train("student_0_0", 0, 1)
    groups = made[0].torch.param_groups
    assert [group["weight_decay"] for group in groups] == [0.03, 0.0]
    assert {p.ndim for p in groups[0]["params"]} == {2, 4}
    assert {p.ndim for p in groups[1]["params"]} == {1}
    assert sum(len(group["params"]) for group in groups) == len(list(student.parameters()))


@pytest.mark.parametrize(("temperature", "squared"), [(1.0, False), (4.0, False), (4.0, True)])
def test_students_are_taught_at_the_temperature_of_the_settings(
    lab: Callable[..., Any], temperature: float, squared: bool
) -> None:
    """mean_i Σ_k p_ik (log p_ik − log q_ik), p and q softmax of both logits over τ, times τ² on request."""
    training = post_training(lab(post={"temperature": temperature, "squared": squared}))
    student = training.ctx.networks["student_0_0"].eval()
    x, teacher = training.images[:4], 5 * torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for own, target in zip(student(x).tolist(), teacher.tolist(), strict=True):
        e, f = ([math.exp(z / temperature) for z in logits] for logits in (target, own))
        p, q = ([v / sum(side) for v in side] for side in (e, f))
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 4
    found = training._loss(student, x, teacher, torch.zeros(2, 4), 1.0)
    assert found.item() == pytest.approx(expected * (temperature**2 if squared else 1), rel=1e-4)


def test_the_students_rate_falls_by_half_a_cosine_over_the_epochs(
    lab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """η·½(1 + cos(π·e/E)), after a line from 1 % of it in the epochs of the warm-up; Adam's β are (0.9, 0.999)."""
    spied: list[tuple[float, tuple[float, float]]] = []

    def step(ctx: Any, terms: Any, optimizer: Any) -> None:
        (group, *_) = optimizer.torch.param_groups
        spied.append((group["lr"], group["betas"]))

    monkeypatch.setattr(ServerContext, "step", step)
    for warmup, rates in ((0, [1, 0.5 + 8**-0.5, 0.5, 0.5 - 8**-0.5]), (2, [0.01, 0.505, 1, 0.5])):
        training = post_training(lab(post={"lr": 0.02, "warmup_epochs": warmup, "batch_size": 8}))
        spied.clear()
        training.train("student_0_0", 0, 4)
        assert [rate / 0.02 for rate, _ in spied] == pytest.approx(rates)
        assert {betas for _, betas in spied} == {(0.9, 0.999)}


def test_hard_labels_are_mixed_by_the_share(lab: Callable[..., Any]) -> None:
    training = post_training(lab(post={"labels": "hard"}))
    student = training.ctx.networks["student_0_0"].eval()
    x, classes = training.images[:4], torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    ce = [nn.functional.cross_entropy(student(x), y).item() for y in classes]
    found = training._loss(student, x, torch.empty(0), classes, 0.25)
    assert found.item() == pytest.approx(0.25 * ce[0] + 0.75 * ce[1], rel=1e-5)


def test_the_ensemble_weighs_each_class_by_who_has_it(lab: Callable[..., Any]) -> None:
    bench = lab(post={"labels": "ensemble"})
    first = {name: value.clone() for name, value in bench.networks["model"].state_dict().items()}
    second = {name: value * (1.5 if "weight" in name else 1) for name, value in first.items()}
    for client, (counts, weights) in enumerate(
        ((torch.tensor([4, 0, 3, 0]), first), (torch.tensor([0, 2, 1, 0]), second))
    ):
        bench.private[f"counts/{client:08d}"] = counts.int()
        bench.private.update({f"teacher/{client:08d}/{name}": value for name, value in weights.items()})
    ask = ensemble(bench.server(4))
    x, _ = images_of(bench)
    logs = []
    for weights in (first, second):
        bench.networks["model"].load_state_dict(weights)
        logs.append(bench.networks["model"](x).log_softmax(1))
    expected = torch.stack(
        [logs[0][:, 0], logs[1][:, 1], 0.75 * logs[0][:, 2] + 0.25 * logs[1][:, 2], (logs[0] + logs[1])[:, 3] / 2], 1
    )
    torch.testing.assert_close(ask(x), expected)


def test_values_are_the_teachers_and_the_means_over_students() -> None:
    sums = {}
    for role, hits in (("model", 10), ("student_0_0", 8), ("student_0_1", 6), ("student_1_0", 4), ("student_1_1", 4)):
        metric = Classification(2)
        labels = torch.arange(10) % 2
        wrong = torch.arange(10) >= hits
        metric.update(nn.functional.one_hot(labels ^ wrong.long(), 2).float(), labels)
        sums |= {f"{role}/{name}": value for name, value in metric.state().items()}
    values = student_values(sums, 2, ("small", "large"))
    assert values["teacher_accuracy"] == 1.0
    assert values["accuracy"] == pytest.approx(0.7)
    assert values["accuracy_std"] == pytest.approx(0.1414, abs=1e-4)
    assert values["large_accuracy"] == pytest.approx(0.4)
    assert values["student_minus_teacher"] == pytest.approx(-0.3)
    squeezing = student_values({n: v for n, v in sums.items() if n.startswith("model/")}, 2, ())
    assert set(squeezing) == {"teacher_accuracy", "teacher_loss"}


def test_without_images_there_is_nothing_to_train_on(lab: Callable[..., Any]) -> None:
    bench = lab()
    with pytest.raises(FedLabError, match="nobody took part"):
        bench.method.server_update(bench.server(4))
    with pytest.raises(FedLabError, match="no client sent images"):
        bench.method.server_update(bench.server(3))
