"""FedLGD hook by hook: schedule, initialisation, distribution matching, local loss, gradient matching."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fedlab.config import Config, parse
from fedlab.context import ClientState
from fedlab.distill import dsa
from fedlab.distill.contrastive import supervised_contrastive
from fedlab.distill.mmd import rbf_mmd
from fedlab.errors import ConfigErrors
from fedlab.job import make_method
from fedlab.method import Step
from fedlab.methods.fedlgd.method import FedLGD
from fedlab.methods.fedlgd.settings import FedLGDSettings

BASE = {"method": "fedlgd", "data": {"source": "digits"}}
MakeBench = Callable[..., Any]


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# schedule and settings


def test_the_schedule_of_the_paper() -> None:
    plans = [FedLGD().plan(round, 100) for round in range(1, 101)]
    chosen = {name: [t for t, plan in enumerate(plans) if plan[name]] for name in ("selected", "refresh")}
    assert chosen == {"selected": list(range(0, 51, 5)), "refresh": list(range(5, 51, 5))}
    assert len(chosen["selected"]) == 11
    assert sum(bool(plan["contrastive"]) for plan in plans) == 89
    assert not any(plan["contrastive"] and plan["selected"] for plan in plans)


def test_no_updates_select_no_round() -> None:
    method = FedLGD(FedLGDSettings(updates=0))
    assert not any(method.plan(t, 20)["selected"] or method.plan(t, 20)["refresh"] for t in range(1, 21))


def test_defaults_are_the_papers() -> None:
    assert FedLGDSettings().model_dump() == {
        "ipc_local": 50,
        "ipc_global": 10,
        "warmup_steps": 10_000,
        "dm_steps": 100,
        "gm_steps": 500,
        "lr_img": 1.0,
        "img_momentum": 0.5,
        "real_batch": 256,
        "spacing": 5,
        "updates": 10,
        "lambda_reg": 10.0,
        "reg": "contrastive",
        "temperature": 0.07,
        "gm_distance": "rowcos",
        "init": "normal",
        "legacy_init_stats": False,
        "missing_class": "drop",
        "dsa_ops": ("color", "crop", "cutout", "scale", "rotate"),
        "warmup_extractor": "random",
        "refresh_extractor": "server",
        "train_on_global": True,
        "gm_enabled": True,
        "diagnose": False,
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spacing", 0),
        ("temperature", 0),
        ("ipc_local", 0),
        ("lambda_reg", -1),
        ("updates", -1),
        ("img_momentum", 1),
        ("lr_img", 0),
        ("dsa_ops", ["flop"]),
        ("reg", "l2norm"),
        ("warmup_step", 3),
    ],
)
def test_wrong_settings_are_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigErrors, match=rf"method\.{key}"):
        make_method(parse(Config, {**BASE, "method": {"name": "fedlgd", key: value}}).method)


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"federation": {"rounds": 49}}, "exceeds 49 rounds"),
        ({"method": {"name": "fedlgd", "init": "real"}}, "leak"),
        ({"training": {"weight_decay": 0.1}}, "weight_decay"),
        ({"training": {"optimiser": "adam"}}, "optimiser"),
        ({"method": {"name": "fedlgd", "ipc_global": 0, "diagnose": True}}, "diagnose"),
        ({"model": {"name": "convnet", "norm": "batch"}}, "norm"),
    ],
)
def test_doubtful_configurations_are_warned_about(change: dict[str, Any], warning: str) -> None:
    fine = {**BASE, "federation": {"rounds": 50}}
    config = parse(Config, {**fine, **change})
    (text,) = make_method(config.method).check(config)
    assert warning in text
    plain = parse(Config, fine)
    assert make_method(plain.method).check(plain) == []


# initialisation


def test_virtual_images_start_from_the_class_statistics(bench: MakeBench) -> None:
    lab = bench(ipc_local=40, ipc_global=50)
    means = torch.tensor([-3.0, 0.0, 2.0, 8.0])
    data = lab.data()
    data["image"] = 0.5 * data["image"] + means[data["label"]][:, None, None, None]
    other = lab.data(seed=1)
    other["image"] = 1.5 * (other["image"] - 0.2) + means[other["label"]][:, None, None, None]
    state, _ = lab.prepare(data, other)
    assert torch.equal(state["labels"], torch.arange(4).repeat_interleave(40))
    assert lab.shared["images"].shape == (4 * 50, 3, 12, 12)
    local, shared = state["images"].reshape(4, -1), lab.shared["images"].reshape(4, -1)
    torch.testing.assert_close(local.mean(1), means, atol=0.1, rtol=0)
    torch.testing.assert_close(local.std(1), torch.full((4,), 0.5), atol=0.05, rtol=0)
    torch.testing.assert_close(shared.mean(1), means, atol=0.1, rtol=0)
    # standard deviations are averaged as such: (0.5 + 1.5) / 2, not √((0.25 + 2.25) / 2) = 1.12
    torch.testing.assert_close(shared.std(1), torch.full((4,), 1.0), atol=0.05, rtol=0)


def test_flat_classes_give_flat_images_and_the_released_statistics_do_not(bench: MakeBench) -> None:
    data = bench().data()
    data["image"] = torch.ones_like(data["image"])
    (state,) = bench().prepare(data)
    assert torch.equal(state["images"], torch.ones_like(state["images"]))
    (state,) = bench(legacy_init_stats=True, ipc_local=60).prepare(data)
    assert float(state["images"].mean()) == pytest.approx(1 / 4, abs=0.01)
    assert float(state["images"].std()) == pytest.approx(3**0.5 / 4, abs=0.01)


def test_only_the_statistics_are_sent_before_round_1(bench: MakeBench) -> None:
    lab = bench()
    sent = lab.method.prepare(lab.client(round=0, plan={}))
    assert {name: tuple(value.shape) for name, value in sent.items()} == {
        "mean": (4, 3),
        "std": (4, 3),
        "present": (4,),
    }


def test_absent_classes_are_dropped_or_kept_as_noise(bench: MakeBench) -> None:
    lab = bench(ipc_local=20)
    data = lab.data(classes=(0, 3))
    (state,) = lab.prepare(data)
    assert state["labels"].unique(return_counts=True)[1].tolist() == [20, 20]
    assert state["labels"].unique().tolist() == [0, 3]
    # nobody holds classes 1 and 2: their global images are noise, for constant ones would have no gradient
    unknown = lab.shared["images"].reshape(4, -1)[1:3]
    assert 0.9 < float(unknown.std()) < 1.1
    for init in ("normal", "real"):
        keeping = bench(ipc_local=20, missing_class="keep", init=init)
        (state,) = keeping.prepare(data)
        assert state["labels"].unique(return_counts=True)[1].tolist() == [20] * 4
        noise = state["images"][state["labels"] == 1]
        assert 0.9 < float(noise.std()) < 1.1
        keeping.method.fit(keeping.client(data, state=state))
        after = state["images"]
        assert torch.isfinite(after).all()
        assert torch.equal(after[state["labels"] == 1], noise)


def test_a_class_that_is_absent_somewhere_does_not_spoil_the_round(bench: MakeBench) -> None:
    lab = bench(spacing=1)
    clients = [lab.data(0, (0, 1)), lab.data(1, (1, 2, 3))]
    states = lab.prepare(*clients)
    for round in (1, 2):
        before = lab.weights()
        for i, (data, state) in enumerate(zip(clients, states, strict=True)):
            lab.method.fit(lab.client(data, state=state, round=round, client=i))
            assert torch.isfinite(state["images"]).all()
        lab.method.server_update(lab.server(round, before=before))
        assert torch.isfinite(lab.shared["images"]).all()


def test_real_initialisation_copies_images_of_the_class(bench: MakeBench) -> None:
    lab = bench(init="real", ipc_local=8)
    data = lab.data(per_class=5)
    (state,) = lab.prepare(data)
    for c in range(4):
        own = data["image"][data["label"] == c].flatten(1)
        chosen = state["images"][state["labels"] == c].flatten(1)
        assert all((own == image).all(1).any() for image in chosen)
        assert len(chosen.unique(dim=0)) == 5  # all five, three of them twice


def test_noise_initialisation_ignores_the_statistics(bench: MakeBench) -> None:
    lab = bench(init="noise", ipc_local=40, ipc_global=40)
    (state,) = lab.prepare(lab.data(seed=30))
    for images in (state["images"], lab.shared["images"]):
        assert abs(float(images.mean())) < 0.05
        assert float(images.std()) == pytest.approx(1, abs=0.05)


def test_without_global_images_none_are_made(bench: MakeBench) -> None:
    lab = bench(ipc_global=0)
    (state,) = lab.prepare(lab.data())
    assert lab.shared == {}
    lab.method.fit(lab.client(state=state, round=2))


# distribution matching


class Spy(nn.Module):
    """Counts what passes a network's feature extractor."""

    def __init__(self, network: Any, seen: list[tuple[nn.Module, Tensor, bool]]) -> None:
        super().__init__()
        self.network, self.seen = network, seen

    def features(self, x: Tensor) -> Tensor:
        self.seen.append((self.network, x.detach().clone(), torch.is_grad_enabled()))
        features: Tensor = self.network.features(x)
        return features


def watch(lab: Any, monkeypatch: pytest.MonkeyPatch, random: bool) -> list[tuple[nn.Module, Tensor, bool]]:
    seen: list[tuple[nn.Module, Tensor, bool]] = []
    if random:
        make = type(lab.method)._random_extractor
        monkeypatch.setattr(type(lab.method), "_random_extractor", lambda self, *a, **k: Spy(make(*a, **k), seen))
    else:
        network = lab.networks["model"]
        features = network.features

        def spied(x: Tensor) -> Tensor:
            seen.append((network, x.detach().clone(), torch.is_grad_enabled()))
            result: Tensor = features(x)
            return result

        monkeypatch.setattr(network, "features", spied)
    return seen


def test_every_warm_up_step_has_a_network_of_its_own(bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = bench()
    (state,) = lab.prepare(lab.data())
    seen = watch(lab, monkeypatch, random=True)
    lab.method._match(lab.client(state=state), 4, True, "warm-up")
    networks = list(dict.fromkeys(network for network, _, _ in seen))
    assert len(networks) == 4
    for a, b in itertools.pairwise(networks):
        assert not torch.equal(next(a.parameters()), next(b.parameters()))


def test_a_refresh_uses_the_received_model(bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = bench(spacing=1)
    (state,) = lab.prepare(lab.data())
    lab.method.fit(lab.client(state=state, round=1))
    received = lab.weights()
    seen = watch(lab, monkeypatch, random=False)
    lab.method._match(lab.client(state=state, round=2), 3, False, "refresh", 2)
    assert len(seen) == 6
    assert equal(lab.weights(), received)


def test_real_batches_are_drawn_anew_without_repetition(bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_small_classes_are_taken_whole(bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
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


# local training


def step_of(lab: Any, **plan: bool) -> Step:
    return Step(
        round=2, epoch=0, index=0, per_round=1, global_step=1, total_steps=2,
        plan={"selected": False, "refresh": False, "contrastive": True, "diagnose": False, **plan},
        shared=lab.shared, scratch={}, log=lambda name, value: None,
    )  # fmt: skip


@pytest.mark.parametrize("reg", ["contrastive", "mmd"])
def test_the_loss_regularises_against_all_global_images(bench: MakeBench, reg: str) -> None:
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
def test_cross_entropy_alone_where_there_is_nothing_to_regularise(
    bench: MakeBench, settings: dict[str, Any], plan: dict[str, bool], monkeypatch: pytest.MonkeyPatch
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
    """Batch normalisation counts and dropout draws in training mode; distillation must not depend on either."""
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
