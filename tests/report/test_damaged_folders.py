from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedlab.errors import FedLabError
from fedlab.report import write_report
from fedlab.report.record import RunRecord
from fedlab.report.sections import facts
from tests.report.pages import Page


def report(path: Path) -> Any:
    return Page(write_report(path))


def drop_events(path: Path, *kinds: str) -> None:
    events = path / "events.jsonl"
    lines = events.read_text().splitlines(keepends=True)
    events.write_text("".join(line for line in lines if json.loads(line)["event"] not in kinds))


QUICK = {"logs": False, "pictures": False, "metrics": ("accuracy",)}


@pytest.mark.parametrize("missing", ["environment.json", "partition.json", "events.jsonl", "figures"])
def test_what_is_missing_is_left_out(make_run: Callable[..., Path], missing: str) -> None:
    path = make_run()
    gone = path / missing
    if gone.is_dir():
        for file in gone.iterdir():
            file.unlink()
    else:
        gone.unlink()
    page = report(path)
    lost = {
        "environment.json": set(),
        "partition.json": {"partition"},
        "events.jsonl": {"results", "curves", "pictures", "communication", "time"},
        "figures": {"pictures"},
    }[missing]
    whole = {"results", "curves", "partition", "pictures", "communication", "time", "repeat"}
    assert whole & set(page.sections) == whole - lost
    assert "damaged" not in page.text("")


@pytest.mark.parametrize("kind", ["run_start", "federation", "prepared", "round", "evaluation", "phase_end", "run_end"])
def test_no_kind_of_event_is_indispensable(make_run: Callable[..., Path], kind: str) -> None:
    path = make_run(**QUICK)
    drop_events(path, kind)
    assert "damaged" not in report(path).text("")


def test_a_folder_with_nothing_but_a_configuration_makes_a_page(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\nmethod: {name: supervised}\n")
    page = report(tmp_path)
    assert "supervised" in page.text("")
    assert "seed: 1" in page.text("repeat")


@pytest.mark.parametrize("config", ["", "[1, 2", "- a\n- b\n", "seed: {a: 1}\ndata: 3\nmethod: x\n", "\x00\xff"])
def test_a_damaged_configuration_is_shown_as_it_is(make_run: Callable[..., Path], config: str) -> None:
    path = make_run(**QUICK)
    (path / "config.yaml").write_bytes(config.encode("latin-1"))
    assert "22.0 %" in report(path).text("results")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe\x00", b'{"clients": 3}', b'{"clients": [{}]}'])
@pytest.mark.parametrize("name", ["partition.json", "environment.json"])
def test_a_damaged_file_costs_its_own_part_alone(make_run: Callable[..., Path], name: str, content: bytes) -> None:
    path = make_run(**QUICK)
    (path / name).write_bytes(content)
    page = report(path)
    assert "results" in page.sections
    assert "Mean accuracy | 22.0 %" in page.text("Headline figures")


def test_a_torn_last_event_is_left_out_and_garbage_between_events_too(make_run: Callable[..., Path]) -> None:
    path = make_run(end=None, **QUICK)
    events = path / "events.jsonl"
    events.write_bytes(b"\xff\x00garbage\n[]\n3\n" + events.read_bytes() + b'{"event": "round", "rou')
    assert "Mean accuracy | 22.0 %" in report(path).text("Headline figures")


def test_events_without_their_fields_cost_the_parts_that_need_them_and_the_page_says_so(
    make_run: Callable[..., Path],
) -> None:
    path = make_run()
    with (path / "events.jsonl").open("a") as file:
        file.write('{"event": "evaluation"}\n{"event": "figure", "name": "x"}\n{"event": "phase_end"}\n')
    page = report(path)
    assert "could not be read" in page.text("")
    assert {"partition", "repeat"} <= set(page.sections)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedLabError, match=r"config\.yaml"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(FedLabError):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_picture_from_outside_the_folder_gets_in(make_run: Callable[..., Path], tmp_path: Path) -> None:
    path = make_run()
    inside = next((path / "figures").glob("virtual-global-0000.png"))
    (tmp_path / "secret.png").write_bytes(inside.read_bytes())
    (path / "figures" / "text.png").write_text("no picture")
    with (path / "events.jsonl").open("a") as file:
        for name in ("../secret.png", str(tmp_path / "secret.png"), "figures/text.png", "figures", "config.yaml"):
            event = {"event": "figure", "name": f"sneaky {name}", "round": 0, "path": name, "title": "", "caption": ""}
            file.write(json.dumps(event) + "\n")
    page = report(path)
    assert "neaky" not in page.html
    assert len(page.all("img")) == 6


def test_what_is_not_recorded_is_not_told_and_what_is_called_none_is(make_run: Callable[..., Path]) -> None:
    run = make_run()
    (run / "config.yaml").write_text("method: fedlgd\nfederation: {strategy: 'None'}\n", encoding="utf-8")
    (run / "events.jsonl").write_text('{"event": "run_start", "time": 0}\n', encoding="utf-8")
    told = dict(facts(RunRecord.open(run)))
    assert "Seed" not in told
    assert told["Strategy"] == "None"
