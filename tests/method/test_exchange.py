"""What travels: groups, patterns, buffers, gradients, hashes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from fedlab.errors import ConfigError
from fedlab.method import Group, Method, Plan, Task
from fedlab.method.exchange import Exchange, Exchanges
from fedlab.storage.hashing import hash_tensors


def networks() -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "model": nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)),
            "teacher": nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1)),
        }
    )


def test_everything_but_counters_is_averaged_by_default() -> None:
    exchange = Exchange(networks(), [Group("all")])
    assert set(exchange.up) == set(exchange.down)
    assert exchange.local == ("model.1.num_batches_tracked", "teacher.1.num_batches_tracked")
    assert "model.1.running_var" in exchange.up


def test_buffers_can_stay() -> None:
    exchange = Exchange(networks(), [Group("all", buffers="local")])
    assert "model.1.running_mean" in exchange.local
    assert "model.1.weight" in exchange.up


def test_modes_say_what_goes_where() -> None:
    base = Group("model", ("model",))
    for mode, down, up, fixed in (
        ("server", True, False, True),
        ("once", False, False, True),
        ("frozen", False, False, True),
        ("rest", False, False, True),
        ("local", False, False, False),
        ("average", True, True, False),
    ):
        teacher = replace(base, name="teacher", members=("teacher",), mode=mode)  # type: ignore[arg-type]  # all valid
        exchange = Exchange(networks(), [base, teacher])
        assert ("teacher.0.weight" in exchange.down, "teacher.0.weight" in exchange.up) == (down, up), mode
        assert exchange.fixed_roles == (("teacher",) if fixed else ()), mode
        assert exchange.group_of["teacher.0.weight"].name == "teacher"


def test_the_first_matching_group_owns_a_state() -> None:
    exchange = Exchange(networks(), [Group("head", ("model.2",), weight="uniform"), Group("rest")])
    assert exchange.group_of["model.2.weight"].weight == "uniform"
    assert exchange.group_of["model.0.weight"].name == "rest"
    assert exchange.bytes_by_group(exchange.up)["head"] == 4 * (3 + 1)
    assert exchange.averaged == ("rest", "head")


def test_settings_keep_norm_layers_and_heads_local() -> None:
    exchange = Exchange(networks(), [Group("all")], ["norm", "model.2.*"])
    assert set(exchange.up) == {"model.0.weight", "model.0.bias", "teacher.0.weight", "teacher.0.bias"}


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"exchange\.local = 'heads\.\*'"):
        Exchange(networks(), [Group("all")], ["heads.*"])
    with pytest.raises(ConfigError, match=r"method\.exchange = 'teacher\.0\.weight'"):
        Exchange(networks(), [Group("model", ("model",))])


class Stages(Method):
    def build(self, task: Task) -> dict[str, nn.Module]:
        return {}

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        return (Group("model", ("model",), mode="once" if plan["fixed"] else "average"), Group("rest"))


def test_stages_switch_gradients_and_back() -> None:
    nets = networks()
    nets["teacher"].requires_grad_(False)
    exchanges = Exchanges(nets, Stages())
    first = exchanges.enter({"fixed": False})
    assert nets["model"][0].weight.requires_grad
    fixed = exchanges.enter({"fixed": True})
    assert not any(p.requires_grad for p in nets.parameters())
    assert fixed.fixed_roles == ("model",)
    assert exchanges.enter({"fixed": False}) is first
    assert nets["model"][0].weight.requires_grad
    assert not nets["teacher"][0].weight.requires_grad, "what the method froze itself stays frozen"


def test_hashes_see_every_value_name_and_type() -> None:
    base = {"a": torch.zeros(3), "b": torch.ones(2, dtype=torch.int64)}
    variants = [
        base,
        {"a": torch.tensor([0.0, 0.0, 1e-40]), "b": base["b"]},
        {"a": torch.zeros(3, 1), "b": base["b"]},
        {"a": torch.zeros(3, dtype=torch.float64), "b": base["b"]},
        {"c": base["a"], "b": base["b"]},
    ]
    assert len({hash_tensors(tensors) for tensors in variants}) == len(variants)
    assert hash_tensors(dict(reversed(base.items()))) == hash_tensors(base)
    assert hash_tensors({"a": torch.zeros(2, 2, dtype=torch.bfloat16).T}) != ""
