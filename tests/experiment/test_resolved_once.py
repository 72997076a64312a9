"""A run makes each of its components once and hands it on; whoever needs one does not make it again."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import fedlab
import fedlab.assembly
import fedlab.callbacks
import fedlab.data.partition.drift
import fedlab.data.partition.partition
import fedlab.data.sources
import fedlab.engine
import fedlab.engine.device
import fedlab.engine.placement
import fedlab.privacy
import fedlab.protocol.compression
import fedlab.server.participation.availability
import fedlab.server.participation.samplers
import fedlab.server.participation.selection
import fedlab.server.strategies
import fedlab.tracking.trackers
from fedlab.assembly import Assembly, Stages
from fedlab.config import Config, TrainingConfig, parse
from fedlab.errors import ConfigErrors
from fedlab.experiment.checks import resolve
from fedlab.methods.supervised.method import Supervised

MAKERS: tuple[Callable[..., Any], ...] = (
    fedlab.assembly.make_method,
    fedlab.privacy.make_privacy,
    fedlab.protocol.compression.make_chain,
    fedlab.data.sources.build_source,
    fedlab.data.partition.partition.make_steps,
    fedlab.data.partition.drift.make_drifts,
    fedlab.server.strategies.make_strategy,
    fedlab.server.participation.samplers.make_sampler,
    fedlab.server.participation.availability.make_availability,
    fedlab.server.participation.selection.make_rules,
    fedlab.engine.placement.check_engine,
    fedlab.engine.device.choose_device,
    fedlab.callbacks.make_callbacks,
    fedlab.tracking.trackers.make_trackers,
)


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Any]:
    """A configuration that uses every kind of component at once."""
    return {
        "method": "supervised",
        "model": "logistic",
        "data": {
            "source": {"name": "digits", "domains": ["synth"], "train_per_domain": 40, "test_per_domain": 10},
            "partition": [{"name": "iid", "clients": 3}],
            "drift": [{"name": "labels", "rounds": 2}],
        },
        "federation": {
            "rounds": 2,
            "sampler": {"name": "weighted", "fraction": 0.5},
            "devices": {},
            "availability": {"period": 4, "share": 0.9},
        },
        "exchange": {"compression": [{"name": "quantize"}]},
        "evaluation": {"clients": 2},
        "engine": {"name": "ray", "workers": 2, "device": "cpu"},
        "tracking": {"console": "quiet", "tensorboard": False, "folder": str(tmp_path / "runs")},
    }


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each maker is called, whichever module calls it under whatever name."""
    for package in (
        "fedlab.experiment",
        "fedlab.engine",
        "fedlab.clients",
        "fedlab.server",
        "fedlab.report",
        "fedlab.tracking",
    ):
        for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            importlib.import_module(found.name)
    counted: Counter[str] = Counter()

    def watched(maker: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(maker)
        def made(*arguments: Any, **more: Any) -> Any:
            counted[maker.__name__] += 1
            return maker(*arguments, **more)

        return made

    for maker in MAKERS:
        counting, places = watched(maker), 0
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] == "fedlab":
                for attribute, value in list(vars(module).items()):
                    if value is maker:
                        monkeypatch.setattr(module, attribute, counting)
                        places += 1
        assert places > 1, f"{maker.__name__}: nobody else imports it"
    return counted


def test_a_run_makes_each_component_once(
    ray_workers: None, raw: dict[str, Any], calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Any] = []

    def training(self: Supervised, plan: Mapping[str, Any]) -> dict[str, Any]:
        plans.append(plan)
        return {}

    monkeypatch.setattr(Supervised, "training", training)
    run = fedlab.run(raw)
    assert len(run.history.rounds) == 2
    assert dict(calls) == {maker.__name__: 1 for maker in MAKERS}
    assert plans == [{}]


def test_going_on_with_a_run_makes_each_component_once(raw: dict[str, Any], calls: Counter[str]) -> None:
    raw["engine"] = {"name": "inline", "device": "cpu"}
    run = fedlab.run(raw, until=1)
    calls.clear()
    fedlab.resume(run.path)
    # the worker of the inline engine is this process, and every worker chooses its own device
    assert dict(calls) == {maker.__name__: 1 for maker in MAKERS} | {"choose_device": 2}


def test_what_the_user_gave_is_not_made_at_all(raw: dict[str, Any], calls: Counter[str]) -> None:
    config, method = parse(Config, raw), Supervised()
    resolved = resolve(config, method=method)
    assert resolved.components.method is method
    assert calls["make_method"] == 0


def test_everything_that_is_wrong_is_told_at_once(raw: dict[str, Any]) -> None:
    raw["method"] = "supervized"
    raw["privacy"] = {"name": "dp_sgd", "clip": -1}
    raw["exchange"] = {"compression": [{"name": "quantise"}]}
    raw["data"] |= {"source": "digitz", "drift": [{"name": "labelz", "rounds": 2}]}
    raw["data"]["partition"] = [{"name": "idd"}]
    raw["federation"] |= {"strategy": "fedavgg", "sampler": "uniformm"}
    with pytest.raises(ConfigErrors) as told:
        fedlab.run(raw)
    keys = {error.key for error in told.value.errors}
    wanted = ["method", "data.source", "data.partition.0", "data.drift.0", "exchange.compression.0"]
    for start in [*wanted, "federation.strategy", "federation.sampler", "privacy"]:
        assert any(key.startswith(start) for key in keys), start


def test_a_deployed_node_is_told_of_all_its_errors_at_once(raw: dict[str, Any]) -> None:
    raw["method"], raw["exchange"] = "supervized", {"compression": [{"name": "quantise"}]}
    with pytest.raises(ConfigErrors) as told:
        Assembly(parse(Config, raw)).components()
    assert len(told.value.errors) == 2


class Staged(Supervised):
    """Changes local training in its second stage, and counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def training(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        self.asked += 1
        return {"lr": 0.5} if plan.get("stage") is True else {"lr": 0.25} if plan.get("stage") == 1 else {}


def test_training_is_worked_out_once_for_each_plan() -> None:
    method, training = Staged(), TrainingConfig(lr=0.125)
    stages = Stages(training, method)
    plans: list[dict[str, Any]] = [{}, {"stage": True, "a": 1}, {"a": 1, "stage": True}, {"stage": 1}, {}]
    assert [stages.training(plan).lr for plan in plans] == [0.125, 0.5, 0.5, 0.25, 0.125]
    assert stages.training({}) is training
    assert method.asked == 3


def test_components_of_another_configuration_keep_what_did_not_change(raw: dict[str, Any]) -> None:
    components = Assembly(parse(Config, raw)).components()
    engine = components.with_config(components.config.with_overrides({"engine.vectorize": "off"}))
    assert (engine.stages, engine.method) == (components.stages, components.method)
    assert engine.config.engine.vectorize == "off"
    training = components.with_config(components.config.with_overrides({"training.lr": 0.75}))
    assert training.stages.training({}).lr == 0.75
    assert training.chain is components.chain
