"""A run whose driver is killed at random moments ends with the weights, ledger and metrics of one that is not."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

import fedlab
from fedlab.storage.checkpoint import load_checkpoint
from tests.forks import Forks

KILLS = 10
PROGRAM = "from fedlab.cli.main import main\nmain()\n"
CONFIG = """
method: {{name: fedlgd, ipc_local: 1, ipc_global: 1, warmup_steps: 2, dm_steps: 1, gm_steps: 1, spacing: 2, updates: 6}}
model: {{name: convnet, width: 4, depth: 1}}
data:
  source: {{name: shifted_digits, train_per_class: 1, test_size: 12}}
  partition: [{{name: iid, clients: 3}}]
federation: {{rounds: 14, strategy: scaffold}}
engine: {{name: {engine}, workers: {workers}}}
tracking: {{folder: {folder}, console: quiet, tensorboard: false, report: false, checkpoint_every: 2,
  cache: {folder}/cache-{name}, name: {name}}}
"""


def begun_since(events: Path, when: float) -> int:
    """Number of events of the process that began to write them at that time or later."""
    lines = events.read_bytes().splitlines() if events.is_file() else []
    for place in range(len(lines) - 1, -1, -1):
        try:
            event = json.loads(lines[place])
        except ValueError:
            continue
        if event["event"] == "run_start":
            return len(lines) - place if event["time"] >= when else 0
    return 0


def table(path: Path) -> list[list[str]]:
    """The rows of a table, without wall times."""
    with path.open() as file:
        return [row for row in csv.reader(file) if "seconds" not in row]


def test_a_run_killed_before_its_first_checkpoint_books_its_preparation_once(tmp_path: Path) -> None:
    def made(name: str, until: int | None = None) -> fedlab.Run:
        path = tmp_path / f"{name}.yaml"
        path.write_text(CONFIG.format(engine="inline", workers=1, folder=tmp_path, name=name))
        return fedlab.run(path, overrides=["federation.rounds=2"], until=until)

    whole, killed = made("whole"), made("killed", until=1)
    (killed.checkpoint / "checkpoint.json").unlink()  # as if it had been killed before this file was written
    for kind in ("prepared", "ledger"):
        assert kind == "ledger" or killed.history.of(kind), "there is something to book twice"
    resumed = fedlab.resume(killed.path)
    assert resumed.history.start["resumed"] == 0
    assert len(resumed.history.of("prepared")) == 1
    assert resumed.history.bytes_total() == whole.history.bytes_total()
    assert resumed.history.left_out == whole.history.left_out
    assert resumed.history.warnings == whole.history.warnings
    assert (resumed.path / "ledger.csv").read_bytes() == (whole.path / "ledger.csv").read_bytes()
    assert table(resumed.path / "metrics.csv") == table(whole.path / "metrics.csv")


def test_a_run_that_finds_kept_results_has_the_same_metrics_as_one_that_computes_them(tmp_path: Path) -> None:
    tables = []
    for name in ("cold", "warm"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(CONFIG.format(engine="inline", workers=1, folder=tmp_path, name=name))
        run = fedlab.run(path, overrides=["federation.rounds=1", f"tracking.cache={tmp_path}/cache"])
        tables.append(table(run.path / "metrics.csv"))
    assert any("dm_first" in row for row in tables[0]), "what is computed once logs something"
    assert tables[0] == tables[1]


@pytest.mark.drill
@pytest.mark.parametrize("engine", ["inline", "ray"])
def test_a_run_killed_at_ten_random_moments_is_the_same_run(tmp_path: Path, forks: Forks, engine: str) -> None:
    draw = random.Random(engine)
    program, config = tmp_path / "program.py", tmp_path / "config.yaml"
    program.write_text(PROGRAM)
    config.write_text(CONFIG.format(engine="inline", workers=1, folder=tmp_path, name="whole"))
    whole = fedlab.run(config)
    config.write_text(CONFIG.format(engine=engine, workers=2, folder=tmp_path, name="killed"))
    killed, kills = tmp_path / "killed", 0
    words: list[str | Path] = [program, "run", config]
    while kills < KILLS:
        when, wanted = time.time(), draw.randint(1, 20)
        running = forks.start(words, cwd=tmp_path, reports=False)
        while begun_since(killed / "events.jsonl", when) < wanted and running.lives():
            time.sleep(0.002)
        ended = not running.lives()
        if not ended:
            os.killpg(running.pid, signal.SIGKILL)
            kills += 1
        running.wait()
        words = [program, "resume", killed]
        if ended:
            break
    resumed = fedlab.resume(killed, overrides=["engine.name=inline"]) if not ended else fedlab.load(killed)
    assert kills >= KILLS // 2, "it was killed again and again"
    ours, theirs = (load_checkpoint(run.checkpoint)[0] for run in (resumed, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert (killed / "ledger.csv").read_bytes() == (whole.path / "ledger.csv").read_bytes()
    assert table(killed / "metrics.csv") == table(whole.path / "metrics.csv")
    assert not list(killed.rglob(".*.????????")), "what was being written is removed"


SOAK = """
import gc, os, sys
import fedlab
from fedlab.server.loop import FederatedLoop

seen = {}
round_of = FederatedLoop._round

def watched(self, round, *rest):
    round_of(self, round, *rest)
    if round in (100, 300):
        gc.collect()
        pages = int(open("/proc/self/statm").read().split()[1])
        seen[round] = pages * os.sysconf("SC_PAGE_SIZE") // 1024, len(os.listdir("/proc/self/fd"))

FederatedLoop._round = watched
fedlab.run(sys.argv[1], overrides=["federation.rounds=300", "evaluation.every=10", "method=supervised"])
(kilobytes, files), (later, more) = seen[100], seen[300]
print(kilobytes, files, later, more)
"""


@pytest.mark.drill
@pytest.mark.parametrize("engine", ["inline", "ray"])
def test_300_rounds_take_no_more_memory_and_open_no_more_files_than_100(
    tmp_path: Path, forks: Forks, engine: str
) -> None:
    program, config = tmp_path / "soak.py", tmp_path / "config.yaml"
    program.write_text(SOAK)
    config.write_text(CONFIG.format(engine=engine, workers=2, folder=tmp_path, name="soak"))
    done = forks.run([program, config], cwd=tmp_path, reports=False)
    assert done.returncode == 0, done.stderr
    kilobytes, files, later, more = map(int, done.stdout.split())
    assert more == files
    assert later - kilobytes < 8192
