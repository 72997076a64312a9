"""Records the end of a run whose program was ended from outside, without a chance to say anything.

Ray ends the program that uses it when it is asked something in the moment in which Ray itself dies, and the system ends
what takes too much memory. So a small process waits beside the run. When the program is gone and has not taken its
leave, that process writes how the run ended, and the report.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedlab.errors import CheckpointError, FedLabError
from fedlab.report.page import report_quietly
from fedlab.report.record import run_status
from fedlab.storage.runfolder import RunFolder, write_atomic
from fedlab.tracking.history import History
from fedlab.tracking.jsonl import jsonl_line

REASON = (
    "the program of the run ended without a word: it was killed, perhaps because memory ran out, or Ray ended it "
    "because Ray itself had died"
)
# It imports nothing of FedLab while it waits, so that it starts at once and stays small.
_WAIT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
if not sys.stdin.buffer.read():
    os.execv(sys.executable, [sys.executable, "-m", "fedlab.experiment.last_words", *sys.argv[1:]])
"""
_LEAVE = b"."
_PATIENCE = 5.0  # seconds in which the system releases what a program held that is gone


@contextmanager
def witnessed(folder: RunFolder, report: bool, then: str) -> Iterator[None]:
    """A context in which the end of the run is recorded even if this process is gone all at once.

    Args:
        folder: the run folder.
        report: whether the report is written then.
        then: what the user is told to do.
    """
    try:
        witness = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WAIT, str(folder.path.resolve()), str(int(report)), then],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # what ends this process and its group must not end it
        )
    except OSError:  # no further process can be started; the run can do without
        yield
        return
    try:
        yield
    finally:
        try:
            witness.communicate(_LEAVE)
        except OSError:  # it is gone
            witness.wait()


def record_end(path: Path, report: bool, then: str) -> str:
    """Write that a run has failed, if nothing says how it ended.

    Args:
        path: the run folder.
        report: whether to write the report, too.
        then: what the user is told to do.

    Returns:
        What the user should be told; empty if the run's end is known, nothing was recorded of it at all, or another
        process goes on with it.
    """
    folder = RunFolder.open(path)
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            with folder.writing():
                history = History.from_jsonl(folder.events)
                if run_status(history) != "open" or not history.events:
                    return ""
                _write_end(folder, history)
            break
        except CheckpointError:
            if time.monotonic() > until:
                return ""
            time.sleep(0.05)
    if report:  # without the lock, so that the run can go on meanwhile
        report_quietly(folder)
    return f"error: {REASON}\nrun folder: {path}\n{then}\n"


def _write_end(folder: RunFolder, history: History) -> None:
    now = time.time()
    began = next((event["time"] for event in reversed(history.events) if event["event"] == "run_start"), now)
    end = {"event": "run_end", "time": now, "status": "failed", "seconds": now - began, "error": REASON}
    content = folder.events.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]  # a line that was cut short is as if it had not been begun
    write_atomic(folder.events, whole + jsonl_line(end).encode())


def main() -> None:
    """Entry point of the process that waited."""
    try:
        told = record_end(Path(sys.argv[1]), sys.argv[2] == "1", sys.argv[3])
    except (OSError, FedLabError) as error:
        told = f"error: {REASON}; its end could not be recorded: {str(error).splitlines()[0]}\n"
    sys.stderr.write(told)


if __name__ == "__main__":
    main()
