"""All ways in which a client can answer badly: with `stop` its error ends the run, with `skip` the others count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedlab.errors import ClientError
from fedlab.protocol.encoding import ENCODED, ENCODING, SENT
from fedlab.protocol.messages import (
    ARRAYS,
    EFFORT,
    EXTRAS,
    METRICS,
    MISSING,
    NUM_EXAMPLES,
    SPENT,
    STATE,
    STEP_WEIGHT,
    SUM,
    SUM_DTYPES,
    SUM_WEIGHTS,
    SUMS,
    TIMING,
    WITHHELD,
    array_record,
    to_numpy,
    to_record,
)
from tests.server.answers import Federation, Spoil

UNUSABLE = "what the client sent cannot be used"
FAILED = "the client failed"


def arrays(change: Callable[[dict[str, np.ndarray]], Any], key: str = ARRAYS) -> Spoil:
    def spoil(reply: Message) -> None:
        held = to_numpy(array_record(reply.content, key) or ArrayRecord(), copy=True)
        change(held)
        reply.content[key] = to_record(held)

    return spoil


def value(name: str, number: float, key: str = ARRAYS) -> Spoil:
    return arrays(lambda held: held[name].reshape(-1).__setitem__(0, number), key)


def record(key: str, content: Any) -> Spoil:
    def spoil(reply: Message) -> None:
        reply.content[key] = content

    return spoil


def without(key: str) -> Spoil:
    def spoil(reply: Message) -> None:
        del reply.content[key]

    return spoil


def count(number: object) -> Spoil:
    return record(METRICS, MetricRecord({NUM_EXAMPLES: number}))  # type: ignore[dict-item]  # numbers of all kinds


def bytes_of_w(change: Callable[[bytes], bytes]) -> Spoil:
    def spoil(reply: Message) -> None:
        held = array_record(reply.content, ARRAYS)
        assert held is not None
        array = held["w"]
        held["w"] = Array(array.dtype, tuple(array.shape), array.stype, change(array.data))

    return spoil


def pose_as_the_engine(reply: Message) -> None:
    reply.content[SUM] = to_record({"w": np.full((2, 3), 1e6), "b": np.full(3, 1e6)})
    reply.content[SUM_WEIGHTS] = MetricRecord({"w": 30.0, "b": 30.0})
    reply.content[SUM_DTYPES] = ConfigRecord({"w": "float32", "b": "float32"})
    del reply.content[ARRAYS]


def own_codec(reply: Message) -> None:
    reply.content[ENCODED] = to_record({"values:w": np.ones(6, np.float32)})
    reply.content[ENCODING] = ConfigRecord({"chain": '[{"name": "os:system"}]', "updates": "[]"})


def lacks_nonsense(reply: Message) -> None:
    reply.content = RecordDict({MISSING: ConfigRecord({"x": True})})


def in_another_name(reply: Message) -> None:
    reply.metadata.__dict__["_src_node_id"] = 1000


def terminal_codes(reply: Message) -> None:
    reply.__dict__["_content"] = None
    reply.__dict__["_error"] = Error(2, "\x1b]0;owned\x07\x1b[2Jbroken")


WAYS: dict[str, tuple[str, Spoil, str]] = {
    # name: phase, what is done to the reply, what the error says
    "NaN": ("train", value("w", np.nan), "finite"),
    "infinity": ("train", value("b", -np.inf), "finite"),
    "out of range": ("train", value("w", 1e30), "finite"),
    "one value for a matrix": ("train", arrays(lambda a: a.update(w=a["w"][0, :1])), r"float32\[1\], expected"),
    "transposed": ("train", arrays(lambda a: a.update(w=a["w"].T.copy())), r"float32\[3, 2\], expected"),
    "doubles": ("train", arrays(lambda a: a.update(w=a["w"].astype(float))), "comes as float64"),
    "integers": ("train", arrays(lambda a: a.update(w=a["w"].astype(int))), "comes as int64"),
    "words": ("train", arrays(lambda a: a.update(w=np.full((2, 3), "x"))), "comes as <U1"),
    "an array is missing": ("train", arrays(lambda a: a.pop("w")), "lacks 1 of 2 arrays, such as 'w'"),
    "all arrays are missing": ("train", without(ARRAYS), "lacks 2 of 2 arrays"),
    "an unknown array": ("train", arrays(lambda a: a.update(more=np.ones(3))), "'more' that the client was not sent"),
    "a negative count": ("train", count(-1), "no whole number"),
    "half an example": ("train", count(0.5), "no whole number"),
    "a count that is no number": ("train", count(float("nan")), "no whole number"),
    "10^15 examples": ("train", count(10**15), "larger than the number that the client's profile states"),
    "no count": ("train", record(METRICS, MetricRecord({"ce": 1.0})), "is missing or no whole number"),
    "no metrics": ("train", without(METRICS), "'metrics'"),
    "metrics of another kind": ("train", record(METRICS, ConfigRecord({NUM_EXAMPLES: 3})), "cannot be read"),
    "the engine's sum": ("train", pose_as_the_engine, r"a record 'fedlab\.|the record 'fedlab\."),
    "an unknown record": ("train", record("gift", ConfigRecord({"x": 1})), "'gift', which no client sends"),
    "a huge result": ("train", record(EXTRAS, to_record({"x": np.zeros(2**19)})), "4 MiB beside the network state"),
    "a huge name": ("train", record(METRICS, MetricRecord({NUM_EXAMPLES: 1, "x" * 2**21: 1})), "names and numbers"),
    "a name that writes to a terminal": (
        "train",
        record(METRICS, MetricRecord({NUM_EXAMPLES: 1, "loss\x1b[2J": 1.0})),
        r"'loss\\x1b\[2J', which cannot be printed",
    ),
    "a result with NaN": ("train", value("bank", np.nan, EXTRAS), "result 'bank' holds values that are not finite"),
    "a result of words": ("train", record(EXTRAS, to_record({"x": np.array(["a"])})), "expected numbers"),
    "a group withheld": ("train", record(WITHHELD, ConfigRecord({"groups": ["model"]})), "every client has to send"),
    "no such group": ("train", record(WITHHELD, ConfigRecord({"groups": ["x"]})), "'x', which is not averaged"),
    "a codec of its own": ("train", own_codec, r"in another way than exchange\.compression says"),
    "bytes cut off": ("train", bytes_of_w(lambda data: data[:-7]), "cannot be read"),
    "bytes that claim terabytes": (
        "train",
        bytes_of_w(lambda data: data.replace(b"(2, 3)", b"(2000000000000, 3)").replace(b" " * 12, b"", 1)),
        "cannot be read",
    ),
    "pickled objects": ("train", bytes_of_w(lambda data: data.replace(b"'<f4'", b"'|O' ")), "cannot be read"),
    "no version": ("train", record(STATE, ConfigRecord({"version": "new"})), "holds no version"),
    "a version of 10^30": ("train", record(STATE, ConfigRecord({"version": 2**40})), "holds no version"),
    "odd efforts": (
        "train",
        record(EFFORT, ConfigRecord({"batches": -5, "skipped": 0, "missing": 0, "reason": ""})),
        "counts that are no counts",
    ),
    "a time that is no time": (
        "train",
        record(TIMING, MetricRecord({"x": [float("nan"), 1.0]})),
        "seconds and a count",
    ),
    "privacy out of range": (
        "train",
        record(SPENT, ConfigRecord({"rate": 7.0, "noise_multiplier": 1.0, "steps": 1})),
        "'rate' from 0 to 1",
    ),
    "bytes of another group": ("train", record(SENT, MetricRecord({"x": 1})), "expected bytes of an exchange group"),
    "lacks what there is not": ("train", lacks_nonsense, "something else than what a client can lack"),
    "in another one's name": ("train", in_another_name, "another node"),
    "arrays where nothing is trained": ("prepare", record(ARRAYS, to_record({"w": np.ones(1)})), "no client sends"),
    "a statistic with NaN": ("prepare", value("mean", np.nan, EXTRAS), "not finite"),
    "a statistic of other dimensions": (
        "prepare",
        record(EXTRAS, to_record({"mean": np.ones((3, 1), np.float32)})),
        "2 dimensions of the kind 'f', that of client 'site0' has 1 .* most clients' has",
    ),
    "no sums": ("evaluate", without(SUMS), "'sums'"),
    "sums of words": ("evaluate", record(SUMS, to_record({"hits": np.array(["a"])})), "expected numbers"),
    "sums of another shape": ("evaluate", arrays(lambda a: a.update(hits=np.ones(3, int)), SUMS), "most clients' has"),
    "a sum is missing": ("evaluate", arrays(lambda a: a.pop("loss"), SUMS), "lacks the sum 'loss'"),
    "an unknown sum": ("evaluate", arrays(lambda a: a.update(x=np.ones(1)), SUMS), "holds the sum 'x'"),
    "a sum with NaN": ("evaluate", arrays(lambda a: a.update(loss=np.array(np.nan)), SUMS), "NaN or infinite values"),
    "more tests than it has": ("evaluate", count(5), "larger than the number that the client's profile states"),
    "a probe of another shape": ("probe", arrays(lambda a: a.update(hits=np.ones(3, int)), SUMS), "most clients' has"),
}


def carried(federation: Federation, phase: str) -> list[int]:
    if phase != "train":
        return federation.ask(phase)
    answered, new = federation.train()
    expected = np.mean([client + 1 for client in answered])
    assert all(np.allclose(values, expected) for values in new.values()), "only those who answered well are averaged"
    return answered


@pytest.mark.parametrize("where", ["simulation", "deployment"])
@pytest.mark.parametrize("phase", ["prepare", "train", "evaluate", "probe"])
def test_good_answers_count(where: str, phase: str) -> None:
    federation = Federation(where, "stop")
    assert carried(federation, phase) == [0, 1, 2]
    assert federation.left_out == []


@pytest.mark.parametrize("where", ["simulation", "deployment"])
@pytest.mark.parametrize("way", WAYS)
def test_a_bad_answer_ends_a_run_that_is_to_stop(way: str, where: str) -> None:
    phase, spoil, words = WAYS[way]
    with pytest.raises(ClientError, match=rf"client 1 failed in round 2, phase {phase}[\s\S]*({words})") as caught:
        carried(Federation(where, "stop", spoil), phase)
    assert len(str(caught.value)) < 5000


@pytest.mark.parametrize("where", ["simulation", "deployment"])
@pytest.mark.parametrize("way", WAYS)
def test_a_bad_answer_is_left_out_of_a_run_that_is_to_skip(way: str, where: str) -> None:
    phase, spoil, _ = WAYS[way]
    federation = Federation(where, "skip", spoil)
    assert carried(federation, phase) == [0, 2]
    ((_, why, left),) = federation.left_out
    kinds = (UNUSABLE, FAILED) if way == "in another one's name" else (UNUSABLE,)  # the engine sees an app that fails
    assert why.startswith(kinds)
    assert left == 1
    assert len(federation.warnings) == 1


@pytest.mark.parametrize("where", ["simulation", "deployment"])
def test_what_a_strategy_computes_with_must_be_there(where: str) -> None:
    federation = Federation(where, "skip", metrics={STEP_WEIGHT: 1e300})
    with pytest.raises(Exception, match="no client answered"):
        federation.train()
    assert any(f"the metric {STEP_WEIGHT!r} is missing" in warning for warning in federation.warnings)


def test_an_error_cannot_write_to_the_terminal() -> None:
    with pytest.raises(ClientError) as caught:
        Federation("deployment", "stop", terminal_codes).train()
    assert "broken" in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert "\x07" not in str(caught.value)


def test_there_are_at_least_thirty_two_ways() -> None:
    assert len(WAYS) >= 32
