"""FedLGD's local training and the server's gradient matching."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from fedlab.distill.contrastive import supervised_contrastive
from fedlab.distill.mmd import rbf_mmd
from fedlab.method import Step

BASE = {"method": "fedlgd", "data": {"source": "digits"}}
MakeBench = Callable[..., Any]


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# local training


def step_of(lab: Any, **plan: bool) -> Step:
    return Step(
        round=2, epoch=0, index=0, per_round=1, global_step=1, total_steps=2,
        plan={"selected": False, "refresh": False, "contrastive": True, "diagnose": False, **plan},
        shared=lab.shared, scratch={}, log=lambda name, value: None,
    )  # fmt: skip


@pytest.mark.parametrize("reg", ["contrastive", "mmd"])
def test_the_loss_regularizes_against_all_global_images(bench: MakeBench, reg: str) -> None:
    lab = bench(lambda_reg=3.0, reg=reg, temperature=0.3)
    lab.prepare(lab.data())
    batch, model, anchors = lab.data(5), lab.networks["model"], lab.shared["images"]
    terms = lab.method.loss(lab.networks, batch, step_of(lab))
    torch.testing.assert_close(terms["ce"], F.cross_entropy(model(batch["image"]), batch["label"]))
    z, z_g, y_g = model.features(batch["image"]), model.features(anchors), torch.arange(4).repeat_interleave(2)
    if reg == "mmd":
        expected = rbf_mmd(z, z_g)
    else:
        expected = supervised_contrastive(torch.cat([z, z_g]), torch.cat([batch["label"], y_g]), 0.3)
    torch.testing.assert_close(terms[reg], 3 * expected)
    # anchors are forwarded with gradient: holding them fixed gives another gradient of the weights
    fixed = torch.cat([z, z_g.detach()])
    labels = torch.cat([batch["label"], y_g])
    held = rbf_mmd(z, fixed[len(z) :]) if reg == "mmd" else supervised_contrastive(fixed, labels, 0.3)
    weight = model.body[0].weight
    ours, theirs = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in (terms[reg], 3 * held))
    assert not torch.allclose(ours, theirs, rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "plan"), [({}, {"contrastive": False}), ({"lambda_reg": 0.0}, {}), ({"reg": "none"}, {})]
)
def test_cross_entropy_alone_where_there_is_nothing_to_regularize(
    bench: MakeBench, settings: dict[str, Any], plan: dict[str, bool], monkeypatch: pytest.MonkeyPatch, watch: Any
) -> None:
    lab = bench(**settings)
    lab.prepare(lab.data())
    seen = watch(lab, monkeypatch, random=False)
    assert list(lab.method.loss(lab.networks, lab.data(), step_of(lab, **plan))) == ["ce"]
    assert len(seen) == 1  # and the anchors cost no forward pass


@pytest.mark.parametrize("union", [True, False])
def test_the_local_set_is_the_union_with_the_global_images(
    bench: MakeBench, union: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = bench(train_on_global=union)
    (state,) = lab.prepare(lab.data())
    ctx = lab.client(state=state)
    sets: list[dict[str, Tensor]] = []
    monkeypatch.setattr(ctx, "train", sets.append)
    lab.method.fit(ctx)
    (columns,) = sets
    images, labels = state["images"], state["labels"]
    if union:
        images = torch.cat([images, lab.shared["images"]])
        labels = torch.cat([labels, torch.arange(4).repeat_interleave(2)])
    assert torch.equal(columns["image"], images)
    assert torch.equal(columns["label"], labels)


def test_local_training_changes_no_image(bench: MakeBench) -> None:
    lab = bench(lambda_reg=1.0)
    data = lab.data()
    (state,) = lab.prepare(data)
    lab.method.fit(lab.client(data, state=state, round=1))
    images, shared, weights = state["images"], lab.shared["images"].clone(), lab.weights()
    lab.method.fit(lab.client(data, state=state, round=2))
    assert torch.equal(state["images"], images)
    assert torch.equal(lab.shared["images"], shared)
    assert not equal(lab.weights(), weights)


def test_the_last_partial_batch_is_trained_on(bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = bench(training={"batch_size": 8, "lr": 0.01})
    (state,) = lab.prepare(lab.data())
    sizes: list[int] = []
    loss = lab.method.loss
    monkeypatch.setattr(
        lab.method, "loss", lambda n, batch, step: sizes.append(len(batch["label"])) or loss(n, batch, step)
    )  # fmt: skip
    lab.method.fit(lab.client(state=state))
    assert sizes == [8, 8, 4]  # 4 · (3 + 2) images


# gradient matching


def test_one_full_batch_makes_the_pseudo_gradient_the_gradient_itself(bench: MakeBench) -> None:
    lab = bench(training={"lr": 0.05, "batch_size": 512}, lambda_reg=10.0)
    data = lab.data()
    states = lab.prepare(data, data)
    start = lab.weights()
    updates = []
    for i, state in enumerate(states):
        lab.networks.load_state_dict(start)
        lab.method.fit(lab.client(data, state=state, client=i))
        updates.append(lab.weights())
    after = {name: (updates[0][name].double() + updates[1][name].double()) / 2 for name in start}
    lab.networks.load_state_dict(start)
    images = torch.cat([states[0]["images"], lab.shared["images"]])
    labels = torch.cat([states[0]["labels"], torch.arange(4).repeat_interleave(2)])
    model = lab.networks["model"].double()
    model.zero_grad()
    F.cross_entropy(model(images.double()), labels).backward()
    for name, p in model.named_parameters():
        found = (start[f"model.{name}"].double() - after[f"model.{name}"]) / 0.05
        assert p.grad is not None
        assert (found - p.grad).abs().max() < 1e-5 * max(1.0, float(p.grad.abs().max()))


def trained_round(lab: Any, round: int = 1) -> dict[str, Tensor]:
    """Local training of one client; returns the weights before it."""
    (state,) = lab.prepare(lab.data())
    before: dict[str, Tensor] = lab.weights()
    lab.method.fit(lab.client(state=state, round=round))
    return before


@pytest.mark.parametrize("kind", ["rowcos", "cos", "mse"])
def test_gradient_matching_is_sgd_on_the_distance_at_the_old_weights(bench: MakeBench, kind: str) -> None:
    lab = bench(gm_steps=3, lr_img=0.8, gm_distance=kind, training={"lr": 0.05})
    before = trained_round(lab)
    after, start = lab.weights(), lab.shared["images"].clone()
    ctx = lab.server(1, before=before)
    lab.method.server_update(ctx)

    model, labels = lab.networks["model"], torch.arange(4).repeat_interleave(2)
    names = [name for name, _ in model.named_parameters()]
    target = [(before[f"model.{n}"] - after[f"model.{n}"]) / 0.05 for n in names]
    x, velocity, first = start.clone(), torch.zeros_like(start), None
    for _ in range(3):
        x = x.detach().requires_grad_()
        θ = {n: before[f"model.{n}"].clone().requires_grad_() for n in names}
        ce = F.cross_entropy(functional_call(model, θ, (x,)), labels, reduction="mean")
        g = torch.autograd.grad(ce, list(θ.values()), create_graph=True)
        if kind == "rowcos":
            loss = torch.zeros(())
            for a, b in zip(g, target, strict=True):
                if a.ndim > 1:
                    for row in range(len(a)):
                        u, v = a[row].flatten(), b[row].flatten()
                        loss = loss + 1 - (u @ v) / (u.norm() * v.norm() + 1e-6)
        else:
            u, v = (torch.cat([t.flatten() for t in side]) for side in (g, target))
            loss = (u - v).square().sum() if kind == "mse" else 1 - (u @ v) / (u.norm() * v.norm() + 1e-6)
        first = float(loss.detach()) if first is None else first
        velocity = 0.5 * velocity + torch.autograd.grad(loss, x)[0]
        x = x - 0.8 * velocity
    assert ctx.metrics["gm_first"] == pytest.approx(first, rel=1e-4)
    moved = lab.shared["images"] - start
    assert moved.abs().max() > 1e-4
    torch.testing.assert_close(moved, (x - start).detach(), rtol=2e-2, atol=1e-3 * float(moved.abs().max()))


def test_gradient_matching_changes_the_global_images_only(bench: MakeBench) -> None:
    lab = bench()
    before = trained_round(lab)
    after, kept = lab.weights(), {name: value.clone() for name, value in before.items()}
    held_by_clients = lab.shared["images"]
    copy = held_by_clients.clone()
    lab.method.server_update(lab.server(1, before=before))
    assert torch.equal(held_by_clients, copy)
    assert not torch.equal(lab.shared["images"], copy)
    assert not lab.shared["images"].requires_grad
    assert equal(lab.weights(), after)
    assert equal(before, kept)


def test_gradient_matching_approaches_the_update(bench: MakeBench) -> None:
    lab = bench(gm_steps=40)
    before = trained_round(lab)
    ctx = lab.server(1, before=before)
    lab.method.server_update(ctx)
    assert ctx.metrics["gm_last"] < 0.6 * ctx.metrics["gm_first"]


@pytest.mark.parametrize(("settings", "round"), [({}, 2), ({"gm_enabled": False}, 1), ({"updates": 0}, 1)])
def test_no_matching_outside_selected_rounds_or_when_switched_off(
    bench: MakeBench, settings: dict[str, Any], round: int
) -> None:
    lab = bench(**settings)
    before = trained_round(lab, round)
    images = lab.shared["images"]
    lab.method.server_update(lab.server(round, before=before))
    assert lab.shared["images"] is images


def test_an_update_of_zero_leaves_finite_images(bench: MakeBench) -> None:
    lab = bench()
    lab.prepare(lab.data())
    ctx = lab.server(1, before=lab.weights())
    lab.method.server_update(ctx)
    assert ctx.metrics["gm_first"] == 8 + 8 + 4  # every row counts 1
    assert torch.isfinite(lab.shared["images"]).all()


@pytest.mark.parametrize(
    "model", [{"name": "convnet", "width": 8, "depth": 2, "norm": "batch"}, {"name": "simple_cnn"}]
)
def test_distilling_leaves_buffers_and_global_draws_alone(bench: MakeBench, model: dict[str, Any]) -> None:
    """Batch normalization counts and dropout draws in training mode; distillation must not depend on either."""
    lab = bench(model=model, spacing=1)
    before = trained_round(lab)
    (state,) = lab.prepare(lab.data())
    results = []
    for mode in (True, False):
        lab.networks.train(mode)
        weights, random = lab.weights(), torch.get_rng_state()
        local = lab.method._match(lab.client(state=state, round=2), 2, False, "refresh", 2)
        shared = lab.shared["images"]
        lab.networks.train(mode)
        lab.method.server_update(lab.server(1, before=before))
        results.append((local, lab.shared["images"]))
        lab.shared["images"] = shared
        assert equal(lab.weights(), weights)
        assert torch.equal(torch.get_rng_state(), random)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
