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


def evaluated(history: History, **fields: object) -> History:
    """The history with further fields of its evaluations."""
    return History([{**e, **fields} if e["event"] == "evaluation" else e for e in history.events])


def test_every_value_stands_beside_its_number_of_samples(make_run: Callable[..., Path]) -> None:
    samples = {"mnist": 1000, "svhn": 200, "synth": 34}
    text = shown(evaluated(of(make_run()), samples=samples, unit="queries"))
    assert row(text, "mnist")[-1] == "1,000"
    assert row(text, "synth")[-1] == "34"
    assert row(text, "unweighted mean")[-1] == row(text, "pooled")[-1] == "1,234"
    assert "queries" in text


def test_unseen_clients_are_told_apart_and_counted_apart(make_run: Callable[..., Path]) -> None:
    samples = {"mnist": 1000, "svhn": 200, "synth": 34}
    values = {"accuracy": 0.5}
    text = shown(evaluated(of(make_run()), samples=samples, unseen_clients=["svhn"], unseen=values, strategy=values))
    assert row(text, "svhn (unseen)")[-1] == "200"
    assert [row(text, name)[-1] for name in ("unweighted mean", "mean of unseen", "strategy's own")] == [
        "1,034",
        "200",
        "1,234",
    ]


def test_where_only_unseen_clients_are_tested_no_mean_is_made_up(make_run: Callable[..., Path]) -> None:
    names = ["mnist", "svhn", "synth"]
    fields = {"samples": dict.fromkeys(names, 5), "unseen_clients": names, "unseen": {"accuracy": 0.25}}
    text = shown(evaluated(of(make_run()), mean={}, pooled={}, **fields))
    assert "unweighted mean" not in text
    assert row(text, "mean of unseen") == ["mean of unseen", "25.0 %", "–", "–", "–", "15"]


def test_the_servers_values_stand_on_its_own_data(make_run: Callable[..., Path]) -> None:
    history = of(make_run(held={"mAP": 0.5}))
    assert "(on" not in shown(history)
    assert "mAP 0.500 (on query 1,200, gallery 7 samples)" in shown(
        evaluated(history, server_samples={"query": 1200, "gallery": 7}), width=200
    )
