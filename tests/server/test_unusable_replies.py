"""Replies that cannot be used are errors of the clients that sent them, and the others count."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord

import fedlab
from fedlab.config import Config
from fedlab.errors import ClientError
from fedlab.protocol.encoding import ENCODED, ENCODING
from fedlab.protocol.messages import ARRAYS, METRICS, NUM_EXAMPLES, STATE, SUM, SUMS, array_record, to_numpy, to_record
from fedlab.storage.checkpoint import load_checkpoint
from tests.server.nodes import LOST, Deployment, clients, count

Settings = Callable[..., Config]
CLIENTS = 3


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


def test_records_that_are_no_configuration_do_not_end_the_run(small: Settings, deployment: Deployment) -> None:
    def nonsense(message: Message) -> None:
        message.content[METRICS] = ConfigRecord({NUM_EXAMPLES: "many"})

    nodes = deployment.submitted(small(federation__rounds=1), CLIENTS)
    nodes.fate = spoiling(nonsense, 2, "train", 1)
    assert clients(deployment.serve(nodes)) == [[0, 1]]
