"""The benchmark harness: judging bars, writing tables, and one quick run from end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def result(
    wall: float, cpu: float, *, others: float = 0.0, tree: float = 1000.0, rounds: int = 5, **parts: float
) -> Any:
    from benchmarks.contest import Result

    divided = {name: [seconds] * rounds for name, seconds in parts.items()}
    return Result(3.0, [cpu] * rounds, [wall] * rounds, [others] * rounds, tree / 2, tree, [tree] * rounds, divided)


def measured(**changes: Any) -> dict[str, dict[str, Any]]:
    """Results that meet every bar, but for the changes."""
    from benchmarks.bars import (
        APP,
        BARE,
        BARE_2,
        FEW,
        HUGE,
        INLINE,
        LARGE,
        MANY,
        MIDDLE,
        MOST,
        PFL,
        RAY_1,
        RAY_2,
        SCALE,
        SMALL,
        STOCK,
        TRAIN,
        TURNS,
        WHOLE,
    )  # fmt: skip

    ours = {"inline": result(10.2, 10.2), "ray1": result(10.5, 10.5), "ray2": result(6.0, 11.0), **changes}
    turns = {BARE: 10.0, INLINE: 10.2, **changes.get("turns", {})}
    train = {
        BARE: result(10.0, 10.0),
        BARE_2: changes.get("loops", result(5.4, 10.7)),
        TURNS: result(20.2, 20.2, **turns),
        INLINE: ours["inline"],
        RAY_1: ours["ray1"],
        RAY_2: ours["ray2"],
        STOCK: result(14.0, 22.0),
        APP: result(7.0, 12.0),
        PFL: result(11.0, 11.0),
    }
    empty = {RAY_2: result(0.2, 0.3), STOCK: result(2.5, 3.0), APP: result(0.5, 0.5)}
    whole = {RAY_2: changes.get("whole", result(2.0, 4.0)), STOCK: result(50.0, 60.0, tree=15_000.0)}
    scale = {FEW: result(0.2, 0.3), MANY: result(0.2, 0.3), MOST: changes.get("most", result(0.2, 0.3, tree=1050.0))}
    return {TRAIN: train, SMALL: empty, MIDDLE: empty, LARGE: empty, HUGE: empty, WHOLE: whole, SCALE: scale}


def word_of(text: str, results: Any) -> str:
    """The verdict on the bar whose text begins so."""
    from benchmarks.bars import judge

    (verdict,) = [verdict for verdict in judge(results) if verdict.bar.text.startswith(text)]
    return verdict.word


def test_bars_are_met_missed_reported_or_not_measured() -> None:
    from benchmarks.bars import STOCK, WHOLE, judge

    words = [verdict.word for verdict in judge(measured())]
    assert (words.count("met"), words.count("reported"), len(words)) == (11, 7, 18)
    missed = [v.bar.text for v in judge(measured(inline=result(10.4, 10.4))) if v.word == "**missed**"]
    assert missed == ["CPU of FedLab inline over the bare loop, each in processes of its own"]
    results = measured()
    del results[WHOLE][STOCK]
    assert [v.bar.text for v in judge(results) if v.word == "not measured"] == [
        "the same, stock Flower over FedLab",
        "the same, memory of FedLab over stock Flower",
    ]
    assert {verdict.word for verdict in judge({})} == {"not measured"}


def test_two_workers_are_held_against_two_loops_at_once_whatever_one_loop_takes() -> None:
    from benchmarks.bars import BARE, TRAIN

    results = measured(ray2=result(6.0, 11.2), loops=result(5.4, 10.7))
    results[TRAIN][BARE] = result(5.0, 5.0)
    assert word_of("CPU of FedLab ray, 2 workers", results) == "met"  # 11.2 / 10.7 = 1.047
    assert word_of("CPU of FedLab ray, 2 workers", measured(loops=result(5.4, 10.6))) == "met"  # 11.0 / 10.6 = 1.038
    assert word_of("CPU of FedLab ray, 2 workers", measured(loops=result(5.4, 10.4))) == "**missed**"  # 1.058
    assert word_of("wall time of FedLab ray, 2 workers", measured(loops=result(5.0, 10.7))) == "**missed**"  # 1.2


def test_inline_is_held_against_the_bare_half_of_its_own_process() -> None:
    from benchmarks.bars import BARE, INLINE

    bar = "CPU of FedLab inline over the bare loop, client by client"
    assert word_of(bar, measured(turns={BARE: 10.0, INLINE: 10.29})) == "met"
    assert word_of(bar, measured(turns={BARE: 10.0, INLINE: 10.31})) == "**missed**"
    assert word_of(bar, measured(inline=result(20.0, 20.0))) == "met"


def test_stock_flower_is_never_judged() -> None:
    from benchmarks.bars import MIDDLE, STOCK, TRAIN, WHOLE, judge

    for seconds in (0.001, 1000.0):
        results = measured()
        for workload in (TRAIN, MIDDLE, WHOLE):
            results[workload] = {**results[workload], STOCK: result(seconds, seconds, tree=seconds)}
        words = {verdict.word for verdict in judge(results) if STOCK in verdict.bar.needs}
        assert words == {"reported"}


def test_memory_that_grows_or_follows_the_number_of_clients_is_missed() -> None:
    from benchmarks.bars import growth, judge

    growing = result(0.2, 0.3, rounds=200)
    growing.held = [1000.0 + 0.5 * round for round in range(200)]
    assert growth(growing, 200) == pytest.approx(100 / 1050, rel=0.05)
    larger = result(0.2, 0.3, tree=1200.0)
    assert [v.bar.text[:6] for v in judge(measured(most=growing)) if v.met is False] == ["growth"]
    assert [v.bar.text[:6] for v in judge(measured(most=larger)) if v.met is False] == ["memory"]


def test_ratios_are_taken_round_by_round() -> None:
    from benchmarks.bars import BARE, INLINE, cpu_ratio
    from benchmarks.contest import Result

    # the machine was three times slower in two of the rounds
    results = {BARE: Result(cpu=[1.0, 3.0, 3.0, 1.0, 1.0]), INLINE: Result(cpu=[1.1, 3.3, 3.3, 1.1, 1.1])}
    assert cpu_ratio(results, INLINE, BARE) == pytest.approx(1.1)


def test_wall_times_on_a_machine_in_use_are_marked() -> None:
    from benchmarks.bars import judge

    marked = [v for v in judge(measured(ray2=result(9.0, 11.0, others=1.0))) if v.loaded]
    assert [(v.bar.text, v.word) for v in marked] == [
        ("wall time of FedLab ray, 2 workers, over two bare loops at once", "**missed** †")
    ]


def test_the_account_names_every_bar_and_contender(tmp_path: Path) -> None:
    from benchmarks.__main__ import CONTENDERS, workloads
    from benchmarks.bars import BARS, PFL, TRAIN, TURNS, judge
    from benchmarks.store import Measured, load, save
    from benchmarks.tables import insert, markdown, plot

    results = measured()
    works = {work.name: work for work in workloads("")}
    stored = {name: Measured(works[name], found, "a machine") for name, found in results.items()}
    text = markdown(stored, judge(results))
    for bar in BARS:
        limit = "–" if bar.limit is None else f"{bar.side} {bar.limit:g}{bar.unit}"
        assert f"| {bar.text} | {limit} |" in text
    for name in (*CONTENDERS, PFL):
        assert f"| {name} |" in text or name == TURNS
    assert "| FedLab inline | 204.0 | 1.020 | – | 10.2 | 3.0 |" in text
    assert "| FedLab ray, 2 workers | 220.0 | 1.100 | 1.028 | 6 | 3.0 |" in text
    assert "### The same in one process" in text
    assert "| FedLab inline | 204.0 | 1.020 |\n" in text  # the half of one process
    assert "| 344 MB | 4 of 8 | FedLab ray, 2 workers | 0.2 | 75.0 |" in text
    save(stored, tmp_path / "results.json")
    assert markdown(load(tmp_path / "results.json"), judge(results)) == text
    del results[TRAIN][PFL]
    assert "| pfl-research | not measured |" in markdown(stored, judge(results))

    page = insert("first", "# Results\n\nBefore.\n")
    assert insert("second", page) == page.replace("first", "second")
    plot(stored, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_results_from_before_a_contender_existed_still_make_the_page() -> None:
    from benchmarks.bars import BARE_2, TRAIN, TURNS, judge
    from benchmarks.store import load
    from benchmarks.tables import markdown

    stored = load(ROOT / "benchmarks" / "results.json")
    found = {name: dict(workload.results) for name, workload in stored.items()}
    for name in (BARE_2, TURNS):
        found[TRAIN].pop(name, None)
    stored[TRAIN] = replace(stored[TRAIN], results=found[TRAIN])
    text = markdown(stored, judge(found))
    assert "| two bare loops at once | not measured |" in text
    assert "in one process, client by client" not in text
    assert word_of("CPU of FedLab ray, 2 workers", found) == "not measured"
    assert word_of("CPU of FedLab ray, 1 worker", found) in ("met", "**missed**")


def test_a_store_without_parts_can_be_read(tmp_path: Path) -> None:
    from benchmarks.bars import INLINE, TRAIN
    from benchmarks.store import Measured, load, save
    from benchmarks.work import Work

    path = tmp_path / "results.json"
    save({TRAIN: Measured(Work(TRAIN, ""), {INLINE: result(1.0, 2.0)}, "a machine")}, path)
    raw = json.loads(path.read_text(encoding="utf-8"))
    del raw[TRAIN]["results"][INLINE]["parts"]  # as results were stored before contenders took rounds apart
    path.write_text(json.dumps(raw), encoding="utf-8")
    assert load(path)[TRAIN].results[INLINE] == result(1.0, 2.0)


def test_cpu_and_memory_of_a_family_of_processes() -> None:
    from benchmarks.pace import cpu_seconds, family, resident

    # It says when it is through: a process still starting is not yet worth reading.
    burn = "import signal, time\nwhile time.process_time() < 0.32: pass\nprint('through', flush=True)\nsignal.pause()"
    start = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])"
    parent = subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"through\n"
        members = family(parent.pid)
        assert len(members) == 2
        # user and system time are both counted in whole ticks of 10 ms
        assert cpu_seconds(members[1]) >= 0.29
        assert resident(members[1]) > 1
    finally:
        for process in reversed(family(parent.pid)):
            os.kill(process, 9)
        parent.communicate()
    assert cpu_seconds(parent.pid) == resident(parent.pid) == 0


@pytest.mark.programs
def test_a_quick_run_measures_and_writes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contenders are processes of their own; this test and those of the contenders have the others in this one."""
    from benchmarks import contest
    from benchmarks.__main__ import main
    from benchmarks.bars import BARE_2, TRAIN

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(contest, "_WAKING", 0.0)
    try:
        main(["--quick", "--workload", TRAIN, "--only", BARE_2, "--out", str(tmp_path / "out")])
    finally:
        signal.signal(signal.SIGTERM, handler)
    page = (tmp_path / "out" / "RESULTS.md").read_text(encoding="utf-8")
    assert "QUICK TRY" in page
    assert "| CPU of FedLab inline over the bare loop, client by client in one process | at most 1.03× |" in page
    assert "| two bare loops at once | not measured |" not in page
    assert "| Flower simulation | not measured |" in page
    assert f"Flower {version('flwr')}" in page
    assert (tmp_path / "out" / "results.png").stat().st_size < 100_000


def test_a_contender_that_fails_shows_why(tmp_path: Path) -> None:
    from benchmarks.contest import Contender, contest
    from benchmarks.work import Work

    with pytest.raises(RuntimeError, match=r"broken ended with 1:(.|\n)*No module named"):
        contest(Work("train", str(tmp_path), clients=1), [Contender("broken", "no_such_contender")])
