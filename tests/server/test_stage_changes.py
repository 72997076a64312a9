"""State that changes its way of travelling from one stage to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import fedlab
from fedlab.clients.state import StateStore
from fedlab.config import Config
from fedlab.errors import FedLabError
from fedlab.experiment.result import Run
from fedlab.method import Batch, EvaluationContext, FitContext, Group, Method, Plan, ServerContext, Step, Task
from fedlab.storage.checkpoint import START, load_checkpoint

Settings = Callable[..., Config]
SIZE = 5 * 4  # bytes of the head


class Moving(Method):
    """Every client adds its own number to the head: on top of a common value, or of its own from then on."""

    modes: Mapping[int, str] = {1: "average", 2: "average", 3: "local", 4: "local"}

    def build(self, task: Task) -> dict[str, nn.Module]:
        head = nn.Linear(4, 1)
        nn.init.constant_(head.weight, 1.0)
        nn.init.constant_(head.bias, 1.0)
        return {"head": head, "body": nn.Linear(1, 1)}

    def plan(self, round: int, rounds: int) -> Plan:
        return {"mode": self.modes[round]}

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        return (Group("head", ("head",), mode=plan["mode"], weight="uniform"), Group("body"))  # type: ignore[arg-type]

    def fit(self, ctx: FitContext) -> None:
        with torch.no_grad():
            ctx.networks["body"].weight.add_(1.0)
            if ctx.plan["mode"] in ("average", "local"):
                for p in ctx.networks["head"].parameters():
                    p.add_(float(10**ctx.client))

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, np.ndarray]:
        return {"head": np.array([float(ctx.networks["head"].bias)])}

    def evaluation_values(self, sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
        return {"head": float(sums["head"][0])}


class Returning(Moving):
    modes: Mapping[int, str] = {1: "local", 2: "average", 3: "local", 4: "local"}


class Resting(Moving):
    """The head is trained, waits on the server, and comes back as a teacher."""

    modes: Mapping[int, str] = {1: "average", 2: "rest", 3: "rest", 4: "once"}

    def fit(self, ctx: FitContext) -> None:
        super().fit(ctx)
        head = ctx.networks["head"]
        wanted = {"average": True, "rest": False, "once": False}[str(ctx.plan["mode"])]
        assert head.training is wanted
        assert all(p.requires_grad is wanted for p in head.parameters())
        if ctx.plan["mode"] == "rest":
            assert float(head.bias) == 1.0, "a client must not see what the one before it has left"

    def server_update(self, ctx: ServerContext) -> None:
        if ctx.round == 3:
            with torch.no_grad():
                ctx.networks["head"].bias.mul_(2.0)


def evaluated(run: Run) -> list[list[float]]:
    """The head of every client by round."""
    return [[values["head"] for values in event["clients"].values()] for event in run.history.evaluations]


def traffic(run: Run) -> list[tuple[int, int]]:
    """Bytes of the head, down and up, by round."""
    found = [event["bytes"].get("head", {"down": 0, "up": 0}) for event in run.history.rounds]
    return [(sizes["down"], sizes["up"]) for sizes in found]


@pytest.fixture
def start(settings: Settings, samples: fedlab.Dataset) -> Callable[..., Run]:
    def run(method: type[Method], **changes: object) -> Run:
        until = changes.pop("until", None)
        rounds = {"federation__rounds": 4, "evaluation__every": 1, "tracking__checkpoint_every": 1}
        return fedlab.run(settings(**rounds, **changes), method=method, data=samples, until=until)

    return run


MEAN = 1111 / 4  # what a round of averaging adds to the head


def test_what_was_averaged_is_sent_once_when_it_becomes_local_and_kept_from_then_on(
    start: Callable[..., Run],
) -> None:
    run = start(Moving)
    common = 1 + 2 * MEAN
    assert evaluated(run) == [
        [1 + MEAN] * 4, [common] * 4,
        [common + 10**client for client in range(4)], [common + 2 * 10**client for client in range(4)],
    ]  # fmt: skip
    assert traffic(run) == [(4 * SIZE, 4 * SIZE), (4 * SIZE, 4 * SIZE), (4 * SIZE, 0), (0, 0)]


def test_a_client_that_joins_later_starts_from_what_was_averaged(start: Callable[..., Run]) -> None:
    run = start(Moving, federation__sampler={"name": "uniform", "fraction": 0.5}, seed=1)
    clients = [event["clients"] for event in run.history.rounds]
    assert clients[2] != clients[3], "another seed would have to be found"
    average = evaluated(run)[1][0]
    assert evaluated(run)[3] == [
        average + 10**client * sum(client in round for round in clients[2:]) for client in range(4)
    ]


def test_an_average_is_newer_than_what_a_client_had_before(start: Callable[..., Run]) -> None:
    run = start(Returning)
    assert evaluated(run) == [
        [1 + 10**client for client in range(4)], [1 + MEAN] * 4,
        [1 + MEAN + 10**client for client in range(4)], [1 + MEAN + 2 * 10**client for client in range(4)],
    ]  # fmt: skip
    assert traffic(run) == [(0, 0), (4 * SIZE, 4 * SIZE), (4 * SIZE, 0), (0, 0)]


def test_what_clients_have_trained_in_between_does_not_stay_in_what_is_sent_once(start: Callable[..., Run]) -> None:
    class Borrowed(Moving):
        modes: Mapping[int, str] = {1: "once", 2: "local", 3: "local", 4: "once"}

    run = start(Borrowed)
    assert evaluated(run)[3] == [1.0] * 4
    assert traffic(run) == [(4 * SIZE, 0), (0, 0), (0, 0), (0, 0)]


def test_resuming_within_the_local_stage_changes_nothing(start: Callable[..., Run], samples: fedlab.Dataset) -> None:
    whole, stopped = start(Moving), start(Moving, until=3)
    tensors, _ = load_checkpoint(stopped.checkpoint)
    assert f"shared/{START}head.bias" in tensors
    resumed = fedlab.resume(stopped.path, method=Moving, data=samples)
    assert evaluated(resumed) == evaluated(whole)
    states = [StateStore(run.folder.clients).latest(2) for run in (whole, resumed)]
    assert all(state is not None for state in states)
    assert {name: value.tolist() for name, value in states[0].items()} == {  # type: ignore[union-attr]
        name: value.tolist()
        for name, value in states[1].items()  # type: ignore[union-attr]
    }


def test_workers_start_from_it_too(start: Callable[..., Run], ray_workers: None) -> None:
    spread = start(Moving, engine={"name": "ray", "workers": 2, "chunk": 1})
    assert evaluated(spread) == evaluated(start(Moving))


def test_what_is_local_from_the_first_round_on_is_never_sent(start: Callable[..., Run]) -> None:
    class Local(Moving):
        modes = dict.fromkeys(range(1, 5), "local")

    run = start(Local)
    assert traffic(run) == [(0, 0)] * 4
    assert evaluated(run)[3] == [1 + 4 * 10**client for client in range(4)]


def test_what_rests_is_neither_sent_nor_trained_until_its_stage(start: Callable[..., Run]) -> None:
    run = start(Resting)
    assert traffic(run) == [(4 * SIZE, 4 * SIZE), (0, 0), (0, 0), (4 * SIZE, 0)]
    assert evaluated(run) == [[1 + MEAN] * 4, [1.0] * 4, [1.0] * 4, [2 * (1 + MEAN)] * 4]


class Uneven(Moving):
    """Counts by class, of as many classes as the client happens to know."""

    modes: Mapping[int, str] = dict.fromkeys(range(1, 5), "local")

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, np.ndarray]:
        return {"counts": np.ones(1 if float(ctx.networks["head"].bias) == 2 else 7)}  # after round 1, client 0 has 2

    def evaluation_values(self, sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
        return {"counts": float(sums["counts"].sum())}


def test_statistics_of_different_shapes_are_not_added_up(start: Callable[..., Run]) -> None:
    shapes = r"'counts' of client '\w+' has the shape \((1|7),\), that of client '\w+' has \((1|7),\)"
    with pytest.raises(FedLabError, match=shapes):
        start(Uneven)


def test_the_teacher_that_rested_teaches(start: Callable[..., Run]) -> None:
    """The stage after the rest sees the server's value on every client."""

    class Taught(Resting):
        def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
            return {"l": F.mse_loss(networks["body"](torch.ones(1, 1)), networks["head"](torch.ones(1, 4)))}

        def fit(self, ctx: FitContext) -> None:
            super().fit(ctx)
            if ctx.plan["mode"] == "once" and not ctx.preflight:
                assert float(ctx.networks["head"].bias) == 2 * (1 + MEAN)

    start(Taught)


# what checkpoints hold


class WithExpert(Moving):
    """The body never changes: every participant builds it, or it is sent once."""

    modes: Mapping[int, str] = {1: "average", 2: "average", 3: "once", 4: "once"}
    body = "frozen"

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        head = Group("head", ("head",), mode=plan["mode"], weight="uniform")  # type: ignore[arg-type]
        return head, Group("body", mode=self.body)  # type: ignore[arg-type]

    def fit(self, ctx: FitContext) -> None:
        if ctx.plan["mode"] == "average":
            with torch.no_grad():
                for p in ctx.networks["head"].parameters():
                    p.add_(float(10**ctx.client))


class WithSentExpert(WithExpert):
    body = "once"


@pytest.mark.parametrize("method", [WithExpert, WithSentExpert])
def test_checkpoints_hold_what_never_changes_once_and_what_is_sent_once_a_single_time(
    start: Callable[..., Run], method: type[Method]
) -> None:
    run = start(method)
    (beside,) = run.folder.checkpoints.glob("lasting_*")
    assert sorted(load_file(beside)) == ["network/body.bias", "network/body.weight"]
    for path in sorted(run.folder.checkpoints.glob("round_*")):
        assert sorted(load_file(path / "tensors.safetensors")) == ["network/head.bias", "network/head.weight"]
        tensors, _ = load_checkpoint(path)
        held = {name.removeprefix("shared/") for name in tensors if name.startswith("shared/network/")}
        assert all(torch.equal(tensors[f"shared/{name}"], tensors[name]) for name in held)
        sent = {"network/head.bias", "network/head.weight"} if path.name >= "round_000003" else set()
        assert held == sent | ({"network/body.bias", "network/body.weight"} if method is WithSentExpert else set())
    assert torch.equal(run.model["head"].bias, torch.tensor([1 + 2 * MEAN]))


@pytest.mark.parametrize("until", [2, 3])
@pytest.mark.parametrize("method", [WithExpert, WithSentExpert])
def test_a_run_goes_on_from_a_checkpoint_without_them(
    start: Callable[..., Run], samples: fedlab.Dataset, method: type[Method], until: int
) -> None:
    whole, stopped = start(method), start(method, until=until)
    resumed = fedlab.resume(stopped.path, method=method, data=samples)
    assert evaluated(resumed) == evaluated(whole)
    assert traffic(resumed) == traffic(whole)
    ends = [load_checkpoint(run.checkpoint)[0] for run in (whole, resumed)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
