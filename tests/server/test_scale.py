"""Very many clients: what is made for each of them, and only for those that are looked at."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fedlab
from fedlab.assembly import Assembly
from fedlab.clients.app import ClientAppFactory
from fedlab.clients.setup import ClientSetup
from fedlab.config import Config
from fedlab.data.federated import FederatedData
from fedlab.data.partition.naming import Joined, Numbered, Prefixed, Repeated
from fedlab.data.samples import Dataset, Samples
from fedlab.engine import Simulation
from fedlab.engine.grids.inline import InlineGrid
from fedlab.errors import ConfigErrors
from fedlab.method import Method, Task
from fedlab.protocol.messages import config_record
from fedlab.server.evaluation import evaluated_clients
from fedlab.server.messaging.directory import ClientDirectory, ClientNames
from fedlab.server.messaging.profiles import known_profiles, stated_profile
from fedlab.server.messaging.shared import SharedTensors, members, ranges

Settings = Callable[..., Config]
MANY = 100_000


@pytest.fixture(scope="module")
def crowd() -> Dataset:
    """Two training samples and half a test sample for each of 100,000 clients."""
    rng = np.random.default_rng(0)
    names = tuple("abcd")

    def part(count: int) -> Samples:
        images = rng.integers(0, 256, (count, 1, 4, 4)).astype(np.uint8)
        return Samples({"image": images, "label": rng.integers(0, 4, count)}, names)

    return Dataset("crowd", part(2 * MANY), part(MANY // 2))


def divided(settings: Settings, crowd: Dataset, clients: int, **changes: Any) -> FederatedData:
    config = settings(data__partition=[{"name": "iid", "clients": clients}], **changes)
    return FederatedData(crowd, config.data, config.seed)


def test_what_a_worker_is_sent_does_not_grow_with_the_clients(settings: Settings, crowd: Dataset) -> None:
    sizes = []
    for clients in (10, MANY):
        buffers: list[pickle.PickleBuffer] = []
        federated = divided(settings, crowd, clients)
        sizes.append(len(pickle.dumps(federated, protocol=5, buffer_callback=buffers.append)))
    assert abs(sizes[1] - sizes[0]) < 500


def test_the_summary_lists_a_thousand_clients_and_counts_all(settings: Settings, crowd: Dataset) -> None:
    told = divided(settings, crowd, MANY).summary(1)
    assert told["skew"]["clients"] == MANY
    assert told["skew"]["samples"] == 2 * MANY
    names = [client["name"] for client in told["clients"]]
    assert len(names) == 1000
    assert (names[0], names[-1]) == ("00000", "99999")
    assert len(json.dumps(told)) < 500_000


def test_few_prepared_clients_are_kept(settings: Settings, crowd: Dataset) -> None:
    federated = divided(settings, crowd, MANY)
    first = federated.client(0)
    for client in range(3000):
        federated.client(client)
    assert len(federated._ready) == 1024
    assert federated._ready_bytes == sum(data.nbytes for _, data in federated._ready.values())
    again = federated.client(0)
    assert again is not first
    assert again.fingerprint == first.fingerprint


@given(parts=st.lists(st.integers(0, 5), max_size=6), prefix=st.text("ab-", min_size=1, max_size=3))
def test_names_made_on_demand_are_those_of_a_list(parts: list[int], prefix: str) -> None:
    made = [
        Prefixed(prefix, Numbered(length)) if number % 2 else Repeated("x", length)
        for number, length in enumerate(parts)
    ]
    plain = [name for part in made for name in list(part)]
    joined = Joined(made)
    assert list(joined) == plain
    assert joined == plain
    assert joined[1:-1] == plain[1:-1]
    assert [joined[-1 - place] for place in range(len(plain))] == plain[::-1]
    with pytest.raises(IndexError):
        joined[len(plain)]
    assert list(pickle.loads(pickle.dumps(joined))) == plain


def test_a_known_profile_is_what_the_client_would_say(settings: Settings, crowd: Dataset, tmp_path: Path) -> None:
    config = settings(data__partition=[{"name": "iid", "clients": 50}], data__unseen=0.2, data__test_clients=0.5)
    federated, components = FederatedData(crowd, config.data, config.seed), Assembly(config).components()
    setup = ClientSetup(components, federated, tmp_path, tmp_path)
    grid = InlineGrid(Simulation(ClientAppFactory(setup), 50))
    known = known_profiles(federated, components.method)
    assert known is not None
    asked = grid.send_and_receive(
        [Message(RecordDict(), grid.node_of(client), "query.profile") for client in range(50)]
    )
    for client, reply in enumerate(asked):
        record = config_record(reply.content, "config")
        assert record is not None
        assert stated_profile(record) == known(client)
    directory = ClientDirectory(grid, None, 10.0, known)
    grid.send_and_receive = None  # type: ignore[method-assign,assignment]  # nobody is asked
    names = ClientNames(directory)
    assert (len(names), names[7], names[-2:]) == (50, "07", ("48", "49"))


def test_clients_that_weigh_their_samples_themselves_are_asked(settings: Settings, crowd: Dataset) -> None:
    class Weighing(Method):
        def build(self, task: Task) -> dict[str, nn.Module]:
            return {}

        def examples(self, columns: Any) -> int:
            return 7

    assert known_profiles(divided(settings, crowd, 10), Weighing(Weighing.Settings())) is None


@given(st.sets(st.integers(0, 60)))
def test_ranges_are_the_same_clients_in_little_json(clients: set[int]) -> None:
    assert list(members(json.loads(json.dumps(ranges(clients))))) == sorted(clients)


def test_who_holds_which_version_takes_little_room_and_survives() -> None:
    shared = SharedTensors()
    shared["center"] = torch.ones(2)
    for client in range(MANY):
        shared.delivered(client, shared.versions)
    shared["center"] = torch.zeros(2)
    shared.delivered(5, shared.versions)
    book = json.loads(json.dumps(shared.book()))
    assert len(json.dumps(book)) < 200
    restored = SharedTensors()
    restored.restore(shared, book)
    assert restored.outdated(5, ["center"]) == ()
    assert restored.outdated(6, ["center"]) == ("center",)
    restored.delivered(6, restored.versions)
    assert restored.outdated(6, ["center"]) == ()
    assert restored.outdated(7, ["center"]) == ("center",)


def test_evaluated_clients_are_drawn_once_among_those_with_test_samples() -> None:
    clients, participants = range(100), range(80)

    def draw(wanted: float | None, seed: int = 0) -> list[int]:
        return list(evaluated_clients(wanted, clients, participants, lambda client: client % 2 == 0, seed))

    assert draw(None) == list(clients)
    assert draw(10) == draw(0.1)
    assert len(draw(10)) == 10
    assert sum(client >= 80 for client in draw(10)) == 2
    assert all(client % 2 == 0 for client in draw(10))
    assert draw(10) == draw(10) != draw(10, seed=1)
    assert draw(1.0) == [client for client in clients if client % 2 == 0]
    assert len(draw(1)) == 2, "one of each kind at least"


def test_a_hundred_thousand_clients_train_and_a_sample_is_evaluated(settings: Settings, crowd: Dataset) -> None:
    config = settings(
        data__partition=[{"name": "iid", "clients": MANY}],
        model={"name": "logistic"},
        federation__sampler={"name": "uniform", "fraction": 20 / MANY},
        federation__strategy="scaffold",
        federation__rounds=3,
        evaluation__clients=15,
    )
    half = fedlab.run(config, data=crowd, until=2)
    whole = fedlab.resume(half.path, data=crowd)
    assert [len(event["clients"]) for event in whole.history.rounds] == [20] * 3
    evaluated = [tuple(event["clients"]) for event in whole.history.evaluations]
    assert len(set(evaluated)) == 1
    assert len(evaluated[0]) == 15
    size = sum(path.stat().st_size for path in whole.path.rglob("*") if path.is_file())
    assert size < 3_000_000
    meta = json.loads((whole.checkpoint / "checkpoint.json").read_text())
    trained = {client for event in whole.history.rounds for client in event["clients"]}
    assert {c for _, held in meta["client_versions"] for c in members(held)} == trained


def test_flowers_strategies_choose_whom_they_evaluate(settings: Settings, samples: Dataset) -> None:
    config = settings(federation__strategy="flower.FedAvg", evaluation__clients=2)
    with pytest.raises(ConfigErrors, match=r"evaluation\.clients = 2\n.*one of FedLab's own strategies"):
        fedlab.run(config, data=samples)


PROGRAM = """
import resource, sys
import numpy as np
import fedlab
from fedlab.data.samples import Dataset, Samples

clients, rounds = int(sys.argv[1]), int(sys.argv[2])
held = []


class Watching(fedlab.Method):
    def build(self, task):
        return {"model": task.model()}

    def loss(self, networks, batch, step):
        from torch.nn import functional as F

        return {"ce": F.cross_entropy(networks["model"](batch["image"]), batch["label"])}

    def server_update(self, ctx):
        held.append(int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize())


rng = np.random.default_rng(0)
names = tuple("abcd")
images = [rng.integers(0, 256, (count, 1, 4, 4)).astype(np.uint8) for count in (200_000, 50_000)]
data = Dataset("crowd", *(Samples({"image": x, "label": rng.integers(0, 4, len(x))}, names) for x in images))
fedlab.run({
    "method": "supervised", "model": {"name": "logistic"},
    "data": {"source": "digits", "partition": [{"name": "iid", "clients": clients}]},
    "training": {"batch_size": 10, "local_steps": 1},
    "federation": {"rounds": rounds, "sampler": {"name": "uniform", "fraction": min(1.0, 100 / clients)}},
    "evaluation": {"clients": min(100, clients), "every": 20},
    "engine": {"name": "inline"},
    "tracking": {"folder": sys.argv[3], "console": "quiet", "tensorboard": False},
}, method=Watching, data=data)
print(*held)
"""


@pytest.mark.slow
def test_memory_depends_neither_on_the_clients_nor_on_the_rounds(tmp_path: Path) -> None:
    held = {}
    for clients, rounds in ((10, 20), (1000, 20), (MANY, 200)):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(clients), str(rounds), str(tmp_path / str(clients))],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        held[clients] = [int(size) for size in done.stdout.split()]
    levels = [np.median(sizes[5:20]) for sizes in held.values()]
    assert max(levels) <= 1.1 * min(levels)
    settled = np.array(held[MANY][50:])
    slope = np.polyfit(np.arange(len(settled)), settled, 1)[0]
    assert slope * 200 <= 0.05 * settled.mean()
