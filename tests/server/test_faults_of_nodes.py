"""Nodes that are away, lost, silent or broken: what happens is what docs/participation.md says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import Message

import fedlab
from fedlab.config import Config
from fedlab.errors import ConfigError, DiskFullError, FedLabError, MachineError
from fedlab.storage.checkpoint import load_checkpoint
from fedlab.storage.runfolder import write_atomic
from tests.server.nodes import CRASHED, LOST, SILENT, TWICE, Deployment, Nodes, clients, count, counts

Settings = Callable[..., Config]
CLIENTS = 3


# nodes that are away


def away_in_round_2(nodes: Nodes, client: int) -> None:
    """The node goes away when round 1 has been evaluated, and is back when round 2 has been."""

    def fate(of: int, kind: str, round: int, message: Message) -> str:
        if of == 0 and kind == "evaluate" and "sums" in message.content:  # the last reply of the phase
            (nodes.online.discard if round == 1 else nodes.online.add)(nodes.node(client))
        return ""

    nodes.fate = fate


def test_a_node_that_is_away_is_sent_nothing_and_takes_part_again_when_it_is_back(
    small: Settings, deployment: Deployment
) -> None:
    nodes = deployment.submitted(small(), CLIENTS)
    away_in_round_2(nodes, 2)
    run = deployment.serve(nodes)
    assert clients(run) == [[0, 1, 2], [0, 1], [0, 1, 2]]
    assert (2, "train", 2) not in nodes.sent
    assert (2, "evaluate", 2) not in nodes.sent
    assert deployment.clock.now == 0, "nobody is waited for"
    assert count(run, "clients to choose from: their nodes were not connected") == 1
    assert count(run, "evaluations of clients: its node was not connected") == 1
    told = [(event["client"], event["connected"]) for event in run.history.of("connection")]
    names = [event["clients"] for event in run.history.evaluations]
    missing = set(names[0]) - set(names[1])
    assert told == [(missing.pop(), False), (told[0][0], True)]


def test_who_is_chosen_depends_on_seed_round_and_who_is_there(small: Settings, deployment: Deployment) -> None:
    def chosen(token: str, away: int | None) -> list[list[int]]:
        config = small(federation__sampler={"name": "uniform", "fraction": 0.67}, federation__rounds=4)
        nodes = deployment.submitted(config, CLIENTS, token=token)
        if away is not None:
            away_in_round_2(nodes, away)
        return clients(deployment.serve(nodes))

    first, second, whole = chosen("a", 1), chosen("b", 1), chosen("c", None)
    assert first == second
    assert first[1] == [0, 2]
    assert [first[0], *first[2:]] == [whole[0], *whole[2:]]
    assert all(len(round) == 2 for round in whole)


def test_with_stop_the_server_waits_for_a_node_that_comes_back(small: Settings, deployment: Deployment) -> None:
    config = small(federation__on_client_error="stop", federation__timeout=60)
    nodes = deployment.submitted(config, CLIENTS)
    away_in_round_2(nodes, 1)

    def back_after_30_seconds() -> None:
        if deployment.clock.now > 30:
            nodes.online.add(nodes.node(1))

    nodes.looks = back_after_30_seconds
    run = deployment.serve(nodes)
    assert clients(run) == [[0, 1, 2]] * 3
    assert counts(run) == {}
    assert [event["connected"] for event in run.history.of("connection")] == [False, True]


@pytest.mark.parametrize(("policy", "fewest"), [("stop", 1), ("skip", 3)])
def test_nobody_is_waited_for_longer_than_the_timeout_and_all_rounds_are_kept(
    policy: str, fewest: int, small: Settings, deployment: Deployment
) -> None:
    config = small(federation__on_client_error=policy, federation__timeout=60, federation__min_clients=fewest)
    whole = fedlab.run(config)
    nodes = deployment.submitted(config, CLIENTS)
    away_in_round_2(nodes, 1)
    with pytest.raises(MachineError, match=r"federation\.timeout = 60[\s\S]*3 connected clients .* round 2, 2 were"):
        deployment.serve(nodes)
    assert 60 <= deployment.clock.now <= 62
    begun = deployment.run(nodes)
    assert begun.history.end["status"] == "failed"
    resumed = deployment.serve(deployment.submitted(config, CLIENTS, resume=begun.path.name))
    assert resumed.history.start["resumed"] == 1
    ours, theirs = load_checkpoint(resumed.checkpoint)[0], load_checkpoint(whole.checkpoint)[0]
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_node_that_comes_back_under_another_id_is_recognized(small: Settings, deployment: Deployment) -> None:
    """A SuperLink that does not know nodes by their keys gives a new id to every process."""
    nodes = deployment.submitted(small(), CLIENTS)
    first = nodes.node(2)

    def gone_after_round_1(of: int, kind: str, round: int, message: Message) -> str:
        if (of, kind, round) == (0, "evaluate", 1):
            nodes.online.discard(first)
        return ""

    def back_after_round_2() -> None:
        if (0, "evaluate", 2) in nodes.sent and first in nodes.client_of:
            nodes.client_of[4242] = nodes.client_of.pop(first)
            nodes.online.add(4242)

    nodes.fate, nodes.looks = gone_after_round_1, back_after_round_2
    run = deployment.serve(nodes)
    assert clients(run) == [[0, 1, 2], [0, 1], [0, 1, 2]]


def test_a_client_that_comes_late_is_not_taken_in(
    small: Settings, deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = deployment.submitted(small(), CLIENTS, expected=2)
    late = nodes.node(2)
    nodes.online.discard(late)

    def fate(of: int, kind: str, round: int, message: Message) -> str:
        if (of, kind, round) == (0, "evaluate", 1):
            nodes.online.add(late)
            nodes.online.discard(nodes.node(1))
        return ""

    nodes.fate = fate
    run = deployment.serve(nodes)
    assert clients(run) == [[0, 1], [0], [0]]
    assert caplog.text.count("has connected; the run began without it and goes on so") == 1


# nodes that are lost in mid-round


@pytest.mark.parametrize(
    ("fate", "words"),
    [
        (LOST, "local trainings: its node was lost before it answered"),
        (CRASHED, "local trainings: the client failed"),
        (SILENT, "local trainings: the client did not answer within federation.timeout"),
    ],
)
def test_a_round_counts_with_the_clients_that_answered(
    fate: str, words: str, small: Settings, deployment: Deployment
) -> None:
    nodes = deployment.submitted(small(federation__min_clients=2), CLIENTS)
    nodes.fate = lambda client, kind, round, message: fate if (client, kind, round) == (1, "train", 2) else ""
    run = deployment.serve(nodes)
    assert clients(run) == [[0, 1, 2], [0, 2], [0, 1, 2]]
    assert nodes.sent.count((1, "train", 2)) == 1
    assert count(run, words) == 1


def test_with_too_few_answers_the_others_are_asked_once_more(small: Settings, deployment: Deployment) -> None:
    config = small(federation__min_clients=3, federation__strategy={"name": "scaffold"})
    nodes, lost = deployment.submitted(config, CLIENTS), [LOST, ""]

    def fate(client: int, kind: str, round: int, message: Message) -> str:
        return (lost.pop(0) if lost else "") if (client, kind, round) == (1, "train", 2) else ""

    nodes.fate = fate
    run = deployment.serve(nodes)
    assert clients(run) == [[0, 1, 2]] * 3
    assert [nodes.sent.count((client, "train", 2)) for client in range(3)] == [1, 2, 1]
    assert counts(run) == {}
    whole = fedlab.run(config)
    ours, theirs = load_checkpoint(run.checkpoint)[0], load_checkpoint(whole.checkpoint)[0]
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_round_that_has_too_few_answers_twice_ends_the_run(small: Settings, deployment: Deployment) -> None:
    nodes = deployment.submitted(small(federation__min_clients=3), CLIENTS)
    nodes.fate = lambda client, kind, round, message: CRASHED if (client, kind, round) == (1, "train", 3) else ""
    with pytest.raises(FedLabError, match=r"2 of 3 clients answered in round 3, phase train, also after a second"):
        deployment.serve(nodes)
    run = deployment.run(nodes)
    assert len(run.history.rounds) == 2
    assert load_checkpoint(run.checkpoint)[1]["round"] == 2


def test_one_answer_counts_once(small: Settings, deployment: Deployment) -> None:
    runs = []
    for fate in ("", TWICE):
        nodes = deployment.submitted(small(), CLIENTS, token=f"t{len(runs)}")
        nodes.fate = lambda client, kind, round, message, fate=fate: fate  # type: ignore[misc]  # bound on purpose
        runs.append(deployment.serve(nodes))
    first, second = (load_checkpoint(run.checkpoint)[0] for run in runs)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert clients(runs[1]) == [[0, 1, 2]] * 3


def test_min_clients_is_refused_where_it_cannot_work(small: Settings) -> None:
    with pytest.raises(ConfigError, match=r"min_clients = 4\n  expected: at most 3"):
        fedlab.run(small(federation__min_clients=4))
    with pytest.raises(ConfigError, match=r"min_clients = 2\n  expected: 1 with on_client_error: stop"):
        fedlab.run(small(federation__min_clients=2, federation__on_client_error="stop"))


def test_a_simulation_heeds_min_clients_too(
    settings: Settings, samples: fedlab.Dataset, plain: type[fedlab.Method]
) -> None:
    config = settings(method__fail=2, federation__on_client_error="skip", federation__min_clients=3)
    assert len(fedlab.run(config, method=plain, data=samples).history.rounds) == 3
    config = settings(method__fail=2, federation__on_client_error="skip", federation__min_clients=4)
    with pytest.raises(FedLabError, match=r"3 of 4 clients answered in round 2, phase train: the round does not count"):
        fedlab.run(config, method=plain, data=samples)


# what runs in a simulation runs deployed


@pytest.mark.parametrize(
    "changes",
    [
        {"exchange__compression": [{"name": "quantize"}]},
        {"federation__strategy": {"name": "fednova"}},
        {"federation__strategy": {"name": "flower.FedMedian"}},
        {"federation__strategy": {"name": "feddyn"}, "exchange__local": ["norm"]},
        {"privacy": {"name": "central"}, "federation__on_client_error": "stop", "exchange__local": ["norm"]},
        {
            "federation__mode": "asynchronous",
            "federation__asynchronous": {"concurrency": 2, "buffer": 2},
            "federation__devices": {"speed": 200},
        },
    ],
    ids=["quantize", "fednova", "median", "feddyn", "central", "fedbuff"],
)
def test_it_equals_the_simulation(changes: dict[str, object], small: Settings, deployment: Deployment) -> None:
    config = small(federation__rounds=2, **changes)
    ours = load_checkpoint(deployment.serve(deployment.submitted(config, CLIENTS)).checkpoint)[0]
    theirs = load_checkpoint(fedlab.run(config).checkpoint)[0]
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_strategy_of_flowers_does_not_wait_for_ever_either(small: Settings, deployment: Deployment) -> None:
    median = {"name": "flower.FedMedian", "min_available_nodes": 3}
    nodes = deployment.submitted(small(federation__strategy=median, federation__timeout=60), CLIENTS)
    away_in_round_2(nodes, 1)
    with pytest.raises(MachineError, match=r"3 connected clients .* in round 2, 2 were"):
        deployment.serve(nodes)
    two = {"name": "flower.FedMedian", "min_available_nodes": 2}
    again = deployment.submitted(small(federation__strategy=two), CLIENTS, token="two")
    away_in_round_2(again, 1)
    assert clients(deployment.serve(again)) == [[0, 1, 2], [0, 2], [0, 1, 2]]


def test_a_full_disk_on_a_node_is_an_error_of_its_client(
    small: Settings, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes, **options: bool) -> None:
        if "node1" in path.parts and path.stem == "000002":
            raise DiskFullError(path.parent)
        write_atomic(path, data, **options)

    monkeypatch.setattr("fedlab.clients.state.write_atomic", full)
    nodes = deployment.submitted(small(federation__strategy={"name": "scaffold"}), CLIENTS)
    run = deployment.serve(nodes)
    assert clients(run) == [[0, 1, 2], [0, 2], [0, 1, 2]]
    assert any("client 1 failed in round 2" in text and "the disk is full" in text for text in run.history.warnings)
    held = sorted(path.stem for path in (deployment.folder / "node1").rglob("*.state"))
    assert held == ["000001", "000003"], "the round after it began with the state before it"
