"""The communication ledger says what the messages really hold."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, Message, RecordDict
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

import fedlab
from fedlab.config import Config
from fedlab.engine.execution import ClientRunner, client_of
from fedlab.experiment.result import Run
from fedlab.method import Method
from fedlab.protocol.messages import to_numpy
from fedlab.tracking.ledger import COLUMNS, LedgerSink, rewind_ledger

Settings = Callable[..., Config]
Seen = Counter[tuple[str, int]]


def payload(content: RecordDict) -> int:
    """Bytes of all arrays in a message."""
    records = [record for record in content.values() if isinstance(record, ArrayRecord)]
    return sum(values.nbytes for record in records for values in to_numpy(record).values())


def rows(run: Run) -> list[dict[str, str]]:
    with run.folder.ledger.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Bytes of the arrays that pass the client app, by direction and client."""
    counted: Seen = Counter()
    checked = ClientRunner._checked

    def count(reply: Any, message: Message) -> Message:
        if message.metadata.message_type in ("train", "query.prepare"):
            client = client_of(message.metadata.dst_node_id)
            counted["down", client] += payload(message.content)
            counted["up", client] += payload(reply.content)
        return checked(reply, message)

    monkeypatch.setattr(ClientRunner, "_checked", staticmethod(count))
    return counted


@examples(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    local=st.sampled_from([[], ["norm"], ["model.head.*"], ["norm", "model.head.*"]]),
    fraction=st.sampled_from([0.25, 0.5, 1.0]),
    strategy=st.sampled_from(["fedavg", "scaffold", "fednova", "feddyn"]),
    compression=st.sampled_from([[], ["fp16"], [{"name": "topk", "fraction": 0.1}, {"name": "quantize", "bits": 4}]]),
    seed=st.integers(0, 5),
)
def test_the_ledger_equals_the_arrays_in_the_messages(
    seen: Seen,
    settings: Settings,
    samples: fedlab.Dataset,
    plain: type[Method],
    local: list[str],
    fraction: float,
    strategy: str,
    compression: list[Any],
    seed: int,
) -> None:
    seen.clear()
    config = settings(
        seed=seed,
        exchange__local=local,
        exchange__compression=compression,
        federation__rounds=2,
        federation__strategy=strategy,
        federation__sampler={"name": "uniform", "fraction": fraction},
    )
    agrees(fedlab.run(config, method=plain, data=samples), seen)


def agrees(run: Run, seen: Seen) -> None:
    told: Seen = Counter()
    rounds: Counter[tuple[int, str, str]] = Counter()
    for row in rows(run):
        for way in ("down", "up"):
            told[way, int(row["client"])] += int(row[way])
            rounds[int(row["round"]), row["group"], way] += int(row[way])
    assert told == seen
    for event in run.history.rounds:
        for group, sizes in event["bytes"].items():
            assert sizes == {way: rounds[event["round"], group, way] for way in ("down", "up")}
        assert event["bytes_up"] == sum(sizes["up"] for sizes in event["bytes"].values())
    assert run.history.bytes_total() == tuple(
        sum(n for (direction, _), n in seen.items() if direction == way) for way in ("down", "up")
    )


def test_the_ledger_counts_what_is_sent_once_and_who_keeps_a_group_back(
    seen: Seen, settings: Settings, samples: fedlab.Dataset, staged: type[Method]
) -> None:
    run = fedlab.run(settings(federation__rounds=3), method=staged, data=samples)
    agrees(run, seen)
    found = rows(run)
    assert {row["client"] for row in found if row["group"] == "expert" and int(row["up"])} == {"1"}
    assert [row["round"] for row in found if row["group"] == "teacher"] == ["1"] * 4
    assert all(row["up"] == row["raw_up"] for row in found)
    assert all(event["raw_up"] == {} for event in run.history.rounds)


def test_resuming_gives_the_ledger_of_an_uninterrupted_run(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    whole = fedlab.run(settings(tracking__checkpoint_every=2), method=plain, data=samples)
    part = fedlab.run(settings(tracking__checkpoint_every=2), method=plain, data=samples, until=2)
    with part.folder.ledger.open("a") as file:
        file.write("3,0,model,17,17,17\n3,1,mod")  # a round that a crash cut short
    done = fedlab.resume(part.path, method=plain, data=samples)
    assert done.folder.ledger.read_text() == whole.folder.ledger.read_text()


def test_a_torn_row_is_dropped_even_where_its_round_reads_as_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    sink = LedgerSink(path)
    sink.write({"event": "ledger", "round": 1, "rows": [[0, 'a "b", c', 1, 2, 3]]})
    sink.write({"event": "round", "round": 1})
    sink.close()
    kept = path.read_text()
    with path.open("a") as file:
        file.write("1")  # of 12
    rewind_ledger(path, 1)
    assert path.read_text() == kept
    rewind_ledger(path, 0)
    assert path.read_text() == ",".join(COLUMNS) + "\n"
