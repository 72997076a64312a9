"""Whether a SuperLink answers, and the log of a run whose SuperLink has stopped answering."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from fedlab.deployment import flower
from fedlab.deployment.flower import Connection, is_up

LOG = """
import sys, time
print("one", flush=True)
sys.stdout.write("tw")
sys.stdout.flush()
time.sleep(0.01)  # so that the halves of the line may come apart; they belong together whether they do or not
print("o\\nthree", flush=True)
time.sleep(1e6)  # until it is ended
"""


class _Well(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *told: object) -> None:
        pass


@pytest.fixture
def served() -> Iterator[int]:
    """The port of a server that is well."""
    with HTTPServer(("127.0.0.1", 0), _Well) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def connection(home: Path, *lines: str) -> Connection:
    (home / "config.toml").write_text("\n".join(["[superlink.here]", *lines]))
    return Connection("here", home)


def test_a_server_answers_or_does_not(served: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert connection(tmp_path, f'address = "127.0.0.1:{served}"', "insecure = true").answers()
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # a SuperLink is never asked through a proxy
    assert is_up(f"127.0.0.1:{served}", None, secure=False)
    assert not is_up(f"127.0.0.1:{served}", None), "it speaks no TLS"
    assert not is_up(f"127.0.0.1:{served}", tmp_path / "gone.crt")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert not is_up(f"127.0.0.1:{closed.getsockname()[1]}", None, secure=False)


def test_a_server_that_accepts_and_stays_silent_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower, "_ANSWER", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as hung:
        assert not is_up(f"127.0.0.1:{hung.getsockname()[1]}", None, secure=False)


def test_where_flower_does_not_say_how_to_reach_it_it_counts_as_there(tmp_path: Path) -> None:
    assert Connection("here", tmp_path).answers()
    assert connection(tmp_path, "nonsense = 1").answers()
    (tmp_path / "config.toml").write_text("superlink = 3")
    assert Connection("here", tmp_path).answers()


@pytest.mark.skipif(os.name != "posix", reason="pipes are looked at with select")
def test_a_log_ends_when_the_superlink_has_stopped_answering(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines: list[str] = []
    monkeypatch.setattr(flower, "_QUIET", 0.01)
    monkeypatch.setattr(flower, "_command", lambda *words: [sys.executable, "-c", LOG])
    monkeypatch.setattr(Connection, "answers", lambda connection: len(lines) < 3)
    with Connection("here", tmp_path).log(1) as found:
        for line in found:
            lines.append(line)  # one by one, so that the stand-in for the SuperLink sees them
    assert lines == ["one", "two", "three"]
