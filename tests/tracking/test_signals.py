"""The first signal ends a run, further ones do not cost its end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlab.config import Config, parse
from fedlab.storage.runfolder import RunFolder
from fedlab.tracking import History, signals
from fedlab.tracking.recording import open_session
from fedlab.tracking.signals import Ending, ending_signals

USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
CONFIG = {
    "method": "supervised",
    "data": {"source": "shifted_digits"},
    "tracking": {"console": "quiet", "tensorboard": False},
}


@pytest.fixture(autouse=True)
def usual_handlers() -> Iterator[None]:
    """Handlers as a program has them that has just begun; Ray leaves one of its own for SIGTERM."""
    before = {number: signal.signal(number, usual) for number, usual in USUAL.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_each_of_the_signals_is_an_interrupt_and_what_was_there_before_comes_back(name: str) -> None:
    before = signal.getsignal(getattr(signal, name))
    with pytest.raises(KeyboardInterrupt, match=name), ending_signals():
        signal.raise_signal(getattr(signal, name))
    assert signal.getsignal(getattr(signal, name)) is before


def test_further_signals_do_not_disturb_the_end_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    with ending_signals() as ending:
        ending.begin()
        for name in ("SIGINT", "SIGTERM", "SIGHUP") * 3:
            signal.raise_signal(getattr(signal, name))
        now[0] = 61.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_contexts_within_one_another_are_one_and_a_program_keeps_its_own_handlers() -> None:
    def own(signum: int, frame: object) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGTERM, own)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as below nohup
    try:
        with ending_signals() as outer, ending_signals() as inner:
            assert inner is outer
            assert signal.getsignal(signal.SIGTERM) is own
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert isinstance(signal.getsignal(signal.SIGINT), Ending)
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGHUP, hangup)


def test_threads_have_no_signals() -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            with ending_signals() as ending:
                ending.begin()
        except BaseException as problem:
            failed.append(problem)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert failed == []


@pytest.mark.parametrize("count", [1, 5])
def test_a_session_records_that_it_was_interrupted_however_often(count: int, tmp_path: Path) -> None:
    config: Config = parse(Config, CONFIG)
    folder = RunFolder.create(tmp_path, "run", "supervised", 0)
    closed: list[str] = []

    class Display:
        def write(self, event: dict[str, object]) -> None:
            if event["event"] == "run_end":
                for _ in range(count - 1):
                    signal.raise_signal(signal.SIGINT)

        def close(self) -> None:
            closed.append("closed")

    with pytest.raises(KeyboardInterrupt), open_session(
        config, folder, engine="inline", workers=1, display=Display()
    ):  # fmt: skip
        signal.raise_signal(signal.SIGHUP)
    (end,) = History.from_jsonl(folder.events).of("run_end")
    assert end["status"] == "interrupted"
    assert closed == ["closed"]
