"""What report, terminal and console say of a run's guarantee."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedlab.report import write_report
from fedlab.report.tables import result_table
from fedlab.tracking import History
from fedlab.tracking.console import guarantee
from tests.report.pages import Page


def spent(round: int, clients: int = 0) -> dict[str, Any]:
    """ε of client i is round · (i + 1) / 2; of the run that of the last."""
    own = {str(i): round * (i + 1) / 2 for i in range(clients)}
    return {
        "epsilon": max(own.values(), default=1.25 * round),
        "delta": 1e-5,
        "adjacency": "add-or-remove-one example",
        "sampling": "poisson, rate 0.25",
        "noise_multiplier": 1.1,
        "clip": 0.5,
        "clients": own,
    }


def accounted(path: Path, clients: int = 0, cost: Callable[..., dict[str, Any]] = spent) -> Path:
    """The run folder with an account in its events; clients of account have events of their own."""
    lines = []
    for line in (path / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["event"] == "round":
            for i in range(clients):
                facts = {"epsilon": 0.0, "rate": 0.25, "noise_multiplier": 1.1, "steps": 4 * event["round"]}
                own = {"event": "client", "time": event["time"], "round": event["round"], "client": i, "metrics": {}}
                lines.append(json.dumps({**own, "privacy": facts}))
            event["privacy"] = cost(event["round"], clients)
        lines.append(json.dumps(event))
    (path / "events.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (path / "config.yaml").write_text("privacy: {name: dp_sgd}\n", encoding="utf-8")
    return path


def test_the_page_says_what_is_guaranteed_and_every_clients_cost(make_run: Callable[..., Path]) -> None:
    page = Page(write_report(accounted(make_run(), clients=3)))
    assert "Privacy ε | 6.000 | worst client, add-or-remove-one example, δ 1e-05" in page.text("Headline figures")
    part = page.text("privacy")
    for row in ("Mechanism | dp_sgd", "ε | 6.000", "δ | 1e-05", "Sampling | poisson, rate 0.25", "Clip norm | 0.500"):
        assert row in part
    assert "does not cover the metrics" in part
    assert "ε spent up to each round" in part
    assert "Client | ε | Sampling rate | Noise multiplier | Noisy steps" in part
    assert "svhn | 4.000 | 0.250 | 1.100 | 16" in part


def test_a_guarantee_of_the_whole_run_has_no_clients(make_run: Callable[..., Path]) -> None:
    page = Page(write_report(accounted(make_run())))
    assert "Privacy ε | 5.000 | add-or-remove-one example, δ 1e-05" in page.text("Headline figures")
    assert "Noisy steps" not in page.text("privacy")


def test_without_noise_epsilon_is_infinite_and_without_privacy_there_is_no_such_part(
    make_run: Callable[..., Path],
) -> None:
    def silent(round: int, clients: int) -> dict[str, Any]:
        return {**spent(round), "epsilon": None, "noise_multiplier": 0.0}

    part = Page(write_report(accounted(make_run(), cost=silent))).text("privacy")
    assert "ε | infinite" in part
    assert "ε spent up to each round" not in part
    assert 'id="privacy"' not in write_report(make_run("open")).read_text(encoding="utf-8")


def test_the_terminal_names_cost_adjacency_and_sampling(make_run: Callable[..., Path]) -> None:
    out = Console(file=io.StringIO(), width=110, color_system=None)
    out.print(result_table(History.from_jsonl(accounted(make_run(), clients=3) / "events.jsonl")))
    assert isinstance(out.file, io.StringIO)
    line = "privacy  ε 6 at δ 1e-05 (add-or-remove-one example, poisson, rate 0.25)"
    assert line in out.file.getvalue()


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (None, ""),
        ({**spent(1), "epsilon": None}, "no privacy"),
        (spent(2), "ε 2.5 at δ 1e-05 (add-or-remove-one example, poisson, rate 0.25)"),
    ],
)
def test_a_rounds_line_says_it_in_words(event: dict[str, Any] | None, words: str) -> None:
    assert guarantee(event) == words
