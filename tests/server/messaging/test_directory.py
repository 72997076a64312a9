"""Who is who on a grid that only knows Flower's nodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedlab.engine import Simulation
from fedlab.engine.grids.inline import InlineGrid
from fedlab.errors import MachineError, RefusedError
from fedlab.protocol.messages import NO_CLIENT
from fedlab.server.messaging import directory, transport
from fedlab.server.messaging.directory import ClientDirectory
from fedlab.server.messaging.profiles import Profile
from tests.server.remote import Clock, RemoteGrid

NAMES = ("amsterdam", "berlin", "cadiz")


def profiled(claims: Sequence[int], size: int) -> Callable[[], ClientApp]:
    """Clients that answer the query for their profile; the i-th says it is client ``claims[i]`` of `size`."""

    def build() -> ClientApp:
        app = ClientApp()

        @app.query("profile")
        def profile(message: Message, context: Context) -> Message:
            client = claims[int(context.node_config["partition-id"])]
            if client < 0:
                raise RuntimeError("this node has lost its data")
            facts = ConfigRecord(
                {
                    "client": client,
                    "name": NAMES[client],
                    "train": 10 + client,
                    "test": client,
                    "unseen": client == 2,
                    "columns": json.dumps({"image": ["float32", [3, 8, 8]]}),
                    "classes": ["cat", "dog"],
                    "vocabulary": ["a", "red"],
                    "clients": size,
                }
            )
            return Message(RecordDict({"config": facts}), reply_to=message)

        return app

    return build


class Remote(RemoteGrid):
    """Nodes as a deployment has them: ids say nothing, and they come one after the other.

    Args:
        claims: the client each node says it is; -1 fails.
        size: clients of the partition.
        arrivals: nodes connected at the first look, the second, and so on; the last number stays.
        silent: nodes that never answer.
    """

    def __init__(
        self, claims: Sequence[int], size: int, arrivals: Sequence[int] | None = None, silent: Sequence[int] = ()
    ) -> None:
        self._inner = InlineGrid(Simulation(profiled(claims, size), len(claims)))
        self._arrivals = list(arrivals or [len(claims)])
        self._silent = silent
        self.asked: list[int] = []
        self._replies: dict[str, Message] = {}

    def get_node_ids(self) -> Iterable[int]:
        count = self._arrivals.pop(0) if len(self._arrivals) > 1 else self._arrivals[0]
        return reversed(list(self._inner.get_node_ids())[:count])

    def set_run(self, run: Run) -> None:
        self._inner.set_run(run)

    @property
    def run(self) -> Run:
        return self._inner.run

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.asked += [message.metadata.dst_node_id for message in messages]
        replies = [r for r in self._inner.send_and_receive(messages) if r.metadata.src_node_id not in self._silent]
        self._replies |= {reply.metadata.reply_to_message_id: reply for reply in replies}
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(message_id) for message_id in list(message_ids) if message_id in self._replies]


def opened(
    grid: Grid, expected: int | None, timeout: float, *, skip: bool = False, members: Sequence[int] = ()
) -> ClientDirectory:
    found = ClientDirectory(grid, expected, timeout, skip=skip, members={client: NAMES[client] for client in members})
    assert not isinstance(grid, Remote) or not grid.asked, "making a directory asks nobody"
    found.open()
    return found


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (directory, transport):
        monkeypatch.setattr(module, "time", clock)
    return clock


def test_clients_are_known_by_what_they_say_not_by_their_nodes() -> None:
    found = opened(Remote([2, 0, 1], 3), None, timeout=5)
    assert list(found.clients) == [0, 1, 2]
    assert [found.node(client) for client in found.clients] == [1001, 1002, 1000]
    assert [found.client(node) for node in (1000, 1001, 1002, 1)] == [2, 0, 1, -1]
    second, first = found.profiles([2, 0])
    assert (second.name, second.train, second.test, second.classes) == ("cadiz", 12, 2, ("cat", "dog"))
    assert second.columns == {"image": ("float32", (3, 8, 8))}
    assert first.client == 0


def test_it_waits_for_every_client_of_the_partition_and_asks_each_once(caplog: pytest.LogCaptureFixture) -> None:
    grid = Remote([0, 1, 2], 3, arrivals=[0, 0, 1, 1, 2, 3])
    assert list(opened(grid, None, timeout=5).clients) == [0, 1, 2]
    assert sorted(grid.asked) == [1000, 1001, 1002]
    assert "0 of 1 nodes are connected" in caplog.text
    assert caplog.text.count("1 of 3 nodes are connected") == 1


def test_it_can_be_told_to_start_with_fewer() -> None:
    assert list(opened(Remote([1, 2], 3), 2, timeout=5).clients) == [1, 2]


@pytest.mark.parametrize("arrivals", [[3], [1, 2, 3]])
def test_two_nodes_with_one_partition_id_are_named(arrivals: list[int]) -> None:
    with pytest.raises(
        MachineError, match=r"client = '1 \(berlin\)'\n[\s\S]*nodes \d+ and \d+ have the same"
    ) as caught:
        opened(Remote([1, 1, 0], 3, arrivals), None, timeout=5)
    assert "1000" in str(caught.value)
    assert "1001" in str(caught.value)


def test_nodes_that_do_not_come_are_waited_for_no_longer_than_the_timeout(clock: Clock) -> None:
    with pytest.raises(MachineError, match=r"federation\.timeout = 60\n.*3 connected nodes.*2 came\n.*SuperNodes"):
        opened(Remote([0, 1], 3), None, timeout=60)
    assert 60 <= clock.now <= 60 + 2 * directory._PAUSE
    with pytest.raises(MachineError, match=r"1 connected nodes.* 0 came"):
        opened(Remote([0], 1, arrivals=[0]), None, timeout=1)


def test_a_node_that_does_not_answer_is_named() -> None:
    with pytest.raises(MachineError, match=r"profiles of 2 clients.* 1 came\n.*node 1001"):
        opened(Remote([0, 1], 2, silent=[1001]), 2, timeout=5)


def test_every_node_that_cannot_say_who_it_is_shows_its_traceback() -> None:
    with pytest.raises(RefusedError, match=r"2 nodes cannot[\s\S]*node 1001: Traceback[\s\S]*lost its data") as caught:
        opened(Remote([0, -1, -1], 3), 3, timeout=5)
    assert [reason.split(":")[0] for reason in caught.value.refusals] == ["node 1001", "node 1002"]
    assert "federation.on_client_error: skip" in str(caught.value)


def test_nodes_that_cannot_take_part_are_left_out_where_that_is_wanted_and_one_is_left() -> None:
    found = opened(Remote([2, -1, 0], 3), 3, timeout=5, skip=True)
    assert list(found.clients) == [0, 2]
    assert list(found.refused) == [1001]
    with pytest.raises(RefusedError, match="2 nodes cannot take part"):
        opened(Remote([-1, -1], 2), 2, timeout=5, skip=True)


def test_clients_whose_data_is_of_another_kind_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    stated = directory.stated_profile

    def changed(record: ConfigRecord) -> Profile:
        profile = stated(record)
        if profile.client == 1:
            return replace(profile, classes=("dog", "cat"), columns={"image": ("float32", (3, 9, 9))})
        return replace(profile, vocabulary=("a", "red", "x")) if profile.client == 2 else profile

    monkeypatch.setattr(directory, "stated_profile", changed)
    with pytest.raises(RefusedError) as caught:
        opened(Remote([2, 0, 1], 3), 3, timeout=5, skip=True)
    keys = [reason.split(" = ")[0] for reason in caught.value.refusals]
    assert keys == ["'berlin': columns", "'berlin': classes", "'cadiz': vocabulary"]
    assert "image float32 [3, 9, 9]" in str(caught.value)
    assert "as on 'amsterdam'" in str(caught.value)


def test_a_node_that_is_lost_before_it_has_said_who_it_is_may_come_again(clock: Clock) -> None:
    class Lossy(Remote):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            replies = list(super().pull_messages(message_ids))
            for reply in replies:
                if reply.metadata.src_node_id == 1001 and clock.now < back:
                    reply.__dict__["_error"] = Error(ErrorCode.NODE_UNAVAILABLE, "gone")
                    reply.metadata.__dict__["_src_node_id"] = 1  # the SuperLink answers for it
            return replies

    back = 3.0
    assert list(opened(Lossy([0, 1], 2), 2, timeout=5).clients) == [0, 1]
    back = 300.0
    with pytest.raises(MachineError, match="2 clients within so many seconds, 1 could say who they are"):
        opened(Lossy([0, 1], 2), 2, timeout=5)


def test_a_run_that_goes_on_waits_for_the_clients_with_which_it_began(caplog: pytest.LogCaptureFixture) -> None:
    grid = Remote([1, 0, 2], 3, arrivals=[1, 2, 2, 3])
    found = opened(grid, 2, timeout=5, members=[0, 2])
    assert list(found.clients) == [0, 2]
    assert sorted(grid.asked) == [1000, 1001, 1002]
    assert "client 'berlin' has connected; the run began without it" in caplog.text
    assert found.client(1000) == -1
    assert found.absent == []
    assert found.connected([0, 2]) == [0, 2]


@pytest.mark.parametrize("claims", [[2], [2, 1]])
def test_a_run_that_goes_on_says_which_of_its_clients_do_not_come(claims: list[int]) -> None:
    with pytest.raises(
        MachineError, match=r"all clients with which the run began[\s\S]*not connected: amsterdam\n.*resume the run"
    ):
        opened(Remote(claims, 3), 2, timeout=5, members=[0, 2])
    found = opened(Remote(claims, 3), 2, timeout=5, members=[0, 2], skip=True)
    assert (list(found.clients), found.absent) == ([2], ["amsterdam"])
    with pytest.raises(MachineError, match="not connected: amsterdam"):
        opened(Remote([1], 3), 2, timeout=5, members=[0], skip=True)


def test_the_clients_that_train_are_asked_for_only_where_some_do_not() -> None:
    found = opened(Remote([1, 2, 0], 3), None, timeout=5)
    assert list(found.may_train(hold_out=True)) == [0, 1]
    assert found.may_train(hold_out=False) is found.clients


def test_simulated_clients_are_not_asked_before_they_are_needed() -> None:
    grid = InlineGrid(Simulation(profiled([0, 1, 2], 3), 3))
    found = opened(grid, None, timeout=5)
    assert found.clients == range(3)
    assert (found.node(2), found.client(1002), found.client(1), found.client(1003)) == (1002, 2, -1, -1)
    assert [profile.name for profile in found.profiles([2, 0])] == ["cadiz", "amsterdam"]


# nodes that are no clients of the run


class Answering(Remote):
    """Nodes whose answers a test changes, by node."""

    def __init__(self, claims: Sequence[int], size: int, changes: Mapping[int, Callable[[Message], None]]) -> None:
        super().__init__(claims, size)
        self._changes = changes

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            change = self._changes.get(reply.metadata.src_node_id)
            if change is not None and reply.has_content():
                change(reply)
        return replies


def states(**facts: object) -> Callable[[Message], None]:
    def change(reply: Message) -> None:
        record = reply.content["config"]
        assert isinstance(record, ConfigRecord)
        reply.content["config"] = ConfigRecord({**record, **facts})  # type: ignore[dict-item]  # wrong on purpose

    return change


def no_client(reply: Message) -> None:
    reply.__dict__["_content"], reply.__dict__["_error"] = None, Error(NO_CLIENT, "site = 'paris'\n  expected: …")


@pytest.mark.parametrize("skip", [True, False])
def test_a_second_node_with_a_number_is_left_out_and_fails_no_run(skip: bool, caplog: pytest.LogCaptureFixture) -> None:
    found = opened(Remote([0, 1, 2, 1], 3), 3, timeout=5, skip=skip)
    assert [found.node(client) for client in found.clients] == [1000, 1001, 1002]
    assert list(found.strays) == [1003]
    assert "nodes 1001 and 1003 have the same" in caplog.text


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        no_client,
        states(client=7),
        states(name="paris"),
        states(clients=4),
        states(name="ber\x1b[2Jlin"),
    ],
    ids=["says so", "number", "name", "clients", "terminal"],
)
def test_a_node_with_a_wrong_number_is_left_out_and_fails_no_run(
    skip: bool, change: Callable[[Message], None], caplog: pytest.LogCaptureFixture
) -> None:
    grid = Answering([0, 1, 2, 1], 3, {1003: change})
    found = ClientDirectory(grid, 3, 5, skip=skip, names=NAMES)
    found.open()
    assert list(found.clients) == [0, 1, 2]
    assert list(found.strays) == [1003]
    assert "a node is left out" in caplog.text
    assert "\x1b" not in caplog.text


def test_where_a_client_is_missing_the_run_goes_on_without_it_or_says_who_is_there_in_vain(clock: Clock) -> None:
    skipping = ClientDirectory(Answering([0, 1, 2], 3, {1002: no_client}), 3, 3600, skip=True, names=NAMES)
    skipping.open()
    assert list(skipping.clients) == [0, 1]
    assert clock.now < 60, "the others are not waited for as long as for nodes that are away"
    with pytest.raises(RefusedError, match="1 node cannot take part in the run:\nnode 1002: site = 'paris'"):
        ClientDirectory(Answering([0, 1, 2], 3, {1002: no_client}), 3, 3600, names=NAMES).open()


@pytest.mark.parametrize(
    "facts",
    [
        {"train": -1},
        {"train": "many"},
        {"test": 2**50},
        {"client": True},
        {"columns": "[]"},
        {"columns": '{"image": ["float32", [-1]]}'},
        {"columns": '{"image": ["float32", [2000000, 2000000]]}'},
        {"columns": '{"image": 3}'},
        {"columns": "{"},
        {"classes": 3},
        {"name": ""},
        {"name": "x" * 2000},
        {"vocabulary": [1, 2]},
    ],
)
def test_a_profile_that_cannot_be_one_is_refused_as_its_nodes(facts: dict[str, object]) -> None:
    grid = Answering([0, 1, 2], 3, {1001: states(**facts)})
    found = opened(grid, 3, timeout=5, skip=True)
    assert list(found.clients) == [0, 2]
    ((node, reason),) = found.refused.items()
    assert (node, reason.startswith("node 1001: ")) == (1001, True)
    with pytest.raises(RefusedError, match="node 1001"):
        opened(Answering([0, 1, 2], 3, {1001: states(**facts)}), 3, timeout=5)


def test_data_of_another_kind_than_most_have_is_left_out() -> None:
    other = {1000: states(columns=json.dumps({"image": ["float32", [3, 9, 9]]}))}
    found = opened(Answering([0, 1, 2], 3, other), 3, timeout=5, skip=True)
    assert list(found.clients) == [1, 2], "also if it is the first one that differs"
    assert "another kind than most clients" in found.refused[1000]
    with pytest.raises(RefusedError):
        opened(Answering([0, 1, 2], 3, other), 3, timeout=5)
