"""FedLGD's distribution matching on the clients."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedlab.distill import dsa
from fedlab.method import ClientState

BASE = {"method": "fedlgd", "data": {"source": "digits"}}
MakeBench = Callable[..., Any]


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# distribution matching


def test_every_warm_up_step_has_a_network_of_its_own(
    bench: MakeBench, monkeypatch: pytest.MonkeyPatch, watch: Any
) -> None:
    lab = bench()
    (state,) = lab.prepare(lab.data())
    seen = watch(lab, monkeypatch, random=True)
    lab.method._match(lab.client(state=state), 4, True, "warm-up")
    networks = list(dict.fromkeys(network for network, _, _ in seen))
    assert len(networks) == 4
    for a, b in itertools.pairwise(networks):
        assert not torch.equal(next(a.parameters()), next(b.parameters()))


def test_a_refresh_uses_the_received_model(bench: MakeBench, monkeypatch: pytest.MonkeyPatch, watch: Any) -> None:
    lab = bench(spacing=1)
    (state,) = lab.prepare(lab.data())
    lab.method.fit(lab.client(state=state, round=1))
    received = lab.weights()
    seen = watch(lab, monkeypatch, random=False)
    lab.method._match(lab.client(state=state, round=2), 3, False, "refresh", 2)
    assert len(seen) == 6
    assert equal(lab.weights(), received)


def test_real_batches_are_drawn_anew_without_repetition(
    bench: MakeBench, monkeypatch: pytest.MonkeyPatch, watch: Any
) -> None:
    lab = bench(dsa_ops=[], real_batch=4)
    data = lab.data()
    (state,) = lab.prepare(data)
    seen = watch(lab, monkeypatch, random=False)
    lab.method._match(lab.client(data, state=state), 3, False, "refresh", 1)
    batches = [x for _, x, gradient in seen if not gradient]
    for batch in batches:
        assert len(batch.flatten(1).unique(dim=0)) == len(batch) == 16
        labels = [int(data["label"][(data["image"] == x).flatten(1).all(1)]) for x in batch]
        assert labels == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert not torch.equal(batches[0], batches[1])


def test_small_classes_are_taken_whole(bench: MakeBench, monkeypatch: pytest.MonkeyPatch, watch: Any) -> None:
    lab = bench(dsa_ops=[], real_batch=256)
    (state,) = lab.prepare(lab.data())
    seen = watch(lab, monkeypatch, random=False)
    lab.method._match(lab.client(state=state), 1, False, "refresh", 1)
    assert [len(x) for _, x, gradient in seen if not gradient] == [24]


def test_one_draw_per_class_and_step_for_real_and_virtual(bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = bench()
    (state,) = lab.prepare(lab.data())
    used: list[dict[int, dsa.Draw]] = []
    apply = dsa.apply_per_class
    monkeypatch.setattr(
        dsa, "apply_per_class", lambda x, y, draws: used.append(dict(draws)) or apply(x, y, draws)
    )  # fmt: skip
    lab.method._match(lab.client(state=state), 3, False, "refresh", 1)
    assert [used[0], used[2], used[4]] == [used[1], used[3], used[5]]
    assert used[0] != used[2] != used[4]
    assert all(sorted(draws) == [0, 1, 2, 3] for draws in used)
    assert len({draw for draws in used for draw in draws.values()}) == 12


def test_one_step_is_plain_momentum_sgd_on_the_written_out_loss(bench: MakeBench) -> None:
    lab = bench(dsa_ops=[], real_batch=256, lr_img=0.7)
    data = lab.data()
    (state,) = lab.prepare(data)
    model, start, labels = lab.networks["model"], state["images"], state["labels"]
    x, velocity = start.clone(), torch.zeros_like(start)
    for _ in range(3):
        x = x.detach().requires_grad_()
        loss = torch.zeros(())
        for c in range(4):
            real = model.features(data["image"][data["label"] == c]).mean(0).detach()
            loss = loss + (real - model.features(x[labels == c]).mean(0)).square().sum()
        velocity = 0.5 * velocity + torch.autograd.grad(loss, x)[0]
        x = x - 0.7 * velocity
    moved = lab.method._match(lab.client(data, state=state), 3, False, "refresh", 1)
    assert (moved - start).abs().max() > 1e-4
    torch.testing.assert_close(moved - start, (x - start).detach(), rtol=1e-3, atol=1e-6)


def test_matching_changes_the_local_images_only(bench: MakeBench) -> None:
    lab = bench(spacing=1)
    data = lab.data()
    (state,) = lab.prepare(data)
    weights, shared, labels, start = lab.weights(), lab.shared["images"].clone(), state["labels"], state["images"]
    private = {name: value.clone() for name, value in data.items()}
    ctx = lab.client(data, state=state, round=2)
    for random in (True, False):
        moved = lab.method._match(ctx, 2, random, "x")
        assert not torch.equal(moved, start)
    assert equal(lab.weights(), weights)
    assert equal(data, private)
    assert torch.equal(lab.shared["images"], shared)
    assert torch.equal(state["labels"], labels)
    assert all(p.grad is None and p.requires_grad for p in lab.networks.parameters())


def test_matching_brings_feature_means_together(bench: MakeBench) -> None:
    lab = bench(dsa_ops=[], real_batch=256)
    (state,) = lab.prepare(lab.data())
    ctx = lab.client(state=state)
    lab.method._match(ctx, 60, False, "refresh", 1)
    assert ctx.metrics["dm_last"] < 0.5 * ctx.metrics["dm_first"]


def test_warm_up_happens_once_and_refreshes_when_told(bench: MakeBench) -> None:
    lab = bench(spacing=2, updates=1)
    (state,) = lab.prepare(lab.data())
    versions = [state["images"]]
    for round in range(1, 6):
        lab.method.fit(lab.client(state=state, round=round))
        versions.append(state["images"])
    changed = [not torch.equal(a, b) for a, b in itertools.pairwise(versions)]
    assert changed == [True, False, True, False, False]  # warm-up, then t = 2; frozen after spacing · updates


def test_a_client_that_missed_the_query_makes_the_same_images(bench: MakeBench) -> None:
    lab = bench()
    (asked,) = lab.prepare(lab.data())
    late = ClientState()
    for state in (asked, late):
        lab.method.fit(lab.client(state=state))
    assert torch.equal(asked["images"], late["images"])


def test_equal_data_gives_equal_images_in_any_order(bench: MakeBench) -> None:
    results = []
    for order in ((0, 1, 2), (2, 1, 0)):
        lab = bench(spacing=1, warmup_steps=3)
        lab.folder = lab.folder / str(order)  # a shared cache would hide a difference
        start = lab.weights()
        clients = [lab.data(0), lab.data(1), lab.data(0)]
        states = lab.prepare(*clients)
        for i in order:
            torch.rand(i + 1)
            lab.networks.load_state_dict(start)
            lab.networks.train(i == 1)
            lab.method.fit(lab.client(clients[i], state=states[i], client=i, round=2))
        results.append(states)
    for states in results:
        assert torch.equal(states[0]["images"], states[2]["images"])
        assert not torch.equal(states[0]["images"], states[1]["images"])
    for i in range(3):
        assert torch.equal(results[0][i]["images"], results[1][i]["images"])


def test_the_warm_up_is_cached_by_all_it_depends_on(bench: MakeBench) -> None:
    def warm(**settings: Any) -> Tensor:
        lab = bench(**settings)
        (state,) = lab.prepare(lab.data())
        return lab.method._warm_up(lab.client(state=state))

    first = warm()
    changes: list[dict[str, Any]] = [
        {"warmup_steps": 3},
        {"real_batch": 3},
        {"lr_img": 0.5},
        {"img_momentum": 0.0},
        {"dsa_ops": ["crop"]},
        {"init": "noise"},
        {"legacy_init_stats": True},
        {"model": {"name": "convnet", "width": 12, "depth": 2}},
        {"seed": 1},
    ]
    for change in changes:
        assert not torch.equal(warm(**change), first), change
    assert torch.equal(warm(lambda_reg=0.0, gm_steps=9, dm_steps=7), first)


def test_another_model_is_warmed_up_with_convnets(bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = bench(model={"name": "simple_cnn"})
    assert type(lab.method._random_extractor(lab.task, 0)).__name__ == "ConvNet"
    (state,) = lab.prepare(lab.data())
    lab.method.fit(lab.client(state=state))
    assert torch.isfinite(state["images"]).all()
