from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from fedlab.report.tables import result_table
from fedlab.tracking import History


def shown(history: History, width: int = 110) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(result_table(history))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def of(path: Path) -> History:
    return History.from_jsonl(path / "events.jsonl")


def row(text: str, name: str) -> list[str]:
    """The cells of the row that starts with `name`."""
    (line,) = [line for line in text.splitlines() if line.strip("│┃ ").startswith(name)]
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def test_the_last_evaluation_is_shown_by_client_with_both_means(make_run: Callable[..., Path]) -> None:
    text = shown(of(make_run()))
    assert "Results after round 4" in text
    assert row(text, "mnist") == ["mnist", "12.0 %", "12.0 %", "0.120", "1.600"]
    assert row(text, "synth")[1] == "32.0 %"
    assert row(text, "unweighted mean") == ["unweighted mean", "22.0 %", "22.0 %", "0.220", "1.600"]
    assert row(text, "pooled")[1] == "22.1 %"


def test_traffic_time_and_status_have_units(make_run: Callable[..., Path]) -> None:
    text = shown(of(make_run()))
    assert "4.00 MB down, 2.00 MB up" in text
    assert "train 8.00 s" in text
    assert "completed after 1 min 15 s, 4 of 4 rounds" in text


def test_traffic_tells_what_compression_saved(make_run: Callable[..., Path]) -> None:
    history = of(make_run())
    assert "before compression" not in shown(history)
    events = [{**e, "raw_up": {"model": 2_000_000}} if e["event"] == "round" else e for e in history.events]
    assert "4.00 MB down, 2.00 MB up (8.00 MB before compression)" in shown(History(events))


def test_metrics_other_than_classification_are_shown_as_they_are(make_run: Callable[..., Path]) -> None:
    text = shown(of(make_run(metrics=("rmse", "PSNR"))))
    assert "%" not in row(text, "mnist")[1]
    assert "RMSE" in text
    assert "PSNR" in text
    assert "accuracy" not in text.lower()


def test_names_that_look_like_markup_are_printed_literally(make_run: Callable[..., Path]) -> None:
    text = shown(of(make_run(clients=("[red]evil[/red]", "[/]", "b"), end="failed", error="[bold]no[/bold] [/x]")))
    assert "[red]evil[/red]" in text
    assert "[/]" in text
    assert "[bold]no[/bold] [/x]" in text


def test_a_thousand_clients_do_not_flood_the_terminal(make_run: Callable[..., Path]) -> None:
    history = of(make_run(clients=[f"c{i}" for i in range(1000)], rounds=1, planned=1, pictures=False))
    text = shown(history)
    assert len(text.splitlines()) < 60
    assert "960 clients more" in text


def test_a_failed_run_says_why_and_an_open_one_that_it_has_no_end(make_run: Callable[..., Path]) -> None:
    failed = shown(of(make_run("failed", rounds=2, end="failed", error="ClientError: client 3 failed")))
    assert "failed after 1 min 15 s, 2 of 4 rounds" in failed
    assert "ClientError: client 3 failed" in failed
    assert "still running, or killed, 2 of 4 rounds" in shown(of(make_run("open", rounds=2, end=None)))


def test_an_empty_history_is_no_error() -> None:
    assert "no end recorded" in shown(History())
