"""Federated algorithms against published fixed points and hand-made rounds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import ray.cloudpickle
import torch
from flwr.app import Message, MetricRecord, RecordDict
from torch import Tensor, nn

import fedlab
from fedlab.checkpoint import load_checkpoint
from fedlab.clients.corrections import Start, requested
from fedlab.clients.state import StateStore
from fedlab.config import Config
from fedlab.context import ClientState
from fedlab.data.samples import Dataset, Samples
from fedlab.engine.execution import set_task_identity
from fedlab.errors import ConfigErrors, FedLabError
from fedlab.experiment import Run
from fedlab.method import Batch, Batches, Method, Plan, Step, Task
from fedlab.server.strategies import make_strategy
from fedlab.server.strategies.average import AveragingStrategy, Cohort

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

    def batches(self, plan: Plan) -> Batches:
        return Batches(sampler=lambda columns, size, generator: [torch.tensor([0])] * int(columns["steps"][0]))

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
    def run(data: Dataset, strategy: dict[str, Any], rounds: int = 400, **changes: Any) -> tuple[float, Run]:
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


@pytest.mark.parametrize(("mu", "fixed_point"), [(0.1, 0.1464), (0.5, 0.2132)])
def test_fednova_with_local_momentum_and_a_proximal_term(mu: float, fixed_point: float) -> None:
    """Momentum carries the proximal pull on: without that in ‖a‖₁ they are 0.1268 and 0.1049. The optimum is 0.5."""
    strategy = make_strategy(_component(name="fednova", mu=mu))
    assert isinstance(strategy, AveragingStrategy)
    strategy.cohort = Cohort((1, 2), (1, 1), {"w": "examples"}, frozenset({"w"}), 2)
    x = np.zeros((), np.float32)
    for _ in range(40):
        updates, answers = [], []
        for b, steps in ((0.0, 5), (1.0, 40)):
            w = nn.Parameter(torch.tensor(float(x)))
            correction = requested(Start({"w": w}, {}, ClientState(), strategy.client_settings(1)))
            assert correction is not None
            optimiser = torch.optim.SGD([w], lr=0.02, momentum=0.9)
            for _ in range(steps):
                w.grad = w.detach() - b
                correction.apply(optimiser)
                optimiser.step()
            update, metrics = correction.finish()
            updates.append(update["w"].numpy())
            answers.append(_answer(metrics))
        x = np.asarray(strategy.server_step({"w": x}, {"w": np.mean(updates, axis=0)}, answers)["w"])
    assert float(x) == pytest.approx(fixed_point, abs=5e-5)


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


def test_scaffolds_server_variate_is_the_mean_of_the_clients_after_every_round(settings: Settings) -> None:
    for rounds in range(1, 6):
        config = settings(federation__strategy="scaffold", federation__rounds=rounds, training__momentum=0.5)
        run = fedlab.run(config, method=Quadratic, data=UNEQUAL_STEPS)
        own = [StateStore(run.folder.clients).latest(client) for client in range(2)]
        controls = [float(state["control/model.w"]) for state in own if state is not None]
        strategy, _ = load_checkpoint(run.checkpoint)
        assert len(set(controls)) == 2
        assert float(strategy["strategy/control/model.w"]) == pytest.approx(sum(controls) / 2, abs=1e-7)


@pytest.mark.parametrize("name", ["fednova", "scaffold"])
def test_engines_agree_on_algorithms_that_send_more_than_weights(
    ray_running: None, solve: Callable[..., tuple[float, Run]], name: str
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


@pytest.mark.parametrize(("momentum", "steps", "norm"), [(0, 7, 7), (0.9, 2, 2.9), (0.9, 1, 1), (0.9, 3, 5.61)])
def test_fednovas_weights_of_local_steps(momentum: float, steps: int, norm: float) -> None:
    w = nn.Parameter(torch.zeros(()))
    correction = requested(Start({"w": w}, {}, ClientState(), {"algorithm": "fednova"}))
    assert correction is not None
    optimiser = torch.optim.SGD([w], lr=0.1, momentum=momentum)
    for _ in range(steps):
        w.grad = torch.ones(())
        correction.apply(optimiser)
        optimiser.step()
    update, metrics = correction.finish()
    assert metrics["step-weight"] / 0.1 == pytest.approx(norm)
    assert float(update["w"]) == pytest.approx(1.0), "the mean gradient"


@pytest.mark.parametrize(
    ("momentum", "mu", "norm"),
    [
        (0.0, 0.5, 1 + 0.95 + 0.95**2),  # a ← (1 − ημ)·a + 1, of the authors' code
        (0.9, 0.0, 5.61),
        # b: 1, then 0.5·1 + 1 − 1·0.1 = 1.4, then 0.5·1.4 + 1 − 1·0.24 = 1.46
        (0.5, 1.0, 1 + 1.4 + 1.46),
    ],
)
def test_fednova_divides_by_the_weight_of_steps_with_momentum_and_a_proximal_term(
    momentum: float, mu: float, norm: float
) -> None:
    w, eta = nn.Parameter(torch.zeros(())), 0.1
    correction = requested(Start({"w": w}, {}, ClientState(), {"algorithm": "fednova", "proximal-mu": mu}))
    assert correction is not None
    optimiser = torch.optim.SGD([w], lr=eta, momentum=momentum)
    for _ in range(3):
        w.grad = torch.ones(())
        correction.apply(optimiser)
        optimiser.step()
    update, metrics = correction.finish()
    assert metrics["step-weight"] == pytest.approx(eta * norm)
    assert float(update["w"]) == pytest.approx(1.0), "the mean gradient"


def test_fednovas_server_momentum_carries_updates_on() -> None:
    strategy = make_strategy(_component(name="fednova", server_momentum=0.5))
    assert isinstance(strategy, AveragingStrategy)
    strategy.cohort = Cohort((1,), (1,), {"w": "examples"}, frozenset({"w"}), 1)
    answers = [_answer({"step-weight": 0.25})]
    x, moves = np.zeros(1, np.float32), []
    for _ in range(3):  # d = 2 and τ_eff = 0.25 in every round
        new = strategy.server_step({"w": x}, {"w": np.full(1, 2.0, np.float32)}, answers)
        moves.append(float((x - new["w"])[0]))
        x = np.asarray(new["w"])
    assert moves == [0.5, 0.5 * 0.5 + 0.5, 0.5 * 0.75 + 0.5]


def test_fednova_refuses_groups_of_different_rates() -> None:
    one, two = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
    correction = requested(Start({"one": one, "two": two}, {}, ClientState(), {"algorithm": "fednova"}))
    assert correction is not None
    optimiser = torch.optim.SGD([{"params": [one], "lr": 0.1}, {"params": [two], "lr": 0.2}])
    one.grad, two.grad = torch.ones(()), torch.ones(())
    correction.apply(optimiser)
    with pytest.raises(FedLabError, match="give all parameter groups one learning rate"):
        correction.finish()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_one_full_batch_makes_scaffolds_control_variate_the_gradient(momentum: float) -> None:
    """c_i⁺ is the mean of the plain gradients, whatever corrections and momentum did to the steps."""
    w, state = nn.Parameter(torch.tensor(2.0)), ClientState({"control/w": torch.tensor(0.25)})
    control = {"control/w": np.array(0.75, np.float32)}
    correction = requested(Start({"w": w}, control, state, {"algorithm": "scaffold"}))
    assert correction is not None
    optimiser = torch.optim.SGD([w], lr=0.1, momentum=momentum)
    for _ in range(3):
        w.grad = torch.tensor(5.0)
        correction.apply(optimiser)
        assert float(w.grad) == 5.0 + 0.75 - 0.25
        optimiser.step()
    change, _ = correction.finish()
    assert float(state["control/w"]) == pytest.approx(5.0, rel=1e-6)
    assert float(change["control/w"]) == pytest.approx(5.0 - 0.25, rel=1e-6)


def test_scaffold_divides_by_all_clients_not_by_those_selected() -> None:
    strategy = make_strategy(_component(name="scaffold"))
    assert isinstance(strategy, AveragingStrategy)
    strategy.cohort = Cohort((1, 2), (1, 1), {"w": "examples"}, frozenset({"w"}), population=8)
    current = {"w": np.zeros(1, np.float32)}
    strategy.begin(current)
    mean = {"w": np.ones(1, np.float32), "control/w": np.full(1, 4.0, np.float32)}
    new = strategy.server_step(current, mean, [None, None])  # type: ignore[list-item]  # only their number counts
    assert new["w"].tolist() == [1.0]
    assert strategy.memory["control/w"].tolist() == [4.0 * 2 / 8]
    assert set(strategy.weights().values()) == {"uniform"}


@pytest.mark.parametrize(
    ("settings", "moves"),
    [
        ({"name": "fedadam", "server_lr": 1.0}, [0.990099]),
        ({"name": "fedyogi", "server_lr": 1.0}, [0.990099]),
        ({"name": "fedadagrad", "server_lr": 1.0}, [0.999001]),
        ({"name": "fedavgm", "momentum": 0.9}, [(1 - 0.9**r) / 0.1 for r in (1, 2, 3)]),
        ({"name": "fedavgm", "momentum": 0.9, "damped": True}, [1 - 0.9**r for r in (1, 2, 3)]),
    ],
)
def test_server_optimisers_under_a_constant_update(settings: dict[str, Any], moves: list[float]) -> None:
    strategy = make_strategy(_component(**settings))
    assert isinstance(strategy, AveragingStrategy)
    strategy.cohort = Cohort((1,), (1,), {"w": "examples", "running_mean": "examples"}, frozenset({"w"}), 1)
    x = np.zeros(1, np.float32)
    answers: list[Message] = []
    for move in moves:
        mean = {"w": x + 1, "running_mean": np.full(1, 7.0, np.float32)}
        new = strategy.server_step({"w": x, "running_mean": np.zeros(1, np.float32)}, mean, answers)
        assert float((new["w"] - x)[0]) == pytest.approx(move, rel=1e-5)
        assert new["running_mean"].tolist() == [7.0], "buffers are averaged, not optimised"
        x = np.asarray(new["w"])


def test_senseless_combinations_are_refused(settings: Settings, samples: Dataset, plain: type[Method]) -> None:
    for name in ("scaffold", "fednova", "feddyn"):
        with pytest.raises(ConfigErrors, match=rf"training\.optimiser = 'adam'[\s\S]*{name}"):
            fedlab.run(settings(federation__strategy=name, training__optimiser="adam"), method=plain, data=samples)


def test_algorithms_learn_and_compose_with_methods(settings: Settings, samples: Dataset, plain: type[Method]) -> None:
    for name in ("fednova", "scaffold", "feddyn", "fedavgm", "fedadam"):
        config = settings(
            federation__strategy=name, federation__rounds=6, data__partition=[{"name": "dirichlet", "clients": 4}]
        )
        run = fedlab.run(config, method=plain, data=samples)
        assert run.metrics["pooled"]["accuracy"] > 0.6, name


def _answer(metrics: Mapping[str, float]) -> Message:
    """A client's reply, of which the strategies read the metrics."""
    set_task_identity()
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, **metrics})}), 1, "train")


def _component(**settings: Any) -> Any:
    from fedlab.config import Component

    return Component(**settings)
