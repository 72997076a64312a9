"""Nodes that are away, lost, silent or broken, and replies that cannot be used: what happens is what is documented."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord

import fedlab
from fedlab.config import Config
from fedlab.errors import ClientError, ConfigError, DiskFullError, FedLabError, MachineError
from fedlab.protocol.encoding import ENCODED, ENCODING
from fedlab.protocol.messages import ARRAYS, METRICS, NUM_EXAMPLES, STATE, SUM, SUMS, array_record, to_numpy, to_record
from fedlab.storage.checkpoint import load_checkpoint
from fedlab.storage.runfolder import write_atomic
from fedlab.tracking import History
from tests.server.nodes import CRASHED, LOST, SILENT, TWICE, Deployment, Nodes

Settings = Callable[..., Config]
CLIENTS, ROUNDS = 3, 3
NAMES = ["client 0", "client 1", "client 2"]


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    return Deployment(tmp_path / "deployment", monkeypatch)


@pytest.fixture
def small(settings: Settings) -> Settings:
    def make(**changes: object) -> Config:
        return settings(
            **{
                "data__source": {"name": "shifted_digits", "train_per_class": 2, "test_size": 12},
                "data__partition": [{"name": "iid", "clients": CLIENTS}],
                "federation__rounds": ROUNDS,
                "federation__on_client_error": "skip",
                **changes,
            }
        )

    return make


def clients(run: fedlab.Run) -> list[list[int]]:
    return [event["clients"] for event in run.history.rounds]


def counts(run: fedlab.Run) -> dict[str, float]:
    """What rounds have left out."""
    rounds = [event for event in run.history.of("left_out") if event.get("round") is not None]
    return {f"{left.what}: {left.why}": left.count for left in History(rounds).left_out}


def count(run: fedlab.Run, words: str) -> float:
    (found,) = [value for text, value in counts(run).items() if words in text]
    return found


def in_phase(kind: str, *rounds: int) -> Callable[[str, int], bool]:
    return lambda of, round: of == kind and round in rounds


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


# replies that cannot be used

Spoil = Callable[[Message], None]


def arrays_of(message: Message) -> dict[str, np.ndarray]:
    record = array_record(message.content, ARRAYS)
    assert record is not None
    return to_numpy(record, copy=True)


def with_arrays(change: Callable[[dict[str, np.ndarray], str], None]) -> Spoil:
    def spoil(message: Message) -> None:
        arrays = arrays_of(message)
        change(arrays, min(arrays))
        message.content[ARRAYS] = to_record(arrays)

    return spoil


def with_metrics(**metrics: float) -> Spoil:
    def spoil(message: Message) -> None:
        message.content[METRICS] = MetricRecord({name.replace("_", "-"): value for name, value in metrics.items()})

    return spoil


def no_metrics(message: Message) -> None:
    del message.content[METRICS]


def pose_as_the_engine(message: Message) -> None:
    message.content[SUM] = ArrayRecord()


def garbled(message: Message) -> None:
    record = message.content[ARRAYS]
    assert isinstance(record, ArrayRecord)
    fresh = ArrayRecord()
    for name, array in record.items():
        fresh[name] = Array(array.dtype, array.shape, array.stype, array.data[:-7])
    message.content[ARRAYS] = fresh


def other_codec(message: Message) -> None:
    message.content[ENCODING] = ConfigRecord({"chain": '[{"name": "os:system"}]', "updates": "[]"})
    message.content[ENCODED] = to_record({"values:x": np.ones(1)})


def no_version(message: Message) -> None:
    message.content[STATE] = ConfigRecord({"version": "the newest"})


SPOILT: dict[str, tuple[Spoil, str]] = {
    "nan": (with_arrays(lambda a, name: a[name].reshape(-1).__setitem__(0, np.nan)), r"array '.*' holds values that"),
    "inf": (with_arrays(lambda a, name: a[name].reshape(-1).__setitem__(0, -np.inf)), r"array '.*' holds values that"),
    "huge": (with_arrays(lambda a, name: a[name].reshape(-1).__setitem__(0, 1e30)), r"not finite numbers below 2048"),
    "shape": (with_arrays(lambda a, name: a.update({name: a[name].reshape(-1)[:1]})), r"as float32\[1\], expected"),
    "dtype": (with_arrays(lambda a, name: a.update({name: a[name].astype(np.float64)})), r"comes as float64\["),
    "missing": (with_arrays(lambda a, name: (a.pop(name), None)[1]), r"the reply lacks 1 of \d+ arrays, such as '"),
    "extra": (with_arrays(lambda a, name: a.update(more=np.ones(3))), r"an array 'more' that the client was not sent"),
    "negative": (with_metrics(num_examples=-1), r"no whole number ≥ 0"),
    "fraction": (with_metrics(num_examples=0.5), r"no whole number ≥ 0"),
    "not a number": (with_metrics(num_examples=float("nan")), r"no whole number ≥ 0"),
    "too many": (with_metrics(num_examples=10**9), r"larger than the number that the client's profile states"),
    "uncounted": (with_metrics(loss=1.0), r"is missing or no whole number"),
    "no metrics": (no_metrics, r"lacks the record 'metrics'"),
    "forged sum": (pose_as_the_engine, r"a record 'fedlab\.sum', which no client sends"),
    "another codec": (other_codec, r"compressed in another way than exchange\.compression says"),
    "no version": (no_version, r"the record 'fedlab\.state' holds no version"),
    "garbled": (garbled, r"the reply cannot be read \(\w+Error\)"),
}


def spoiling(spoil: Spoil, client: int, kind: str, round: int) -> Callable[[int, str, int, Message], str]:
    def fate(of: int, what: str, when: int, message: Message) -> str:
        if (of, what, when) == (client, kind, round) and METRICS in message.content:
            spoil(message)
        return ""

    return fate


@pytest.mark.parametrize("what", SPOILT)
def test_a_reply_that_cannot_be_used_is_an_error_of_its_client(
    what: str, small: Settings, deployment: Deployment
) -> None:
    spoil, words = SPOILT[what]
    nodes = deployment.submitted(small(federation__rounds=2, federation__on_client_error="stop"), CLIENTS)
    nodes.fate = spoiling(spoil, 1, "train", 2)
    with pytest.raises(ClientError, match=rf"client 1 failed in round 2, phase train \(.*\):\n.*{words}"):
        deployment.serve(nodes)


def test_the_replies_of_the_others_count(small: Settings, deployment: Deployment) -> None:
    lost = deployment.submitted(small(), CLIENTS, token="a")
    lost.fate = lambda client, kind, round, message: LOST if (client, kind) == (1, "train") and round > 1 else ""
    expected = load_checkpoint(deployment.serve(lost).checkpoint)[0]
    nodes, names = deployment.submitted(small(), CLIENTS, token="b"), iter(random.Random(0).sample(sorted(SPOILT), 2))

    def fate(client: int, kind: str, round: int, message: Message) -> str:
        if (client, kind) == (1, "train") and round > 1 and METRICS in message.content:
            SPOILT[next(names)][0](message)
        return ""

    nodes.fate = fate
    run = deployment.serve(nodes)
    found = load_checkpoint(run.checkpoint)[0]
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    assert clients(run) == [[0, 1, 2], [0, 2], [0, 2]]
    assert count(run, "local trainings: what the client sent cannot be used") == 2


def test_sums_of_an_evaluation_that_do_not_fit_the_others_are_left_out(small: Settings, deployment: Deployment) -> None:
    def other_shapes(message: Message) -> None:
        record = message.content[SUMS]
        assert isinstance(record, ArrayRecord)
        sums = to_numpy(record, copy=True)
        message.content[SUMS] = to_record({name: np.zeros((*values.shape, 2)) for name, values in sums.items()})

    nodes = deployment.submitted(small(federation__rounds=1), CLIENTS)
    nodes.fate = spoiling(other_shapes, 0, "evaluate", 1)
    run = deployment.serve(nodes)
    assert len(run.metrics["clients"]) == 2
    assert count(run, "evaluations of clients: what the client sent cannot be used") == 1
    stopping = deployment.submitted(small(federation__rounds=1, federation__on_client_error="stop"), CLIENTS, token="c")
    stopping.fate = nodes.fate
    with pytest.raises(ClientError, match=r"client 0 failed in round 1, phase evaluate .*\n.*most clients' has"):
        deployment.serve(stopping)


def test_a_simulation_refuses_weights_that_are_not_finite_whatever_the_strategy(
    settings: Settings, samples: fedlab.Dataset, plain: type[fedlab.Method]
) -> None:
    config = settings(
        method__nan=3, federation__strategy={"name": "flower.FedMedian"}, federation__on_client_error="skip"
    )
    run = fedlab.run(config, method=plain, data=samples)
    assert clients(run) == [[0, 1, 2, 3], [0, 1, 2], [0, 1, 2, 3]]


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


def test_records_that_are_no_configuration_do_not_end_the_run(small: Settings, deployment: Deployment) -> None:
    def nonsense(message: Message) -> None:
        message.content[METRICS] = ConfigRecord({NUM_EXAMPLES: "many"})

    nodes = deployment.submitted(small(federation__rounds=1), CLIENTS)
    nodes.fate = spoiling(nonsense, 2, "train", 1)
    assert clients(deployment.serve(nodes)) == [[0, 1]]


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
    def full(path: Path, data: bytes, *, durable: bool = True) -> None:
        if "node1" in path.parts and path.stem == "000002":
            raise DiskFullError(path.parent)
        write_atomic(path, data, durable=durable)

    monkeypatch.setattr("fedlab.clients.state.write_atomic", full)
    nodes = deployment.submitted(small(federation__strategy={"name": "scaffold"}), CLIENTS)
    run = deployment.serve(nodes)
    assert clients(run) == [[0, 1, 2], [0, 2], [0, 1, 2]]
    assert any("client 1 failed in round 2" in text and "the disk is full" in text for text in run.history.warnings)
    held = sorted(path.stem for path in (deployment.folder / "node1").rglob("*.state"))
    assert held == ["000001", "000003"], "the round after it began with the state before it"
