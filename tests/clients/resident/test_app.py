"""The app that every message starts anew, and the worker that stays."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.common.constant import ErrorCode

from fedlab.clients.resident import meeting
from fedlab.clients.resident.app import Relay
from fedlab.clients.resident.meeting import Meeting
from fedlab.clients.resident.wire import Channel
from fedlab.errors import ConfigError
from tests.clients.resident.questions import asking, facts

MakeContext = Callable[..., Context]


def test_what_every_message_imports_is_light() -> None:
    code = "import sys, fedlab.clients.resident.app; print(sorted(m for m in sys.modules if m.startswith('fedlab')))"
    heavy = "; print([m for m in ('torch', 'pandas', 'yaml', 'safetensors', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + heavy], capture_output=True, text=True, check=True)
    ours, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    assert "fedlab.config" not in ours
    assert "fedlab.clients.app" not in ours


def test_one_worker_answers_message_after_message_and_keeps_nothing_of_the_context(
    working: str, context: MakeContext
) -> None:
    relay, first = Relay(working), context()
    told = facts(relay(asking(), first))
    assert told["pid"] != os.getpid()
    assert (told["count"], told["type"], told["partition-id"]) == (1, "query.anything", 7)
    again = context(state=first.state)  # as the SuperNode keeps it
    assert dict(facts(relay(asking(), again))) == {**told, "count": 2}
    assert facts(relay(asking(), context()))["count"] == 1


def test_two_messages_at_once_start_one_worker(working: str, context: MakeContext) -> None:
    relay, replies = Relay(working), list[Message]()
    askers = [threading.Thread(target=lambda: replies.append(relay(asking(), context()))) for _ in range(2)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert len({facts(reply)["pid"] for reply in replies}) == 1


def test_a_worker_that_dies_is_told_of_with_its_log_and_replaced(
    working: str, context: MakeContext, tmp_path: Path
) -> None:
    relay = Relay(working)
    before = facts(relay(asking(), context()))["pid"]
    reply = relay(asking("die"), context())
    assert reply.error.code == ErrorCode.CLIENT_APP_CRASHED
    assert reply.error.reason is not None
    assert "ended in the middle of a message" in reply.error.reason
    assert reply.error.reason.endswith("about to die")
    assert str(tmp_path / "state7" / "worker.log") in reply.error.reason
    assert facts(relay(asking(), context()))["pid"] != before


def test_a_worker_that_cannot_begin_is_told_of(
    working: str, context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meeting.sys, "executable", "/bin/false")
    reply = Relay(working)(asking(), context())
    assert reply.error.code == ErrorCode.CLIENT_APP_CRASHED
    assert "3 workers of this node ended before they began" in str(reply.error.reason)


def test_an_app_that_exits_or_cannot_be_loaded_is_an_error_with_its_traceback(
    working: str, context: MakeContext
) -> None:
    relay = Relay(working)
    reply = relay(asking("leave"), context())
    assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert "SystemExit: no more" in str(reply.error.reason)
    assert facts(relay(asking(), context()))["count"] == 1
    assert "No module named 'nowhere_at_all'" in str(Relay("nowhere_at_all:app")(asking(), context()).error.reason)


def test_work_that_nobody_waits_for_is_given_up(working: str, context: MakeContext, tmp_path: Path) -> None:
    marker = tmp_path / "began"
    found = Meeting.of(context(), working)
    assert found is not None
    with Channel(found.connect(context())) as channel:
        assert channel.begun()
        channel.send_request(asking("hang", marker=str(marker)), context())
        while not (marker.exists() and marker.read_text()):
            pass
    assert facts(Relay(working)(asking(), context()))["pid"] != int(marker.read_text())
    assert "given up" in (tmp_path / "state7" / "worker.log").read_text()


def test_nodes_have_workers_of_their_own_and_another_run_takes_the_place_of_the_last(
    working: str, context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = Relay(working)

    def worker(run: int, node: int) -> object:
        return facts(relay(asking(), context(run, node)))["pid"]

    first, other = worker(1, 7), worker(1, 8)
    assert first != other
    second = worker(2, 7)
    assert second not in (first, other)
    assert worker(1, 8) == other
    found = Meeting.of(context(2, 7), working)
    assert found is not None
    assert [path.name for path in found.folder.glob("*.sock")] == [found.socket.name]
    monkeypatch.setenv("FEDLAB_RESIDENT_RUNS", "2")
    third = worker(3, 7)
    assert [worker(2, 7), worker(3, 7)] == [second, third]
    assert worker(4, 7) != third
    assert (worker(3, 7), worker(2, 7) == second) == (third, False)  # of three, the one that waited longest has gone


def test_another_version_of_the_code_or_of_the_node_s_file_is_another_worker(
    working: str, context: MakeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name() -> str:
        given = context()
        given.node_config["node-file"] = str(tmp_path / "node.yaml")
        found = Meeting.of(given, working)
        assert found is not None
        return found.name

    names = [name(), name()]
    assert names[0] == names[1]
    (tmp_path / "node.yaml").write_text("site: berlin\n")
    names.append(name())
    monkeypatch.setattr(meeting, "_code_age", lambda: ["newer"])
    names.append(name())
    monkeypatch.setattr(os, "getppid", lambda: 1)
    names.append(name())
    assert len(set(names)) == 4


def test_arrays_come_back_bit_for_bit_even_if_flower_has_looked_at_them(working: str, context: MakeContext) -> None:
    values = {"a": np.random.default_rng(0).normal(size=(300, 1000)).astype(np.float32), "b": np.array(3)}
    record = ArrayRecord({name: Array(value) for name, value in values.items()})
    assert all(len(array.object_id) == 64 for array in record.values())
    message = asking()
    message.content["arrays"] = record
    reply = Relay(working)(message, context())
    facts(reply)
    came = reply.content["arrays"]
    assert isinstance(came, ArrayRecord)
    assert {name: array.data for name, array in came.items()} == {name: a.data for name, a in record.items()}
    assert all(type(array) is Array for array in came.values())


@pytest.mark.parametrize("reason", ["asked for", "no sockets", "no folder"])
def test_without_a_worker_the_message_s_own_process_works(
    working: str, context: MakeContext, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    if reason == "asked for":
        monkeypatch.setenv("FEDLAB_RESIDENT", "0")
    elif reason == "no sockets":
        monkeypatch.delattr(meeting.socket, "AF_UNIX")
    else:
        monkeypatch.setattr(meeting, "_LONGEST_PATH", 10)
    assert facts(Relay(working)(asking(), context()))["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("variable", "value"), [("FEDLAB_RESIDENT", "soon"), ("FEDLAB_RESIDENT", "-1"), ("FEDLAB_RESIDENT_RUNS", "0")]
)
def test_settings_that_are_no_such_numbers_are_refused(
    working: str, context: MakeContext, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=f"{variable} = '{value}'"):
        Relay(working)(asking(), context())


def test_a_folder_that_others_can_enter_is_not_used(
    short: Path, tmp_path: Path, context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    mine = short / f"fedlab-{os.getuid()}"
    mine.mkdir(mode=0o755)
    found = Meeting.of(context(), "any:app")
    assert found is not None
    assert not found.folder.is_relative_to(short)
    mine.chmod(0o700)
    found = Meeting.of(context(), "any:app")
    assert found is not None
    assert found.folder.parent == mine
    assert found.folder.stat().st_mode & 0o777 == 0o700


def test_the_log_lies_in_the_state_folder_of_the_node_s_file_if_that_can_be_read(
    working: str, context: MakeContext, tmp_path: Path
) -> None:
    file = tmp_path / "node.yaml"
    given = context()
    given.node_config["node-file"] = str(file)
    for text, folder in (("state: kept", tmp_path / "kept"), ("stat: kept", None)):
        file.write_text(f"site: berlin\ndata: {{name: folder, path: images}}\n{text}\n")
        found = Meeting.of(given, working)
        assert found is not None
        with found._open_log(given):
            assert found.log.resolve().parent == (found.folder.resolve() if folder is None else folder)


def test_a_log_grows_no_further_than_8_mb_and_lies_beside_the_socket_if_the_state_folder_cannot_be_written(
    working: str, context: MakeContext, tmp_path: Path
) -> None:
    state = tmp_path / "state7"
    state.mkdir()
    (state / "worker.log").write_bytes(b"x" * (8 * 2**20 + 1))
    facts(Relay(working)(asking(), context()))
    assert (state / "worker.log.1").stat().st_size > 8 * 2**20
    assert "started" in (state / "worker.log").read_text()
    (tmp_path / "state8").write_text("a file is in the way")
    reply = Relay(working)(asking("die"), context(node=8))
    assert "about to die" in str(reply.error.reason)


def test_a_message_of_another_kind_than_flower_s_is_passed_on_too(working: str, context: MakeContext) -> None:
    assert facts(Relay(working)(Message(asking().content, 7, "train.twice"), context()))["type"] == "train.twice"


def test_the_content_of_the_message_is_not_changed(working: str, context: MakeContext) -> None:
    message = asking()
    before = RecordDict(dict(message.content))
    Relay(working)(message, context())
    assert message.content == before
