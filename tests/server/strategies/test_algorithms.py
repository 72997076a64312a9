"""Federated algorithms against published fixed points and hand-made rounds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import ray.cloudpickle
import torch
from torch import Tensor, nn

import fedlab
from fedlab.clients.state import StateStore
from fedlab.config import Config
from fedlab.data.samples import Dataset, Samples
from fedlab.errors import ConfigErrors
from fedlab.experiment.result import Run
from fedlab.method import Batch, BatchSpec, Method, Plan, Step, Task
from fedlab.storage.checkpoint import load_checkpoint

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
Settings = Callable[..., Config]


class Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))


class Quadratic(Method):
    """f_i(w) = ½·a_i·(w − b_i)², τ_i full-gradient steps."""

    def build(self, task: Task) -> dict[str, nn.Module]:
        return {"model": Scalar()}

    def batch_spec(self, plan: Plan) -> BatchSpec:
        return BatchSpec(sampler=lambda columns, size, generator: [torch.tensor([0])] * int(columns["steps"][0]))

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        return {"f": 0.5 * (batch["a"] * (networks["model"].w - batch["b"]) ** 2).sum()}

    def evaluate(self, ctx: Any) -> Mapping[str, np.ndarray]:
        return {"w": ctx.networks["model"].w.numpy()}

    def evaluation_values(self, sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
        return {}


def problem(a: tuple[float, ...], b: tuple[float, ...], steps: tuple[int, ...]) -> Dataset:
    columns = {
        "a": np.array(a, np.float32),
        "b": np.array(b, np.float32),
        "steps": np.array(steps, np.int64),
        "domain": np.arange(len(a)),
    }
    samples = Samples(columns, domain_names=tuple(f"c{i}" for i in range(len(a))))
    return Dataset("quadratic", samples, samples)


UNEQUAL_STEPS = problem((1, 1), (0, 1), (1, 9))
UNEQUAL_CURVATURE = problem((1, 4), (0, 1), (5, 5))


@pytest.fixture
def solve(settings: Settings) -> Callable[..., tuple[float, Run]]:
    def run(data: Dataset, strategy: dict[str, Any], rounds: int = 40, **changes: Any) -> tuple[float, Run]:
        config = settings(
            federation__strategy=strategy,
            federation__rounds=rounds,
            evaluation__every=rounds,
            tracking__checkpoint_every=rounds,
            **changes,
        )
        done = fedlab.run(config, method=Quadratic, data=data)
        return float(done.model["model"].w), done

    return run


@pytest.mark.parametrize(
    ("data", "strategy", "fixed_point"),
    [
        (UNEQUAL_STEPS, {"name": "fedavg"}, 0.859665),
        (UNEQUAL_STEPS, {"name": "fednova"}, 0.404990),
        (UNEQUAL_CURVATURE, {"name": "fedavg"}, 0.692502),
        (UNEQUAL_CURVATURE, {"name": "fedprox", "mu": 1.0}, 0.697469),
        (UNEQUAL_CURVATURE, {"name": "scaffold"}, 0.8),
        (UNEQUAL_CURVATURE, {"name": "feddyn", "alpha": 1.0}, 0.8),
    ],
)
def test_the_quadratic_federations_fixed_points(
    solve: Callable[..., tuple[float, Run]], data: Dataset, strategy: dict[str, Any], fixed_point: float
) -> None:
    found, _ = solve(data, strategy)
    assert found == pytest.approx(fixed_point, abs=5e-6)


@pytest.mark.slow
def test_fednova_finds_the_optimum_with_small_steps(solve: Callable[..., tuple[float, Run]]) -> None:
    found, _ = solve(UNEQUAL_STEPS, {"name": "fednova"}, rounds=2500, training__lr=0.01)
    assert found == pytest.approx(0.49, abs=5e-4)


def test_scaffolds_control_variates(solve: Callable[..., tuple[float, Run]]) -> None:
    _, run = solve(UNEQUAL_CURVATURE, {"name": "scaffold"})
    own = [StateStore(run.folder.clients).latest(client) for client in range(2)]
    controls = [float(state["control/model.w"]) for state in own if state is not None]
    assert controls == pytest.approx([0.8, -0.8], abs=1e-5)
    strategy, _ = load_checkpoint(run.checkpoint)
    assert float(strategy["strategy/control/model.w"]) == pytest.approx(0, abs=1e-5)
    assert run.history.rounds[0]["bytes"]["algorithm"] == {"down": 2 * 4, "up": 2 * 4}


@pytest.mark.parametrize("name", ["fednova", "scaffold"])
def test_engines_agree_on_algorithms_that_send_more_than_weights(
    ray_workers: None, solve: Callable[..., tuple[float, Run]], name: str
) -> None:
    inline, _ = solve(UNEQUAL_CURVATURE, {"name": name}, rounds=5)
    ray, _ = solve(UNEQUAL_CURVATURE, {"name": name}, rounds=5, engine__name="ray", engine__workers=2, engine__chunk=1)
    assert inline == ray != 0


@pytest.mark.parametrize("same", [{"name": "fedprox", "mu": 0.0}, {"name": "fedavgm", "momentum": 0.0}])
def test_algorithms_that_reduce_to_averaging(
    settings: Settings, samples: Dataset, plain: type[Method], same: dict[str, Any]
) -> None:
    average = fedlab.run(settings(), method=plain, data=samples).model.state_dict()
    other = fedlab.run(settings(federation__strategy=same), method=plain, data=samples).model.state_dict()
    exact = same["name"] == "fedprox"
    for name, value in average.items():
        assert torch.equal(other[name], value) if exact else torch.allclose(other[name], value, atol=1e-6)


@pytest.mark.parametrize("name", ["fednova", "scaffold"])
def test_the_first_round_with_equal_work_is_averaging(
    settings: Settings, samples: Dataset, plain: type[Method], name: str
) -> None:
    average = fedlab.run(settings(federation__rounds=1), method=plain, data=samples).model.state_dict()
    config = settings(federation__rounds=1, federation__strategy=name)
    other = fedlab.run(config, method=plain, data=samples).model.state_dict()
    for key, value in average.items():
        assert torch.allclose(other[key], value, atol=1e-6), key


def test_senseless_combinations_are_refused(settings: Settings, samples: Dataset, plain: type[Method]) -> None:
    for name in ("scaffold", "fednova", "feddyn"):
        with pytest.raises(ConfigErrors, match=rf"training\.optimizer = 'adam'[\s\S]*{name}"):
            fedlab.run(settings(federation__strategy=name, training__optimizer="adam"), method=plain, data=samples)


def test_algorithms_learn_and_compose_with_methods(settings: Settings, samples: Dataset, plain: type[Method]) -> None:
    for name in ("fednova", "scaffold", "feddyn", "fedavgm", "fedadam"):
        config = settings(
            federation__strategy=name, federation__rounds=6, data__partition=[{"name": "dirichlet", "clients": 4}]
        )
        run = fedlab.run(config, method=plain, data=samples)
        assert run.metrics["pooled"]["accuracy"] > 0.6, name
