"""The curriculum, recovery from a teacher, and what a client sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fedlab.methods.cda.recover as recovery
from fedlab.distill.bn_matching import BatchNormMatching, batch_norms
from fedlab.distill.freezing import frozen
from fedlab.distill.schedules import cosine
from fedlab.method import ClientState, ServerContext
from fedlab.methods.cda.curriculum import crop_bound, warm_cosine
from fedlab.methods.cda.recover import chunks, draw_view, recover, recovered
from fedlab.methods.cda.settings import Recover
from fedlab.storage.hashing import state_hash

# §8.1, 8.6: the curriculum and the step size


@pytest.mark.parametrize(
    ("t", "mode", "milestone", "expected"),
    [
        (0, "cosine", 1.0, 1.0),
        (500, "cosine", 1.0, 0.54),
        (999, "cosine", 1.0, 0.08),
        (250, "cosine", 0.5, 0.54),
        (500, "cosine", 0.5, 0.08),
        (250, "linear", 1.0, 0.77),
        (499, "step", 0.5, 1.0),
        (500, "step", 0.5, 0.08),
        (999, "step", 1.0, 1.0),
        (0, "constant", 1.0, 0.08),
        (700, "constant", 1.0, 0.08),
        (0, "reverse", 1.0, 0.08),
        (500, "reverse", 1.0, 0.54),
        (999, "reverse", 1.0, 1.0),
        *((t, mode, 0.0, 0.08) for t in (0, 500) for mode in ("cosine", "linear", "step", "constant", "reverse")),
    ],
)
def test_the_crop_bound_follows_the_curriculum(t: int, mode: Any, milestone: float, expected: float) -> None:
    assert crop_bound(t, 1000, mode, milestone) == pytest.approx(expected, abs=1e-5)


def test_the_step_size_is_halved_in_the_middle_and_ends_at_nothing() -> None:
    assert cosine(0, 4000) == 1
    assert cosine(2000, 4000) == pytest.approx(0.5)
    assert cosine(3999, 4000) < 1e-6
    assert [warm_cosine(t, 10, warmup=4) for t in (0, 2, 4)] == pytest.approx([0.01, 0.505, 1.0])
    assert warm_cosine(7, 10, warmup=4) == pytest.approx(0.5)


# §3.2: recovery


def test_the_teacher_is_bit_identical_afterwards(lab: Callable[..., Any]) -> None:
    bench = lab()
    teacher = bench.networks["model"]
    before, grads = state_hash(teacher), [p.requires_grad for p in teacher.parameters()]
    recovered(bench.server(3), teacher, range(4), bench.method.settings.recover)
    assert state_hash(teacher) == before
    assert [p.requires_grad for p in teacher.parameters()] == grads
    assert all(p.grad is None for p in teacher.parameters())
    assert not teacher.training


def test_every_step_stays_in_the_valid_range_and_sees_one_view_for_all(
    lab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = lab({"iterations": 12, "lr": 1.0})
    seen: list[Tensor] = []

    def spied(x: Tensor, *arguments: Any) -> Tensor:
        seen.append(x.detach().clone())
        v = draw_view(x, *arguments)
        same = draw_view(torch.ones_like(x) * torch.arange(12.0), *arguments)
        assert (same == same[:1]).all()
        return v

    monkeypatch.setattr(recovery, "draw_view", spied)
    labels = torch.arange(4)
    ctx = bench.server(3)
    x, stages = recover(ctx, bench.networks["model"], labels, bench.method.settings.recover, ctx.generator("x"))
    assert len(seen) == 12
    assert seen[0].abs().max() > 1  # noise is clamped after the first step, as in the code
    for step in [*seen[1:], x]:
        assert step.min() >= -1
        assert step.max() <= 1
    assert (x.abs() == 1).any()
    assert stages.shape == (5, *x.shape)
    assert torch.equal(stages[-1], x)
    assert torch.equal(stages[0], seen[0].clamp(-1, 1))


def test_recovery_convinces_the_teacher_and_matches_its_statistics(lab: Callable[..., Any]) -> None:
    labels = torch.arange(4)
    found = {}
    for r_bn in (0.0, 0.1):
        bench = lab({"iterations": 60, "r_bn": r_bn, "curriculum": "step"})
        ctx, teacher = bench.server(3), bench.networks["model"]
        with frozen(teacher):
            x, stages = recover(ctx, teacher, labels, bench.method.settings.recover, ctx.generator("x"))
        with BatchNormMatching(teacher) as matching, torch.no_grad():
            logits = teacher(x)
            after = matching.loss().item()
            teacher(stages[0])
            found[r_bn] = after / matching.loss().item()
        assert (logits.argmax(1) == labels).all()
        assert ctx.metrics["recover_ce"] > 0
    assert found[0.1] < 0.5 < found[0.0]


def test_recovery_is_adam_of_the_releases_moments_whose_rate_falls_by_half_a_cosine(
    lab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """η·½(1 + cos(π·t/T)), β = (0.5, 0.9)."""
    bench, spied = lab({"iterations": 6, "lr": 0.25}), []

    def step(ctx: Any, terms: Any, optimizer: Any) -> None:
        (group,) = optimizer.torch.param_groups
        spied.append((type(optimizer.torch), group["lr"], group["betas"]))

    monkeypatch.setattr(ServerContext, "step", step)
    ctx = bench.server(3)
    recover(ctx, bench.networks["model"], torch.arange(4), bench.method.settings.recover, ctx.generator("x"))
    falls = [1, 0.5 + 0.75**0.5 / 2, 0.75, 0.5, 0.25, 0.5 - 0.75**0.5 / 2]
    assert [rate / 0.25 for _, rate, _ in spied] == pytest.approx(falls)
    assert {(kind, betas) for kind, _, betas in spied} == {(torch.optim.Adam, (0.5, 0.9))}


def test_views_roll_flip_and_crop_only_as_asked() -> None:
    x, generator = torch.randn(1, 1, 8, 8), torch.Generator().manual_seed(0)
    whole = Recover(curriculum="step", jitter=0, flip=False)
    assert torch.equal(draw_view(x, 0, whole, (8, 8), generator), x)
    flips = [draw_view(x, 0, Recover(curriculum="step"), (8, 8), generator) for _ in range(40)]
    assert {torch.equal(v, x) for v in flips} == {True, False}
    assert all(torch.equal(v, x) or torch.equal(v, x.flip(3)) for v in flips)
    rolled = [draw_view(x, 0, whole.model_copy(update={"jitter": 2}), (8, 8), generator) for _ in range(60)]
    every = [x.roll((a, b), (2, 3)) for a in range(3) for b in range(3)]
    assert all(any(torch.equal(v, r) for r in every) for v in rolled)
    assert all(any(torch.equal(v, r) for v in rolled) for r in every)


@pytest.mark.parametrize(
    ("classes", "ipc", "size", "count", "largest"),
    [(10, 10, 10, 10, 10), (10, 10, 100, 1, 100), (200, 3, 100, 6, 100), (250, 1, 100, 3, 84), (3, 10, 10, 4, 9)],
)
def test_a_chunk_holds_as_many_classes_as_there_are(
    classes: int, ipc: int, size: int, count: int, largest: int
) -> None:
    found = chunks(range(classes), ipc, size)
    assert len(found) == count
    assert max(map(len, found)) == largest
    assert (torch.bincount(torch.cat(found)) == ipc).all()
    for labels in found:
        # one image of each class, unless the classes do not fill the chunk
        assert len(labels.unique()) == min(classes, len(labels))


def test_images_are_bytes_by_class_and_depend_on_seed_teacher_and_settings(lab: Callable[..., Any]) -> None:
    bench = lab()
    s: Recover = bench.method.settings.recover
    first = recovered(bench.server(3), bench.networks["model"], range(4), s)
    assert first["images"].dtype == torch.uint8
    assert first["labels"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert first["labels"].dtype == torch.int16
    again = recovered(bench.server(3), bench.networks["model"], range(4), s)
    assert torch.equal(first["images"], again["images"])
    other = recovered(bench.server(3), bench.networks["model"], range(4), s.model_copy(update={"r_bn": 1.0}))
    assert not torch.equal(first["images"], other["images"])
    with torch.no_grad():
        bench.networks["model"].head.bias[0] += 1
    assert not torch.equal(first["images"], recovered(bench.server(3), bench.networks["model"], range(4), s)["images"])


def test_clients_with_the_same_samples_recover_different_images(lab: Callable[..., Any]) -> None:
    """The cache must not hand one client's draws to the other, whichever worker comes first."""
    bench = lab({"local_epochs": 0})
    sent = []
    for client in (0, 1):
        ctx = bench.client(round=3, client=client)
        bench.method.fit(ctx)
        sent.append(bench.method.client_result(ctx)["images"])
    assert not torch.equal(*sent)


def test_no_iterations_leave_noise(lab: Callable[..., Any]) -> None:
    bench = lab({"iterations": 0})
    found = recovered(bench.server(3), bench.networks["model"], range(4), bench.method.settings.recover)
    pixels = found["images"].float()
    assert pixels.mean().item() == pytest.approx(127.5, abs=4)
    assert 0.25 < ((pixels == 0) | (pixels == 255)).float().mean() < 0.4  # beyond one σ on either side


# §6: the client form


def test_a_client_recovers_the_classes_it_holds_from_a_teacher_of_its_own(lab: Callable[..., Any]) -> None:
    bench = lab()
    before, state = state_hash(bench.networks["model"]), ClientState()
    ctx = bench.client(bench.data(1, classes=(1, 3)), state=state, round=3)
    bench.method.fit(ctx)
    sent = bench.method.client_result(ctx)
    assert {name: (value.dtype, tuple(value.shape)) for name, value in sent.items()} == {
        "images": (torch.uint8, (4, 3, 12, 12)),
        "labels": (torch.int16, (4,)),
    }
    assert sent["labels"].tolist() == [1, 1, 3, 3]
    assert state_hash(bench.networks["model"]) == before
    assert set(state) == {"stages", "stage_labels"}
    assert ctx.metrics["local_ce"] > 0


def test_the_local_teacher_has_its_clients_statistics(lab: Callable[..., Any]) -> None:
    bench = lab({"local_epochs": 0})
    ctx = bench.client({**bench.data(), "image": bench.data()["image"] + 3.0}, round=3)
    ours, theirs = bench.method._local_teacher(ctx), bench.networks["model"]
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    first: Any = batch_norms(ours)[0]
    x = ours.body[0](ctx.data["image"]).detach()
    torch.testing.assert_close(first.running_mean, x.mean((0, 2, 3)), rtol=0.05, atol=0.05)
    kept = lab({"local_epochs": 0, "local_statistics": False})
    ctx = kept.client(round=3)
    assert state_hash(kept.method._local_teacher(ctx)) == state_hash(kept.networks["model"])


def test_real_images_are_random_ones_of_the_client(lab: Callable[..., Any]) -> None:
    bench = lab({"images": "real", "ipc": 3})
    data = {**bench.data(per_class=2), "image": torch.rand(8, 3, 12, 12) * 2 - 1}
    data["image"] = (data["image"] * 127.5).round() / 127.5
    ctx = bench.client(data, round=3)
    bench.method.fit(ctx)
    sent = bench.method.client_result(ctx)
    assert sent["labels"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    rows = {image.numpy().tobytes() for image in sent["images"]}
    assert len(rows) == 8
