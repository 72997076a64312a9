"""FedLGD before the first round: schedule, settings, initialization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedlab.assembly import make_method
from fedlab.config import Config, parse
from fedlab.errors import ConfigError, ConfigErrors
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
        ({"training": {"optimizer": "adam"}}, "optimizer"),
        ({"federation": {"strategy": "fedadam", "rounds": 100}}, "after averaging"),
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


def test_scaffold_over_some_of_the_clients_is_refused() -> None:
    method = make_method(parse(Config, BASE).method)
    federation = {"strategy": "scaffold", "sampler": {"name": "uniform", "fraction": 0.5}}
    with pytest.raises(ConfigError, match=r"federation\.strategy\.name = 'scaffold'[\s\S]*every client in every round"):
        method.check(parse(Config, {**BASE, "federation": federation}))
    assert method.check(parse(Config, {**BASE, "federation": {"strategy": "scaffold", "rounds": 100}})) == []


# initialization


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


def test_real_initialization_copies_images_of_the_class(bench: MakeBench) -> None:
    lab = bench(init="real", ipc_local=8)
    data = lab.data(per_class=5)
    (state,) = lab.prepare(data)
    for c in range(4):
        own = data["image"][data["label"] == c].flatten(1)
        chosen = state["images"][state["labels"] == c].flatten(1)
        assert all((own == image).all(1).any() for image in chosen)
        assert len(chosen.unique(dim=0)) == 5  # all five, three of them twice


def test_noise_initialization_ignores_the_statistics(bench: MakeBench) -> None:
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
