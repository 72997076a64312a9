"""CDA's curriculum, recovery, relabelling and post-training, one piece at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fedlab.methods.cda.recover as recovery
from fedlab.config import Config, parse
from fedlab.context import ClientState
from fedlab.distill.bn_matching import BatchNormMatching, batch_norms
from fedlab.distill.freezing import frozen, state_hash
from fedlab.distill.mixing import Mix, mix
from fedlab.distill.views import take_views
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.experiment import configure
from fedlab.job import make_method
from fedlab.methods.cda.curriculum import cosine, crop_bound
from fedlab.methods.cda.post import PostTraining, ensemble, matrices_decay, pack, unpack
from fedlab.methods.cda.quality import student_values
from fedlab.methods.cda.recover import chunks, draw_view, recover, recovered
from fedlab.methods.cda.relabel import Configuration, StoredLabels, draw_epoch, storage_bytes, store
from fedlab.methods.cda.settings import Post, Recover
from fedlab.metrics import Classification

BATCH_NORM = {"name": "convnet", "width": 8, "depth": 2, "norm": "batch"}
SMALL = {"ipc": 2, "iterations": 6, "chunk": 4, "local_epochs": 1}


@pytest.fixture
def lab(bench: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """``lab(recover=…, post=…)``: a `Bench` of this method whose teacher has seen some data; 2 squeeze rounds of 5."""
    kind = type(bench())

    def make(recover: Mapping[str, Any] | None = None, post: Mapping[str, Any] | None = None, **more: Any) -> Any:
        sections = {key: more.pop(key) for key in ("training", "federation", "model") if key in more}
        settings = {
            "squeeze": {"rounds": 2},
            "recover": {**SMALL, **(recover or {})},
            "post": {"epochs": 4, "batch_size": 4, **(post or {})},
            **more,
        }
        base = {"model": BATCH_NORM, "federation": {"rounds": 5}, "training": {"lr": 0.1, "batch_size": 8}}
        made = kind(tmp_path, {"name": "cda", **settings}, **{**base, **sections})
        model = made.networks["model"].train()
        optimiser = torch.optim.SGD(model.parameters(), 0.05)
        for seed in range(30):
            batch = made.data(seed % 3)
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(batch["image"]), batch["label"]).backward()
            optimiser.step()
        optimiser.zero_grad()
        model.eval()
        return made

    return make


def images_of(lab: Any, count: int = 8) -> tuple[Tensor, Tensor]:
    data = lab.data()
    return data["image"][:count], data["label"][:count]


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
    assert [cosine(t, 10, warmup=4) for t in (0, 2, 4)] == pytest.approx([0.01, 0.505, 1.0])
    assert cosine(7, 10, warmup=4) == pytest.approx(0.5)


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


# §3.3: relabelling


def test_a_stored_configuration_replays_the_same_view_and_logits(lab: Callable[..., Any]) -> None:
    bench = lab()
    images, _ = images_of(bench)
    teacher = bench.networks["model"]
    for mixing in ("cutmix", "mixup", "none"):
        s = Post(epochs=3, batch_size=3, mixing=mixing)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(42)
        drawn = [list(draw_epoch(8, (12, 12), s, generator)) for _ in range(3)]
        tensors = store(images, teacher, iter(drawn))
        stored = StoredLabels(images, tensors)
        assert len(stored) == 9
        for item, configuration in enumerate([c for epoch in drawn for c in epoch]):
            x, logits = stored[item]
            assert torch.equal(x, configuration.view(images))
            assert (teacher(x) - teacher(configuration.view(images))).abs().max() < 1e-5
            assert (logits - teacher(x)).abs().max() < 1e-2
    assert tensors["logits"].dtype == torch.float16
    assert tensors["logits"].numel() * 2 == storage_bytes(3, 8, 4)


def test_every_image_is_drawn_once_an_epoch_in_batches_of_nearly_equal_size() -> None:
    s = Post(batch_size=4)
    drawn = list(draw_epoch(9, (8, 8), s, torch.Generator().manual_seed(0)))
    assert [len(c.indices) for c in drawn] == [3, 3, 3]
    assert sorted(torch.cat([c.indices for c in drawn]).tolist()) == list(range(9))


def test_soft_labels_of_imagenet_take_30_gigabytes() -> None:
    assert storage_bytes(300, 50_000, 1000) == 30 * 10**9


@pytest.mark.parametrize("relabel", ["online", "stored"])
def test_a_mixed_images_label_is_the_teachers_word_on_it(lab: Callable[..., Any], relabel: str) -> None:
    bench = lab(post={"relabel": relabel, "batch_size": 8})
    training = post_training(bench)
    for x, logits, *_ in training._batches(0, "student_0_0"):
        assert (logits - bench.networks["model"](x)).abs().max() < 1e-2
        assert not (x[None] == training.images[:, None]).flatten(2).all(2).any()  # views, not the images themselves


def post_training(bench: Any) -> PostTraining:
    ctx = bench.server(4)
    ctx.state.update(recovered(bench.server(3), bench.networks["model"], range(4), bench.method.settings.recover))
    return PostTraining(ctx, bench.method.settings.post)


# §3.4: post-training


@pytest.mark.parametrize(
    "post", [{}, {"relabel": "stored"}, {"optimiser": "sgd", "lr": 0.05}, {"labels": "hard"}, {"accumulation": 2}]
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
        assert any(name.startswith("optimiser/") for name in ctx.state) == (round == 4)
    assert state_hash(bench.networks["model"]) == teacher
    assert not torch.equal(bench.weights()["student_0_0.head.weight"], fresh["student_0_0.head.weight"])
    assert not any(p.requires_grad for p in bench.networks["student_0_0"].parameters())


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_optimiser_goes_on_where_it_was(lab: Callable[..., Any], name: str) -> None:
    def trained(interrupted: bool) -> Tensor:
        torch.manual_seed(0)
        model, ctx = nn.Linear(3, 2), lab().server(4)
        state: dict[str, Tensor] = {}
        optimiser = ctx.optimiser(model.parameters(), optimiser=name, lr=0.1, momentum=0.9)
        for step in range(4):
            if step == 2 and interrupted:
                pack(optimiser, state, "o/", keep=True)
                optimiser = ctx.optimiser(model.parameters(), optimiser=name, lr=0.1, momentum=0.9)
                unpack(optimiser, state, "o/")
            ctx.step(model(torch.ones(4, 3)).square().mean(), optimiser)
        pack(optimiser, state, "o/", keep=False)
        assert not state
        return model.weight.detach()

    assert torch.equal(trained(True), trained(False))


def test_only_weights_of_more_than_one_dimension_decay(lab: Callable[..., Any]) -> None:
    student = lab().networks["student_0_0"]
    groups = matrices_decay(student, 0.01)
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    assert {p.ndim for p in groups[0]["params"]} == {2, 4}
    assert {p.ndim for p in groups[1]["params"]} == {1}
    assert sum(len(group["params"]) for group in groups) == len(list(student.parameters()))


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


# stages, settings, refusals


def test_the_squeeze_has_its_own_schedule_and_augmentation(lab: Callable[..., Any]) -> None:
    bench = lab(squeeze={"rounds": 2, "crop": 0.5, "shift": 1})
    ctx = bench.client(round=2)
    rates = [bench.method.schedule(step, {"lr": 0.4})["lr"] for _, step in ctx.batches()]
    assert rates == pytest.approx([0.2, 0.4 * cosine(4, 6), 0.4 * cosine(5, 6)])
    batch, _ = next(iter(ctx.batches()))
    assert not (batch["image"][:, None] == ctx.data["image"][None]).flatten(2).all(2).any()


def test_a_mixture_is_what_the_server_makes_of_the_variances(lab: Callable[..., Any]) -> None:
    bench = lab()
    ctx = bench.client(round=1)
    bench.method.fit(ctx)
    first: Any = batch_norms(bench.networks["model"])[0]
    sent = first.running_var.clone()
    bench.method.server_update(bench.server(1))
    torch.testing.assert_close(first.running_var, sent - first.running_mean.square())


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


@pytest.mark.parametrize(
    "model", [{"name": "convnet", "width": 8, "depth": 2}, {"name": "convnet", "norm": "group"}, {"name": "logistic"}]
)
def test_a_teacher_without_batch_norm_is_refused(lab: Callable[..., Any], model: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"(?s)model\.name.*BatchNorm"):
        lab(model=model)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"federation.rounds": 11}, "federation.rounds"),
        ({"method.squeeze.rounds": 0}, "method.squeeze.rounds"),
        ({"exchange.local": ["norm"]}, "exchange.local"),
        ({"data.mean": {"all": [0.5]}}, "data.mean"),
        ({"method.recover.form": "server", "method.post.labels": "ensemble"}, "method.post.labels"),
        ({"method.recover.form": "server", "method.recover.images": "real"}, "method.recover.images"),
        ({"federation.mode": "asynchronous"}, "federation.mode"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], key: str) -> None:
    config = configure("cda").with_overrides(changes)
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        make_method(config.method).check(config)


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ({"recover": {"milestone": 1.5}}, "recover.milestone"),
        ({"recover": {"curriculum": "spiral"}}, "recover.curriculum"),
        ({"recover": {"ipc": 0}}, "recover.ipc"),
        ({"post": {"temperature": 0}}, "post.temperature"),
        ({"post": {"labels": "hard", "relabel": "stored"}}, "post"),
        ({"post": {"epochs": 2, "warmup_epochs": 3}}, "post"),
        ({"squeeze": {"rounds": 1, "warmup_rounds": 2}}, "squeeze"),
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigErrors, match=f"method.{key}"):
        make_method(parse(Config, {"data": {"source": "digits"}, "method": {"name": "cda", **setting}}).method)


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({}, None),
        ({"method.recover.images": "real"}, "private images"),
        ({"method.recover.milestone": 0}, "SRe²L"),
        ({"method.recover.r_bn": 0}, "cross-entropy alone"),
        ({"method.post.labels": "hard"}, "loses"),
        ({"method.post.temperature": 1}, "hardly softens"),
        ({"training.schedule": "cosine"}, "squeeze.schedule"),
        ({"method.squeeze.variance": "average"}, "understates"),
        ({"federation.sampler": {"name": "uniform", "fraction": 0.5}}, "send images"),
    ],
)
def test_traps_are_pointed_out(changes: dict[str, Any], warning: str | None) -> None:
    config = configure("cda").with_overrides(changes)
    found = make_method(config.method).check(config)
    assert [warning in text for text in found] == [True] if warning else found == []  # type: ignore[operator]


def test_the_default_curriculum_is_cdas_and_not_sre2ls() -> None:
    s = Recover()
    assert (s.curriculum, s.milestone, s.smallest, s.first_bn) == ("cosine", 1.0, 0.08, 10.0)


def test_a_configuration_is_nothing_but_its_parts(lab: Callable[..., Any]) -> None:
    images, _ = images_of(lab())
    (drawn,) = draw_epoch(8, (12, 12), Post(batch_size=8), torch.Generator().manual_seed(3))
    expected = mix(take_views(images[drawn.indices], drawn.views), drawn.mix)
    assert torch.equal(drawn.view(images), expected)
    alone = Configuration(drawn.indices, drawn.views, Mix(torch.arange(8), 1.0))
    assert torch.equal(alone.view(images), take_views(images[drawn.indices], drawn.views))
