"""Whole runs with engine.vectorize: the same bits on every engine and after a stop, decided once, said when refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fedlab
import fedlab.experiment.decisions
from fedlab.config import Config, parse
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.experiment.result import Run
from fedlab.method import Batch, Method, Step
from fedlab.methods.supervised.method import Supervised

Settings = Callable[..., Config]
PARTITION = [{"name": "domain"}, {"name": "dirichlet", "clients": 2, "alpha": 1.0}]


def digest(run: Run) -> str:
    return hashlib.sha256((run.checkpoint / "tensors.safetensors").read_bytes()).hexdigest()


def weights(run: Run) -> dict[str, Tensor]:
    return dict(run.model.state_dict())


@pytest.fixture
def vectorized(settings: Settings) -> Settings:
    """Eight clients of uneven size, in chunks of three, three and two."""

    def make(**changes: Any) -> Config:
        return settings(data__partition=PARTITION, model={"name": "simple_cnn"}, engine__vectorize=3, **changes)

    return make


def test_engines_and_a_stop_give_the_same_bits_near_those_without(
    ray_workers: None, vectorized: Settings, samples: fedlab.Dataset
) -> None:
    scaffold = {"federation__strategy": "scaffold", "training__lr": 0.02}
    inline = fedlab.run(vectorized(**scaffold), data=samples)
    assert inline.config.engine.vectorize == 3
    assert inline.history.warnings == []
    two = {"engine__name": "ray", "engine__workers": 2, "engine__device": "cpu"}
    assert digest(fedlab.run(vectorized(**scaffold, **two), data=samples)) == digest(inline)
    stopped = fedlab.run(vectorized(**scaffold), data=samples, until=1)
    with pytest.raises(ConfigError, match=r"the value that the run began with"):
        fedlab.resume(stopped.path, data=samples, overrides=["engine.vectorize=off"])
    assert digest(fedlab.resume(stopped.path, data=samples)) == digest(inline)
    plain = fedlab.run(vectorized(**scaffold).with_overrides({"engine.vectorize": "off"}), data=samples)
    assert digest(plain) != digest(inline)
    torch.testing.assert_close(weights(plain), weights(inline), rtol=1e-3, atol=1e-4)
    losses = [event["train"]["ce"] for event in plain.history.rounds]
    assert losses == pytest.approx([event["train"]["ce"] for event in inline.history.rounds], rel=1e-4)


@pytest.mark.parametrize(("alone", "together"), [(2.0, 1.0), (1.0, 2.0)])
def test_auto_is_decided_once_and_kept(
    vectorized: Settings, samples: fedlab.Dataset, monkeypatch: pytest.MonkeyPatch, alone: float, together: float
) -> None:
    auto = vectorized().with_overrides({"engine.vectorize": "auto", "federation.rounds": 2})
    chosen = 16 if together < alone else 0
    with monkeypatch.context() as patch:
        patch.setattr(fedlab.experiment.decisions, "_milliseconds", lambda *probed: (alone, together))
        run = fedlab.run(auto, data=samples, until=1)
    (event,) = run.history.of("vectorize")
    assert (event["clients"], event["alone"], event["together"]) == (chosen, alone, together)
    assert fedlab.experiment.result.load(run.path).config.engine.vectorize == (chosen or "off")
    with monkeypatch.context() as patch:  # going on measures nothing
        patch.setattr(fedlab.experiment.decisions, "_milliseconds", lambda *probed: 1 / 0)
        again = fedlab.resume(run.path, data=samples)
    assert len(list(again.history.of("vectorize"))) == 1
    fixed = fedlab.run(auto.with_overrides({"engine.vectorize": chosen or "off"}), data=samples)
    assert digest(fixed) == digest(again)


def test_the_probe_measures_both_ways(vectorized: Settings, samples: fedlab.Dataset) -> None:
    run = fedlab.run(vectorized().with_overrides({"engine.vectorize": "auto", "federation.rounds": 1}), data=samples)
    (event,) = run.history.of("vectorize")
    assert event["alone"] > 0
    assert event["together"] > 0
    assert event["clients"] == (16 if event["together"] < event["alone"] else 0)


class Branching(Supervised):
    functional_loss = True

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        loss = F.cross_entropy(networks["model"](batch["image"]), batch["label"])
        return {"ce": loss if loss > 0 else -loss}


@pytest.mark.parametrize("asked", ["auto", 4])
def test_what_cannot_be_done_together_is_done_alone_and_said_once(
    vectorized: Settings, samples: fedlab.Dataset, plain: type[Method], asked: object
) -> None:
    off = vectorized().with_overrides({"engine.vectorize": "off", "federation.rounds": 2})
    changed = off.with_overrides({"engine.vectorize": asked})
    for method, reason in ((plain, "Plain does not declare functional_loss"), (Branching, "data-dependent")):
        run = fedlab.run(changed, method=method, data=samples)
        (warning,) = run.history.warnings
        assert warning.startswith(f"engine.vectorize = {asked}: clients are trained one after the other, because")
        assert reason in warning
        assert run.config.engine.vectorize == "off"
        assert digest(run) == digest(fedlab.run(off, method=method, data=samples))


def test_dp_sgd_is_neither_vectorized_nor_compiled(vectorized: Settings, samples: fedlab.Dataset) -> None:
    pytest.importorskip("dp_accounting", reason="the extra fedlab-sim[dp] is not installed")
    private = {"name": "dp_sgd", "clip": 0.5, "noise_multiplier": 1.0}
    asked = vectorized(privacy=private, federation__rounds=1, training__compile=True)
    run = fedlab.run(asked, data=samples)
    compiled, together = run.history.warnings[-2:]
    assert compiled.endswith("because DP-SGD takes them apart")
    assert together.endswith("because DP-SGD batches the examples of each already")
    assert (run.config.training.compile, run.config.engine.vectorize) == (False, "off")


def test_the_setting_is_off_by_itself_and_when_yaml_says_so(settings: Settings) -> None:
    assert settings().engine.vectorize == "off"
    raw = settings().model_dump(mode="json")
    for value, meant in ((False, "off"), ("off", "off"), ("auto", "auto"), (2, 2)):
        assert parse(Config, {**raw, "engine": {"vectorize": value}}).engine.vectorize == meant
    for wrong in (1, 0, -3, "on", True, 2.5):
        with pytest.raises(ConfigErrors, match=r"engine\.vectorize = .*\n.*'auto' or 'off'"):
            parse(Config, {**raw, "engine": {"vectorize": wrong}})


def test_chunks_are_of_nearly_equal_size() -> None:
    from fedlab.engine.grids.base import _evenly

    assert [len(part) for part in _evenly(list(np.arange(20)), 16)] == [10, 10]  # type: ignore[arg-type]  # any list will do
    assert [len(part) for part in _evenly(list(np.arange(8)), 3)] == [3, 3, 2]  # type: ignore[arg-type]  # any list will do
