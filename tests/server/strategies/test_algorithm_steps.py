"""The two halves of federated algorithms by hand: what a client's steps become, and what the server makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict
from torch import nn

from fedlab.clients.corrections import Start, requested
from fedlab.config import Component
from fedlab.engine.execution import set_task_identity
from fedlab.errors import FedLabError
from fedlab.method import ClientState
from fedlab.server.strategies import make_strategy
from fedlab.server.strategies.average import AveragingStrategy
from fedlab.server.strategies.rounds import Cohort, TrainingRound


class Federation:
    """f_i(w) = ½·a_i·(w − b_i)² of equal weight: τ_i steps of SGD on each with the real halves of an algorithm.

    Args:
        strategy: component settings.
        problem: (a, b, τ) of each client.
        lr: η.
        momentum: ρ.
    """

    def __init__(
        self, strategy: Mapping[str, Any], problem: Sequence[tuple[float, float, int]], lr: float, momentum: float = 0.0
    ) -> None:
        made = make_strategy(Component(**strategy))
        assert isinstance(made, AveragingStrategy)
        clients = len(problem)
        self.told = told(clients)
        self.strategy, self.problem, self.lr, self.momentum = made, problem, lr, momentum
        self.states = [ClientState() for _ in problem]
        self.x = np.zeros((), np.float32)

    def round(self) -> None:
        self.strategy.begin(self.told, {"w": self.x})
        sent, answers = [], []
        for (a, b, steps), state in zip(self.problem, self.states, strict=True):
            w = nn.Parameter(torch.tensor(float(self.x)))
            start = Start({"w": w}, self.strategy.client_arrays(), state, self.strategy.client_settings(self.told))
            correction = requested(start)
            optimizer = torch.optim.SGD([w], lr=self.lr, momentum=self.momentum)
            for _ in range(steps):
                w.grad = a * (w.detach() - b)
                if correction is not None:
                    correction.apply(optimizer)
                optimizer.step()
            arrays, metrics = correction.finish() if correction is not None else ({}, {})
            sent.append({"w": w.detach(), **arrays})
            answers.append(answer(metrics))
        mean = {name: np.mean([arrays[name].numpy() for arrays in sent], axis=0) for name in sent[0]}
        self.x = np.asarray(self.strategy.server_step(self.told, {"w": self.x}, mean, answers)["w"])


def told(clients: int, population: int | None = None) -> TrainingRound:
    """A round of so many clients with one sample each, in which ``w`` is trained and averaged."""
    cohort = Cohort((1,) * clients, (1,) * clients)
    return TrainingRound(1, cohort, population or clients, {"w": "examples"}, frozenset({"w"}))


def answer(metrics: Mapping[str, float]) -> Message:
    """A client's reply, of which the strategies read the metrics."""
    set_task_identity()
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, **metrics})}), 1, "train")


UNEQUAL_STEPS = ((1.0, 0.0, 1), (1.0, 1.0, 9))
UNEQUAL_CURVATURE = ((1.0, 0.0, 5), (4.0, 1.0, 5))


@pytest.mark.parametrize(
    ("problem", "strategy", "fixed_point"),
    [
        (UNEQUAL_STEPS, {"name": "fedavg"}, 0.859665),
        (UNEQUAL_STEPS, {"name": "fednova"}, 0.404990),
        (UNEQUAL_CURVATURE, {"name": "fedavg"}, 0.692502),
        (UNEQUAL_CURVATURE, {"name": "fedprox", "mu": 1.0}, 0.697469),
        (UNEQUAL_CURVATURE, {"name": "scaffold"}, 0.8),
        (UNEQUAL_CURVATURE, {"name": "feddyn", "alpha": 1.0}, 0.8),
    ],
)
def test_both_halves_together_have_the_known_fixed_points(
    problem: Sequence[tuple[float, float, int]], strategy: dict[str, Any], fixed_point: float
) -> None:
    federation = Federation(strategy, problem, lr=0.1)
    for _ in range(200):
        federation.round()
    assert float(federation.x) == pytest.approx(fixed_point, abs=5e-6)


@pytest.mark.parametrize(("mu", "fixed_point"), [(0.1, 0.1464), (0.5, 0.2132)])
def test_fednova_with_local_momentum_and_a_proximal_term(mu: float, fixed_point: float) -> None:
    """Momentum carries the proximal pull on: without that in ‖a‖₁ they are 0.1268 and 0.1049. The optimum is 0.5."""
    federation = Federation({"name": "fednova", "mu": mu}, ((1.0, 0.0, 5), (1.0, 1.0, 40)), lr=0.02, momentum=0.9)
    for _ in range(40):
        federation.round()
    assert float(federation.x) == pytest.approx(fixed_point, abs=5e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_scaffolds_server_variate_is_the_mean_of_the_clients_after_every_round(momentum: float) -> None:
    federation = Federation({"name": "scaffold"}, UNEQUAL_STEPS, lr=0.1, momentum=momentum)
    for _ in range(5):
        federation.round()
        own = [float(state["control/w"]) for state in federation.states]
        assert own[0] != own[1]
        assert float(federation.strategy.memory["control/w"]) == pytest.approx(sum(own) / 2, abs=1e-7)


@pytest.mark.parametrize(("momentum", "steps", "norm"), [(0, 7, 7), (0.9, 2, 2.9), (0.9, 1, 1), (0.9, 3, 5.61)])
def test_fednovas_weights_of_local_steps(momentum: float, steps: int, norm: float) -> None:
    w = nn.Parameter(torch.zeros(()))
    correction = requested(Start({"w": w}, {}, ClientState(), {"algorithm": "fednova"}))
    assert correction is not None
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=momentum)
    for _ in range(steps):
        w.grad = torch.ones(())
        correction.apply(optimizer)
        optimizer.step()
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
    optimizer = torch.optim.SGD([w], lr=eta, momentum=momentum)
    for _ in range(3):
        w.grad = torch.ones(())
        correction.apply(optimizer)
        optimizer.step()
    update, metrics = correction.finish()
    assert metrics["step-weight"] == pytest.approx(eta * norm)
    assert float(update["w"]) == pytest.approx(1.0), "the mean gradient"


def test_fednovas_server_momentum_carries_updates_on() -> None:
    strategy = make_strategy(Component(name="fednova", server_momentum=0.5))
    assert isinstance(strategy, AveragingStrategy)
    answers = [answer({"step-weight": 0.25})]
    x, moves = np.zeros(1, np.float32), []
    for _ in range(3):  # d = 2 and τ_eff = 0.25 in every round
        new = strategy.server_step(told(1), {"w": x}, {"w": np.full(1, 2.0, np.float32)}, answers)
        moves.append(float((x - new["w"])[0]))
        x = np.asarray(new["w"])
    assert moves == [0.5, 0.5 * 0.5 + 0.5, 0.5 * 0.75 + 0.5]


def test_fednova_refuses_groups_of_different_rates() -> None:
    one, two = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
    correction = requested(Start({"one": one, "two": two}, {}, ClientState(), {"algorithm": "fednova"}))
    assert correction is not None
    optimizer = torch.optim.SGD([{"params": [one], "lr": 0.1}, {"params": [two], "lr": 0.2}])
    one.grad, two.grad = torch.ones(()), torch.ones(())
    correction.apply(optimizer)
    with pytest.raises(FedLabError, match="give all parameter groups one learning rate"):
        correction.finish()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_one_full_batch_makes_scaffolds_control_variate_the_gradient(momentum: float) -> None:
    """c_i⁺ is the mean of the plain gradients, whatever corrections and momentum did to the steps."""
    w, state = nn.Parameter(torch.tensor(2.0)), ClientState({"control/w": torch.tensor(0.25)})
    control = {"control/w": np.array(0.75, np.float32)}
    correction = requested(Start({"w": w}, control, state, {"algorithm": "scaffold"}))
    assert correction is not None
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=momentum)
    for _ in range(3):
        w.grad = torch.tensor(5.0)
        correction.apply(optimizer)
        assert float(w.grad) == 5.0 + 0.75 - 0.25
        optimizer.step()
    change, _ = correction.finish()
    assert float(state["control/w"]) == pytest.approx(5.0, rel=1e-6)
    assert float(change["control/w"]) == pytest.approx(5.0 - 0.25, rel=1e-6)


def test_scaffold_divides_by_all_clients_not_by_those_selected() -> None:
    strategy = make_strategy(Component(name="scaffold"))
    assert isinstance(strategy, AveragingStrategy)
    round = told(2, population=8)
    current = {"w": np.zeros(1, np.float32)}
    strategy.begin(round, current)
    mean = {"w": np.ones(1, np.float32), "control/w": np.full(1, 4.0, np.float32)}
    new = strategy.server_step(round, current, mean, [None, None])  # type: ignore[list-item]  # only their number counts
    assert new["w"].tolist() == [1.0]
    assert strategy.memory["control/w"].tolist() == [4.0 * 2 / 8]
    assert set(strategy.weights(round).values()) == {"uniform"}


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
def test_server_optimizers_under_a_constant_update(settings: dict[str, Any], moves: list[float]) -> None:
    strategy = make_strategy(Component(**settings))
    assert isinstance(strategy, AveragingStrategy)
    round = replace(told(1), weight_of={"w": "examples", "running_mean": "examples"})
    x = np.zeros(1, np.float32)
    answers: list[Message] = []
    for move in moves:
        mean = {"w": x + 1, "running_mean": np.full(1, 7.0, np.float32)}
        new = strategy.server_step(round, {"w": x, "running_mean": np.zeros(1, np.float32)}, mean, answers)
        assert float((new["w"] - x)[0]) == pytest.approx(move, rel=1e-5)
        assert new["running_mean"].tolist() == [7.0], "buffers are averaged, not optimized"
        x = np.asarray(new["w"])


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        ("fednova", {"mu": 0, "server_momentum": 0}),
        ("scaffold", {"server_lr": 1}),
        ("feddyn", {"alpha": 0.01}),
        ("fedprox", {"mu": 0.01}),
        ("fedavgm", {"server_lr": 1, "momentum": 0.9, "damped": False}),
        ("fedadam", {"server_lr": 0.1, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3, "initial_v": 0}),
        ("fedyogi", {"server_lr": 0.01, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3, "initial_v": 0}),
        ("fedadagrad", {"server_lr": 0.1, "beta1": 0, "beta2": 0.99, "tau": 1e-3, "initial_v": 0}),
    ],
)
def test_who_says_nothing_gets_flowers_and_the_papers_settings(name: str, defaults: dict[str, float]) -> None:
    strategy = make_strategy(Component(name=name))
    assert isinstance(strategy, AveragingStrategy)
    assert strategy.settings.model_dump() == defaults


def test_adaptive_servers_remember_both_moments_from_round_to_round() -> None:
    """Δ = 1, then 3, written out: m and v of round 1 enter round 2."""
    m, after = 0.1 * 0.9 + 0.1 * 3.0, {"fedadagrad": 0.25 + 1 + 9, "fedadam": 0.0, "fedyogi": 0.0}
    after["fedadam"] = 0.99 * (0.99 * 0.25 + 0.01) + 0.01 * 9
    first = 0.25 + 0.01 * 1  # Yogi: Δ² = 1 is above v = 0.25
    after["fedyogi"] = first + 0.01 * 9
    for name, v in after.items():
        strategy = make_strategy(Component(name=name, server_lr=0.5, beta1=0.9, initial_v=0.25, tau=0.01))
        assert isinstance(strategy, AveragingStrategy)
        x = np.zeros(1, np.float32)
        strategy.server_step(told(1), {"w": x}, {"w": x + 1}, [])
        new = strategy.server_step(told(1), {"w": x}, {"w": x + 3}, [])
        assert float(new["w"][0]) == pytest.approx(0.5 * m / (v**0.5 + 0.01), rel=1e-5), name
    # Yogi lets v fall where Δ² is below it, by as little as it lets it rise
    yogi = make_strategy(Component(name="fedyogi", server_lr=1.0, beta1=0.0, initial_v=4.0, tau=0.5))
    assert isinstance(yogi, AveragingStrategy)
    new = yogi.server_step(told(1), {"w": np.zeros(1, np.float32)}, {"w": np.ones(1, np.float32)}, [])
    assert float(new["w"][0]) == pytest.approx(1 / ((4 - 0.01) ** 0.5 + 0.5), rel=1e-6)


def test_feddyn_and_scaffold_under_partial_participation_and_their_rates() -> None:
    """Two of eight clients; FedDyn: h = −α·2/8·Δ and x = mean − h/α; SCAFFOLD: x + η_g·Δ."""
    x, mean = np.full(1, 2.0, np.float32), np.full(1, 6.0, np.float32)
    found = {}
    for name, settings in (("feddyn", {"alpha": 0.5}), ("scaffold", {"server_lr": 0.25})):
        strategy = make_strategy(Component(name=name, **settings))
        assert isinstance(strategy, AveragingStrategy)
        round = told(2, population=8)
        strategy.begin(round, {"w": x})
        found[name] = strategy.server_step(round, {"w": x}, {"w": mean}, [None, None])  # type: ignore[list-item]  # counted only
        if name == "feddyn":
            assert strategy.memory["w"].tolist() == [-0.5 * 0.25 * 4.0]
            assert set(strategy.weights(round).values()) == {"uniform"}
    assert found["feddyn"]["w"].tolist() == [6.0 + 0.25 * 4.0]
    assert found["scaffold"]["w"].tolist() == [2.0 + 0.25 * 4.0]


def test_an_algorithm_that_this_client_does_not_know_is_refused() -> None:
    start = Start({}, {}, ClientState(), {"algorithm": "fednovae"})
    with pytest.raises(
        FedLabError, match=r"asks for the algorithm 'fednovae'; this client knows \['feddyn', 'fednova'"
    ):
        requested(start)
    assert requested(Start({}, {}, ClientState(), {})) is None
    assert requested(Start({}, {}, ClientState(), {"proximal-mu": 0.0})) is None


@pytest.mark.parametrize("name", ["fednova", "scaffold", "feddyn"])
def test_a_parameter_without_a_step_stays_and_says_nothing(name: str) -> None:
    w, state = nn.Parameter(torch.tensor(2.0)), ClientState({"control/w": torch.tensor(0.25)})
    control = {"control/w": np.array(0.75, np.float32)}
    correction = requested(Start({"w": w}, control, state, {"algorithm": name, "alpha": 0.5}))
    assert correction is not None
    sent, metrics = correction.finish()
    assert all(float(value) == 0 for value in [*sent.values(), *metrics.values()])
    assert float(state["control/w"]) == 0.25
    assert float(state["dynamic/w"] if name == "feddyn" else 0) == 0


def test_feddyn_remembers_the_way_gone_times_alpha() -> None:
    """h ← h − α·(y − x), and the gradient becomes g − h + α·(w − x)."""
    w, state = nn.Parameter(torch.tensor(2.0)), ClientState({"dynamic/w": torch.tensor(1.5)})
    correction = requested(Start({"w": w}, {}, state, {"algorithm": "feddyn", "alpha": 0.5}))
    assert correction is not None
    optimizer = torch.optim.SGD([w], lr=0.1)
    for expected in (4.0 - 1.5, 4.0 - 1.5 - 0.5 * 0.25):
        w.grad = torch.tensor(4.0)
        correction.apply(optimizer)
        assert float(w.grad) == pytest.approx(expected)
        optimizer.step()
    correction.finish()
    assert float(state["dynamic/w"]) == pytest.approx(1.5 + 0.5 * 0.1 * (2.5 + 2.375))
