from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from fedlab.metrics.direction import headline
from fedlab.tracking.console import LiveConsole, NotebookConsole, PlainConsole, make_console
from fedlab.tracking.durations import human_seconds
from fedlab.tracking.left_out import LeftOut

Stream = list[dict[str, Any]]
MakeEvent = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "JUPYTER_COLUMNS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def plain_lines(events: Stream) -> list[str]:
    out = io.StringIO()
    sink = PlainConsole(Console(file=out, width=40))
    for event in events:
        sink.write(event)
    sink.close()
    return out.getvalue().splitlines()


def test_plain_lines_of_a_short_run(stream: Stream) -> None:
    assert plain_lines(stream) == [
        "fedlgd · fedavg · convnet · seed 3 · 2 rounds → runs/r",
        "preparing  querying 2 clients",
        "round 1/2  training 2 clients",
        "round 2/2  train ce 0.707  server gm 12.2  accuracy 0.625 (mean of 2 clients)  7.0 s",
        "completed after 7.5 s",
    ]


def test_a_log_is_never_silent_for_long_nor_flooded(stream: Stream, event: MakeEvent) -> None:
    progress = [event("progress", 10 + n, round=1, phase="train", done=n, total=100) for n in range(1, 100)]
    begin = event("phase_start", 10, round=1, phase="train", total=100)
    lines = plain_lines([stream[0], begin, *progress])
    assert lines[1:] == [
        "round 1/2  training 100 clients",
        "round 1/2  training 20/100 clients  30 s, 1 min 20 s left in this phase",
        "round 1/2  training 40/100 clients  50 s, 1 min 00 s left in this phase",
        "round 1/2  training 60/100 clients  1 min 10 s, 40 s left in this phase",
        "round 1/2  training 80/100 clients  1 min 30 s, 20 s left in this phase",
    ]


def test_a_slow_round_without_evaluation_gets_its_line(stream: Stream, event: MakeEvent) -> None:
    finished = next(e for e in stream if e["event"] == "round")
    slow = {**finished, "rounds": 9, "time": event("", 60)["time"], "eta_seconds": 400.0}
    assert plain_lines([stream[0], *stream[5:7], slow])[-1] == (
        "round 1/2  train ce nan  server gm 12.2  1 min 00 s, 6 min 40 s left"
    )


def test_questions_between_phases_do_not_count_as_progress(stream: Stream, event: MakeEvent) -> None:
    begin = event("phase_start", 10, round=2, phase="server", total=0)
    asked = event("progress", 40, round=2, phase="server", done=4, total=4)
    assert plain_lines([stream[0], begin, asked])[-1] == "round 2/2  aggregating, server update  40 s"


def test_the_best_result_is_named_where_it_is_another(stream: Stream) -> None:
    evaluation = stream[-2]
    worse = {**evaluation, "round": 3, "mean": {"accuracy": 0.5}}
    assert "accuracy 0.500 (mean of 2 clients, best 0.625 in round 2)" in plain_lines([evaluation, worse])[-1]
    unknown = {**evaluation, "round": 4, "mean": {"accuracy": None}}
    assert "accuracy" not in plain_lines([evaluation, unknown])[-1]


def test_the_best_of_one_metric_is_not_told_of_another(stream: Stream) -> None:
    (evaluation,) = [e for e in stream if e["event"] == "evaluation"]
    teacher = {**evaluation, "mean": {"teacher_accuracy": 0.9}}
    assert "accuracy 0.625 (mean of 2 clients)" in plain_lines([stream[0], teacher, *stream[1:]])[-2]


def test_a_score_stands_beside_its_number_of_samples(stream: Stream) -> None:
    (evaluation,) = [e for e in stream if e["event"] == "evaluation"]
    names = list(evaluation["clients"])
    counted = {**evaluation, "samples": dict.fromkeys(names, 600), "unit": "queries"}
    assert "accuracy 0.625 (mean of 2 clients, 1,200 queries)" in plain_lines([counted])[-1]
    strangers = {**counted, "mean": {}, "pooled": {}, "unseen": {"accuracy": 0.25}, "unseen_clients": names}
    assert "accuracy 0.250 (mean of 2 unseen clients, 1,200 queries)" in plain_lines([strangers])[-1]


def test_what_was_asked_for_is_a_note_and_the_rest_a_warning(event: MakeEvent) -> None:
    asked, lost = (LeftOut("test samples", 3, "so it is", 9, wanted=wanted) for wanted in (True, False))
    lines = plain_lines([event("left_out", 1, **left.fields()) for left in (asked, lost)])
    assert lines == [f"{word}: 3 of 9 test samples left out: so it is." for word in ("note", "warning")]


def test_what_is_left_out_round_by_round_is_told_once_and_added_up_at_the_end(event: MakeEvent) -> None:
    left = LeftOut("local trainings", 2, "the client failed", 4)
    told = [event("left_out", round, round=round, **left.fields()) for round in (1, 2, 3)]
    once = event("left_out", 0, **LeftOut("files", 1, "it is broken").fields())
    end = event("run_end", 9, status="completed", seconds=9.0, error="")
    assert plain_lines([once, *told, end]) == [
        "warning: 1 files left out: it is broken.",
        "warning: 2 of 4 local trainings left out: the client failed.",
        "warning: in all rounds, 6 of 12 local trainings left out: the client failed.",
        "completed after 9.0 s",
    ]


def test_alarms_are_told_as_such_and_counted_at_the_end(event: MakeEvent) -> None:
    alarm = event("warning", 1, message="collapse", level="alarm", round=1)
    lines = plain_lines([alarm, event("run_end", 9, status="completed", seconds=9.0, error="")])
    assert lines == ["alarm: collapse", "completed after 9.0 s, with 1 alarm"]


def test_an_early_end_is_told_with_its_reason(event: MakeEvent, stream: Stream) -> None:
    stopped = {"round": 2, "by": "EarlyStopping (federation.stop)", "reason": "validation loss did not improve"}
    end = event("run_end", 9, status="completed", seconds=9.0, error="", stopped=stopped)
    told = "completed after 9.0 s, stopped early after round 2 of 2: validation loss did not improve"
    assert plain_lines([stream[0], end])[-1] == told


def test_the_value_on_validation_samples_stands_beside_that_on_test_samples(stream: Stream) -> None:
    first = {**stream[-2], "validation": {"accuracy": 0.75, "loss": 1.0}}
    assert "accuracy 0.625 (mean of 2 clients), validation 0.750" in plain_lines([first])[-1]
    assert "validation" not in plain_lines([first, {**stream[-2], "round": 3}])[-1]


def test_the_best_is_the_least_where_less_is_better_and_nothing_where_nobody_knows(stream: Stream) -> None:
    first = {**stream[-2], "round": 2, "mean": {"masked_l1": 0.3}}
    assert "best 0.300 in round 2" in plain_lines([first, {**first, "round": 3, "mean": {"masked_l1": 0.5}}])[-1]
    assert "best" not in plain_lines([first, {**first, "round": 3, "mean": {"masked_l1": 0.2}}])[-1]
    unknown = {**first, "mean": {"temperature": 0.3}}
    assert "best" not in plain_lines([unknown, {**unknown, "round": 3, "mean": {"temperature": 0.2}}])[-1]


def test_messages_are_shown_as_they_are(event: MakeEvent) -> None:
    failure = event("run_end", 65, status="failed", seconds=65.2, error="ValueError: [/bold] in\nfile [red]x")
    lines = plain_lines([event("warning", 1, message="client [bold]7[/] failed :smile:"), failure])
    assert lines == [
        "warning: client [bold]7[/] failed :smile:",
        "failed after 1 min 05 s: ValueError: [/bold] in",
    ]


def test_the_live_display_shows_the_run_and_gives_the_terminal_back(stream: Stream, event: MakeEvent) -> None:
    out = io.StringIO()
    streams = sys.stdout, sys.stderr
    sink = make_console("live", Console(file=out, force_terminal=True, width=100))
    assert isinstance(sink, LiveConsole)
    for entry in stream[:-1]:
        sink.write(entry)
    sink.write(event("warning", 7, message="careful [/x]"))
    sink.write(stream[-1])
    sink.close()
    sink.close()
    assert (sys.stdout, sys.stderr) == streams
    shown = out.getvalue()
    for text in ("fedlgd · fedavg", "careful [/x]", "round 2/2", "accuracy 0.625", "completed after 7.5 s"):
        assert text in shown
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l") >= 0  # the cursor is visible again


def test_no_color_leaves_colors_out(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = io.StringIO()
    sink = LiveConsole(Console(file=out, force_terminal=True, width=100))
    for entry in stream:
        sink.write(entry)
    sink.close()
    assert not any(f"\x1b[{color}m" in out.getvalue() for color in range(30, 50))
    assert "accuracy 0.625" in out.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("mode", "file", "environment", "expected"),
    [
        ("auto", Terminal, {}, LiveConsole),
        ("auto", io.StringIO, {}, PlainConsole),
        ("auto", io.StringIO, {"FORCE_COLOR": "1"}, PlainConsole),
        ("auto", Terminal, {"TERM": "dumb"}, PlainConsole),
        ("plain", Terminal, {}, PlainConsole),
        ("quiet", Terminal, {}, type(None)),
    ],
)
def test_the_display_fits_where_it_goes(
    monkeypatch: pytest.MonkeyPatch, mode: str, file: type[io.StringIO], environment: dict[str, str], expected: type
) -> None:
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert type(make_console(mode, Console(file=file(), _environ=os.environ))) is expected


def test_live_is_forced_where_no_terminal_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert type(make_console("live")) is LiveConsole
    notebook = Console(file=io.StringIO(), force_terminal=True, force_jupyter=True)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=SimpleNamespace(display=print)))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=print))
    kinds = [type(make_console(mode, notebook)) for mode in ("auto", "live", "plain", "quiet")]
    assert kinds == [NotebookConsole, NotebookConsole, PlainConsole, type(None)]


class Cell:
    """The output of a notebook's cell: what was displayed, and what it became."""

    def __init__(self) -> None:
        self.displayed, self.updates = list[dict[str, str]](), list[dict[str, str]]()

    def display(self, bundle: dict[str, str], *, raw: bool, display_id: bool) -> Cell:
        assert raw
        assert display_id
        self.displayed.append(bundle)
        return self

    def update(self, bundle: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.updates.append(bundle)


def test_a_notebook_has_one_line_that_is_updated_in_place(
    stream: Stream, event: MakeEvent, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = Cell()
    sink = NotebookConsole(cell.display)
    for entry in (*stream[:-1], event("warning", 7, message="careful <b>"), stream[-1]):
        sink.write(entry)
    sink.close()
    assert [bundle["text/plain"] for bundle in cell.displayed] == [
        "fedlgd · fedavg · convnet · seed 3  preparing  0.0 s"
    ]
    assert "fedlgd · fedavg · convnet · seed 3  round 1/2  training 2 clients  2.0 s" in [
        bundle["text/plain"] for bundle in cell.updates
    ]
    last = cell.updates[-1]
    end = "fedlgd · fedavg · convnet · seed 3  completed after 7.5 s  accuracy 0.625 (mean of 2 clients)"
    assert last["text/plain"] == end
    assert f'<progress value="2" max="2"></progress> {end}' in last["text/html"]
    assert capsys.readouterr() == ("", "warning: careful <b>\n")


def test_a_notebook_is_not_flooded(stream: Stream, event: MakeEvent) -> None:
    cell = Cell()
    sink = NotebookConsole(cell.display)
    begin = event("phase_start", 10, round=1, phase="train", total=1000)
    many = [event("progress", 10 + n / 100, round=1, phase="train", done=n, total=1000) for n in range(1, 1000)]
    for entry in (stream[0], begin, *many):
        sink.write(entry)
    assert 45 < len(cell.updates) <= 51  # of ten seconds


def test_the_end_of_a_run_is_shown_however_soon_it_comes(stream: Stream) -> None:
    cell = Cell()
    sink = NotebookConsole(cell.display)
    for entry in (stream[0], {**stream[-1], "time": stream[0]["time"] + 0.01}):
        sink.write(entry)
    assert "completed" in cell.updates[-1]["text/plain"]


def test_progress_goes_to_standard_error(stream: Stream, capsys: pytest.CaptureFixture[str]) -> None:
    sink = make_console("plain")
    assert sink is not None
    sink.write(stream[0])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "fedlgd · fedavg" in captured.err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (3599.7, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert human_seconds(seconds, rough=True) == text


def test_the_headline_is_accuracy_else_the_first_metric_that_is_no_loss() -> None:
    assert headline({"a": 1, "accuracy": 1, "loss": 1}) == "accuracy"
    assert headline({"loss": 1, "map": 1, "recall": 1}) == "map"
    assert headline({"loss": 1}) == "loss"
    assert headline({}) == ""
