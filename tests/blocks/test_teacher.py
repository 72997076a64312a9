from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedlab.blocks.teacher import EmaTeacher, Sync
from fedlab.distill.schedules import cosine
from fedlab.method import ClientState, Group, Step

STEPS = 3


class Net(nn.Module):
    """A linear layer with BatchNorm: float buffers and an integer one."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.body(x))
        return out


def make_networks(seed: int = 0) -> nn.ModuleDict:
    torch.manual_seed(seed)
    student = Net()
    teacher = Net()
    teacher.load_state_dict(student.state_dict())
    return nn.ModuleDict({"student": student, "teacher": teacher.requires_grad_(False), "centers": nn.BatchNorm1d(2)})


class Client:
    """A client whose student is moved by hand."""

    def __init__(self, teacher: EmaTeacher, networks: nn.ModuleDict, plan: dict[str, Any] | None = None) -> None:
        self.teacher, self.networks = teacher, networks
        self.scratch: dict[str, Any] = {}
        self.state = ClientState()
        self.plan = plan or {}
        self.ctx: Any = SimpleNamespace(networks=networks, scratch=self.scratch, state=self.state)

    def begin(self) -> None:
        self.scratch.clear()
        self.teacher.begin(self.ctx)

    def step(self, index: int, round: int = 1, rounds: int = 2) -> Step:
        at = (round - 1) * STEPS + index
        return Step(round, 0, index, STEPS, at, STEPS * rounds, self.plan, {}, self.scratch, lambda name, value: None)

    def walk(self, direction: float, round: int = 1, rounds: int = 2) -> list[dict[str, Tensor]]:
        """Steps of a round, each by `direction` in every parameter; returns the student after each."""
        seen = []
        for index in range(STEPS):
            with torch.no_grad():
                for p in self.networks["student"].parameters():
                    p += direction * (index + 1)
            self.teacher.after_step(self.networks, self.step(index, round, rounds))
            seen.append(weights(self.networks["student"]))
        return seen


def part(networks: nn.ModuleDict, role: str) -> Any:
    """A network whose layers can be read and changed."""
    return networks[role]


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def followed(start: dict[str, Tensor], path: list[dict[str, Tensor]], momenta: list[float]) -> dict[str, Tensor]:
    """The formula: θ_t ← m θ_t + (1 − m) θ_s along a path of students."""
    for student, m in zip(path, momenta, strict=True):
        start = {name: m * start[name] + (1 - m) * student[name] for name in start}
    return start


def server(teacher: EmaTeacher, networks: nn.ModuleDict, steps: list[float], **fields: Any) -> None:
    """The server's work after a round in which the clients took so many steps."""
    results = {client: {"steps": torch.tensor(count)} for client, count in enumerate(steps)}
    context: Any = SimpleNamespace(
        **{"networks": networks, "results": results, "plan": {}, "round": 1, "rounds": 2} | fields
    )
    teacher.server_update(context)


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor], atol: float = 1e-6) -> None:
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=atol, rtol=0)


def schedule(step: float, total: float) -> float:
    return cosine(step, total, 0.5, 1.0)


# what travels


@pytest.mark.parametrize(
    ("sync", "teacher_mode", "centers_mode"),
    [
        ("average", "average", "average"),
        ("server_ema", "server", "average"),
        ("reset", "local", "average"),
        ("local", "local", "local"),
        ("frozen", "once", "average"),
    ],
)
def test_groups(sync: Sync, teacher_mode: Any, centers_mode: Any) -> None:
    found = EmaTeacher(sync, 0.9, beside=("centers",), buffers="local").groups()
    assert found == (
        Group("teacher", ("teacher",), teacher_mode, buffers="local"),
        Group("centers", ("centers",), centers_mode),
    )


@pytest.mark.parametrize("sync", ["average", "server_ema", "reset", "local"])
def test_a_teacher_that_waits_rests_on_the_server(sync: Sync) -> None:
    found = EmaTeacher(sync, 0.9, beside=("centers",)).groups(resting=True)
    assert [group.mode for group in found] == ["rest", "rest"]
    assert [group.name for group in found] == ["teacher", "centers"]


def test_only_the_trained_members_travel() -> None:
    (group,) = EmaTeacher("server_ema", 0.9, members=("body", "norm.weight")).groups()
    assert group.members == ("teacher.body", "teacher.norm.weight")


# average


def test_on_a_client_the_teacher_follows_along_the_schedule_of_the_run() -> None:
    teacher, networks = EmaTeacher("average", schedule), make_networks()
    client, start = Client(teacher, networks), weights(networks["teacher"])
    client.begin()
    path = client.walk(0.1, round=2)
    momenta = [cosine(at, 6, 0.5, 1.0) for at in (3, 4, 5)]
    assert_equal(weights(networks["teacher"]), followed(start, path, momenta))
    assert teacher.result(client.ctx) == {}


def test_inside_a_stage_the_schedule_counts_the_steps_of_the_stage() -> None:
    networks = make_networks()
    client = Client(EmaTeacher("average", schedule), networks, {"stage": "b", "stage_round": 1, "stage_rounds": 1})
    start = weights(networks["teacher"])
    path = client.walk(0.1, round=2)
    assert_equal(weights(networks["teacher"]), followed(start, path, [cosine(at, 3, 0.5, 1.0) for at in (0, 1, 2)]))


def test_the_averaged_teacher_follows_the_averaged_student() -> None:
    """Averaging and following are linear, so it is exact for equal steps with equal m."""
    start = weights(make_networks()["teacher"])
    teachers, paths = [], []
    for direction in (0.3, -0.2):
        networks = make_networks()
        paths.append(Client(EmaTeacher("average", schedule), networks).walk(direction))
        teachers.append(weights(networks["teacher"]))
    averaged = {name: (teachers[0][name] + teachers[1][name]) / 2 for name in start}
    path = [{name: (one[name] + other[name]) / 2 for name in one} for one, other in zip(*paths, strict=True)]
    assert_equal(averaged, followed(start, path, [cosine(at, 6, 0.5, 1.0) for at in range(3)]))


# server_ema


def test_the_server_moves_as_far_as_one_client_with_a_constant_student() -> None:
    m = 0.7
    networks = make_networks()
    with torch.no_grad():
        part(networks, "student").body.weight.add_(1.0)
    alone = copy.deepcopy(networks)
    Client(EmaTeacher("average", m), alone).walk(0.0)
    teacher = EmaTeacher("server_ema", m)
    client = Client(teacher, networks)
    client.begin()
    before = weights(networks["teacher"])
    client.walk(0.0)
    assert_equal(weights(networks["teacher"]), before, atol=0)  # clients use it as it was sent
    sent = teacher.result(client.ctx)
    assert float(sent["steps"]) == STEPS
    server(teacher, networks, [float(sent["steps"])])
    assert_equal(weights(networks["teacher"]), weights(alone["teacher"]))


def test_the_server_takes_the_mean_number_of_steps_and_the_momentum_at_the_middle_of_the_round() -> None:
    networks = make_networks()
    start = weights(networks["teacher"])
    with torch.no_grad():
        part(networks, "student").body.weight.add_(1.0)
    server(EmaTeacher("server_ema", schedule), networks, [2.0, 5.0], round=2, rounds=4)
    m = cosine(3, 8, 0.5, 1.0) ** 3.5
    assert_equal(weights(networks["teacher"]), followed(start, [weights(networks["student"])], [m]))
    networks = make_networks()
    with torch.no_grad():
        part(networks, "student").body.weight.add_(1.0)
    plan = {"stage": "b", "stage_round": 1, "stage_rounds": 3}
    server(EmaTeacher("server_ema", schedule), networks, [2.0], round=2, rounds=4, plan=plan)
    m = cosine(1, 6, 0.5, 1.0) ** 2
    assert_equal(weights(networks["teacher"]), followed(start, [weights(networks["student"])], [m]))


def test_without_clients_the_servers_teacher_stays() -> None:
    networks = make_networks()
    before = weights(networks["teacher"])
    with torch.no_grad():
        part(networks, "student").body.weight.add_(1.0)
    server(EmaTeacher("server_ema", 0.5), networks, [])
    assert_equal(weights(networks["teacher"]), before, atol=0)


# reset and local


def test_reset_starts_every_round_with_the_student() -> None:
    networks, teacher = make_networks(), EmaTeacher("reset", 0.9)
    client = Client(teacher, networks)
    for round in (1, 2):
        client.begin()
        assert_equal(weights(networks["teacher"]), weights(networks["student"]), atol=0)
        client.walk(0.1, round)
        assert not torch.equal(part(networks, "teacher").body.weight, part(networks, "student").body.weight)
    assert teacher.result(client.ctx) == {}
    server(teacher, networks, [])
    assert_equal(weights(networks["teacher"]), weights(networks["student"]), atol=0)


def test_local_follows_on_the_client_and_the_server_moves_one_of_its_own() -> None:
    networks, teacher = make_networks(), EmaTeacher("local", 0.9)
    client, start = Client(teacher, networks), weights(networks["teacher"])
    client.begin()
    path = client.walk(0.1)
    assert_equal(weights(networks["teacher"]), followed(start, path, [0.9] * STEPS))
    assert float(teacher.result(client.ctx)["steps"]) == STEPS
    at_server = make_networks()
    with torch.no_grad():
        part(at_server, "student").body.weight.add_(1.0)
    server(teacher, at_server, [3.0])
    assert_equal(weights(at_server["teacher"]), followed(start, [weights(at_server["student"])], [0.9**3]))


def test_frozen_never_changes() -> None:
    networks, teacher = make_networks(), EmaTeacher("frozen", 0.5, copies=True)
    client, start = Client(teacher, networks), weights(networks["teacher"])
    client.begin()
    client.walk(0.1)
    teacher.end(client.ctx)
    server(teacher, networks, [3.0])
    assert_equal(weights(networks["teacher"]), start, atol=0)
    assert teacher.result(client.ctx) == {}
    assert not client.state


# copies


def test_a_copy_moves_during_the_round_and_is_dropped() -> None:
    networks, teacher = make_networks(), EmaTeacher("server_ema", 0.9, copies=True, evaluating=True)
    client, start = Client(teacher, networks), weights(networks["teacher"])
    client.begin()
    path = client.walk(0.1)
    own = teacher.of(networks, client.step(0))
    assert not own.training
    assert_equal(weights(own), followed(start, path, [0.9] * STEPS))
    assert_equal(weights(networks["teacher"]), start, atol=0)
    teacher.end(client.ctx)
    assert not client.state
    client.begin()
    assert_equal(weights(teacher.of(networks, client.step(0))), start, atol=0)


def test_a_kept_copy_goes_on_where_it_was() -> None:
    networks, teacher = make_networks(), EmaTeacher("local", 0.9, members=("body",), copies=True)
    client, start = Client(teacher, networks), weights(networks["teacher"])
    assert teacher.groups()[0].mode == "once"
    path = []
    for round in (1, 2):
        client.begin()
        path += client.walk(0.1, round)
        teacher.end(client.ctx)
    assert len(client.state["teacher"]) == 3 * 2 + 2  # the parameters of the trained members
    client.begin()
    own = weights(teacher.of(networks, client.step(0)))
    expected = followed(start, path, [0.9] * 2 * STEPS)
    assert_equal(
        {n: v for n, v in own.items() if n.startswith("body")},
        {n: v for n, v in expected.items() if n.startswith("body")},
    )
    assert_equal(
        {n: v for n, v in own.items() if n.startswith("norm")}, {n: v for n, v in start.items() if n.startswith("norm")}
    )
    assert teacher.result(client.ctx) == {}


@pytest.mark.parametrize("sync", ["average", "reset"])
def test_copies_need_a_policy_that_keeps_or_drops_them(sync: Sync) -> None:
    with pytest.raises(ValueError, match=sync):
        EmaTeacher(sync, 0.9, copies=True)


# buffers and modes


def test_on_a_client_running_statistics_are_the_teachers_own() -> None:
    """In training mode they follow its forward passes; following the student's weights does not touch them."""
    networks, teacher = make_networks(), EmaTeacher("average", 0.0)
    client = Client(teacher, networks)
    part(networks, "student").norm.running_mean.fill_(5.0)
    teacher.set_modes(networks)
    networks["teacher"](torch.ones(4, 3))
    own = part(networks, "teacher").norm.running_mean.clone()
    assert own.abs().sum() > 0
    client.walk(0.1)
    assert torch.equal(part(networks, "teacher").norm.running_mean, own)
    assert int(part(networks, "teacher").norm.num_batches_tracked) == 1


def test_evaluation_mode_where_it_is_asked_for() -> None:
    networks = make_networks()
    EmaTeacher("average", 0.9, evaluating=True).set_modes(networks.train())
    assert not networks["teacher"].training
    assert networks["student"].training
    EmaTeacher("server_ema", 0.9).set_modes(networks.eval())
    assert networks["teacher"].training
    assert not networks["student"].training


@pytest.mark.parametrize(("buffers", "expected"), [("average", 0.9**2 * 0.0 + (1 - 0.9**2) * 5.0), ("local", 0.0)])
def test_where_the_server_moves_a_teacher_its_running_statistics_follow(buffers: Any, expected: float) -> None:
    networks = make_networks()
    part(networks, "student").norm.running_mean.fill_(5.0)
    part(networks, "student").norm.num_batches_tracked.fill_(7)
    server(EmaTeacher("server_ema", 0.9, buffers=buffers), networks, [2.0])
    assert part(networks, "teacher").norm.running_mean.tolist() == pytest.approx([expected] * 2)
    assert int(part(networks, "teacher").norm.num_batches_tracked) == 0


# warnings


def config(local_steps: int | None, rounds: int) -> Any:
    return SimpleNamespace(training=SimpleNamespace(local_steps=local_steps), federation=SimpleNamespace(rounds=rounds))


def test_a_teacher_that_hardly_moves_is_told() -> None:
    teacher = EmaTeacher("average", 0.99)
    assert teacher.warnings(config(30, 10)) == []  # 300 · 0.01 = 3
    (text,) = teacher.warnings(config(29, 10))
    assert "2.9 over the 290 steps" in text
    assert "6%" in text
    assert teacher.warnings(config(29, 10), rounds=5)[0].count("145 steps")
    assert math.isclose(math.exp(-2.9), 0.055, abs_tol=1e-3)


def test_a_rising_momentum_is_summed_over_its_schedule() -> None:
    """A cosine from 0.9 to 1 has the mean 0.95."""
    teacher = EmaTeacher("local", lambda step, total: cosine(step, total, 0.9, 1.0))
    assert teacher.warnings(config(1, 61)) == []
    assert "2.9 over the 58 steps" in teacher.warnings(config(1, 58))[0]
    assert "59 steps" in teacher.warnings(config(59, 1))[0]


def test_no_warning_where_the_teacher_does_not_last_or_steps_are_unknown() -> None:
    assert EmaTeacher("reset", 0.99).warnings(config(1, 1)) == []
    assert EmaTeacher("frozen", 0.99).warnings(config(1, 1)) == []
    assert EmaTeacher("average", 0.99).warnings(config(None, 1)) == []
