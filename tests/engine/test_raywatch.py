"""What happens when Ray's own processes die, with processes that the tests let die."""

from __future__ import annotations

import threading

import pytest

from fedlab.engine.raywatch import RayWatch


class Process:
    def __init__(self) -> None:
        self.status: int | None = None

    def poll(self) -> int | None:
        return self.status


def test_it_says_what_has_died_and_how() -> None:
    raylet, gcs = Process(), Process()
    watch = RayWatch({"raylet": raylet, "gcs_server": gcs})
    assert watch.lost == ""
    gcs.status = -9
    assert watch.lost == "Ray's gcs_server has died (signal 9)"
    raylet.status = 1
    assert watch.lost == "Ray's gcs_server has died (signal 9)", "the first one is the cause"
    assert RayWatch({"raylet": raylet}).lost == "Ray's raylet has died (exit code 1)"


@pytest.mark.parametrize("ended_in_time", [True, False])
def test_a_program_that_cannot_end_is_ended_after_its_end_was_recorded(
    ended_in_time: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fedlab.engine.raywatch.TICK", 0.01)
    process, happened, left = Process(), list[object](), threading.Event()

    def leave(code: int) -> None:
        happened.append(code)
        left.set()

    watch = RayWatch({"raylet": process}, patience=1800.0 if ended_in_time else 0.0, leave=leave)

    def broken(reason: str) -> None:
        raise OSError("the disk is full")

    watch.on_stuck(broken)
    watch.on_stuck(happened.append)
    process.status = -9
    watch.start()
    if ended_in_time:
        watch.stop()
        for thread in threading.enumerate():
            if thread.name == "ray-watch":
                thread.join()
        assert happened == []
        return
    assert left.wait(1800)
    assert happened == ["Ray's raylet has died (signal 9)", 1]
    assert "fedlab resume RUN" in capsys.readouterr().err


def test_a_ray_that_was_only_looked_at_may_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's simulation starts a Ray of its own; the one before it ends by our own hand."""
    from fedlab.engine import cluster

    process, ended = Process(), list[object]()
    watch = RayWatch({"raylet": process})
    monkeypatch.setattr(cluster, "_watch", None)
    monkeypatch.setattr(cluster, "connect", lambda *asked: setattr(cluster, "_watch", watch) or True)
    monkeypatch.setattr(cluster, "_room", lambda *asked: 1)
    monkeypatch.setattr(cluster.members, "check_members", lambda *asked: None)
    monkeypatch.setattr(cluster, "disconnect", lambda: ended.append("disconnected"))
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: setattr(process, "status", 0) or ended.append("shut down"))
    with cluster.connected(1, 1, 0.0, None, leave=True):
        assert cluster.lost() == ""
        assert watch._done.is_set()  # or it would end this program in a few seconds
    assert ended == ["shut down", "disconnected"]
