"""``python -m benchmarks``: measure, print every bar, write RESULTS.md and results.png."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

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
    judge,
)
from benchmarks.contest import Contender, contest
from benchmarks.store import Measured, load, save
from benchmarks.tables import insert, markdown, plot
from benchmarks.work import Work

HERE = Path(__file__).resolve().parent
MODEL = 1_626_442
CONTENDERS = {
    BARE: Contender(BARE, "bare"),
    BARE_2: Contender(BARE_2, "bare_loops", ("2",)),
    TURNS: Contender(TURNS, "in_turns"),
    INLINE: Contender(INLINE, "ours", ("inline",)),
    RAY_1: Contender(RAY_1, "ours", ("1",)),
    RAY_2: Contender(RAY_2, "ours", ("2",)),
    STOCK: Contender(STOCK, "stock"),
    APP: Contender(APP, "flower_app", ("2",)),
    FEW: Contender(FEW, "ours", ("2", "10")),
    MANY: Contender(MANY, "ours", ("2", "1000")),
    MOST: Contender(MOST, "ours", ("2", "100000")),
}
_LIBRARIES = {"PyTorch": "torch", "Flower": "flwr", "Ray": "ray"}
_ECHOES = (INLINE, RAY_2, STOCK)
_SMALL_ECHOES = (*_ECHOES, APP)  # the app's strategy holds all replies at once, which takes memory


def workloads(folder: str) -> dict[Work, tuple[str, ...]]:
    """Workloads and who takes part in them."""
    return {
        Work(TRAIN, folder, rounds=4, heats=5): (BARE, BARE_2, TURNS, INLINE, RAY_1, RAY_2, STOCK, APP, PFL),
        Work(SMALL, folder, payload=1_000): _SMALL_ECHOES,
        Work(MIDDLE, folder, payload=MODEL): _SMALL_ECHOES,
        Work(LARGE, folder, payload=10_000_000): _ECHOES,
        # as many clients as show what a further one costs, and few enough for 24 GB with all three contenders started
        Work(HUGE, folder, clients=8, cohort=4, rounds=4, payload=86_000_000): _ECHOES,
        Work(WHOLE, folder, cohort=1000, payload=MODEL): _ECHOES,
        # enough of all three to compare, and as many rounds as show whether memory grows
        Work(SCALE, folder, cohort=100, rounds=201, payload=100_000, indices=200_000): (FEW, MANY, MOST),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for."""
    asked = _parse(arguments)
    # contenders that are stopped would outlive this process: an exit lets them go on and ends them
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    contenders = dict(CONTENDERS)
    if asked.pfl_python:
        contenders[PFL] = Contender(PFL, "pfl_research", python=asked.pfl_python)
    out = Path(asked.out) if asked.out else None
    measured: dict[str, Measured] = {}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        measured = load(out / "results.json")  # what was measured before stays where it is not measured again
    with tempfile.TemporaryDirectory(prefix="fedlab-bench-") as folder:
        for work, names in workloads(folder).items():
            if asked.workload and work.name not in asked.workload:
                continue
            wanted = [name for name in names if name in contenders and (not asked.only or name in asked.only)]
            if asked.quick:
                work = replace(work, clients=8, cohort=min(work.cohort, 4), rounds=3, samples=10, heats=1)
            elif asked.rounds and work.name != SCALE:
                work = replace(work, rounds=asked.rounds + 1)
            _say(f"{work.name}: {', '.join(wanted)}")
            work.write_data()
            found = contest(work, [contenders[name] for name in wanted])
            measured[work.name] = Measured(replace(work, folder=""), found, _machine(asked.quick))
            if out is not None:
                save(measured, out / "results.json")
    text = markdown(measured, judge({name: found.results for name, found in measured.items()}))
    print(text)
    if out is not None:
        page = out / "RESULTS.md"
        page.write_text(insert(text, page.read_text(encoding="utf-8") if page.exists() else ""), encoding="utf-8")
        plot(measured, out / "results.png")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few clients and one round: does everything work?")
    parser.add_argument(
        "--rounds", type=int, help="measured rounds of a process; default: 5, in training and with 344 MB 3"
    )
    parser.add_argument("--workload", action="append", choices=[work.name for work in workloads("")])
    parser.add_argument("--only", action="append", help="a contender; may be repeated", choices=[*CONTENDERS, PFL])
    parser.add_argument("--pfl-python", help="the Python of an environment with the package pfl; default: left out")
    parser.add_argument("--out", help="folder of RESULTS.md and results.png; default: printed only")
    return parser.parse_args(arguments)


def _machine(quick: bool) -> str:
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    cores = len(os.sched_getaffinity(0))
    libraries = ", ".join(f"{name} {version(package)}" for name, package in _LIBRARIES.items() if find_spec(package))
    python = f"Python {platform.python_version()}, {libraries}"
    facts = f"{cores} cores, {platform.machine()}, {python}, {date.today()}, commit {commit}"
    return f"{facts}; A QUICK TRY, WHOSE FIGURES MEAN NOTHING" if quick else facts


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
