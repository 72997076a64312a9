"""A run that was stopped, killed or damaged goes on as if nothing had happened, bit for bit."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedlab
from fedlab.config import Config
from fedlab.errors import CheckpointError, ConfigError, DataError
from fedlab.experiment.result import Run
from fedlab.method import Method
from tests.forks import Forks

Settings = Callable[..., Config]
ROUNDS = 6


def digest(run: Run) -> str:
    return hashlib.sha256((run.checkpoint / "tensors.safetensors").read_bytes()).hexdigest()


def ledger(run: Run) -> list[dict[str, Any]]:
    """All that a run recorded of its rounds, but for the clock."""
    kept = ("round", "evaluation", "prepared")
    clock = ("time", "seconds", "eta_seconds")
    events = [{k: v for k, v in e.items() if k not in clock} for e in run.history.events if e["event"] in kept]
    for event in events:
        event.get("train", {}).pop("seconds", None)
    return events


def same(one: Run, other: Run) -> None:
    assert digest(one) == digest(other)
    assert ledger(one) == ledger(other)
    meta = [json.loads((run.checkpoint / "checkpoint.json").read_text()) for run in (one, other)]
    for facts in meta:
        facts.pop("checkpoints")
    assert meta[0] == meta[1]
    tables = []
    for run in (one, other):
        with run.folder.metrics.open() as file:
            tables.append([row for row in csv.reader(file) if "seconds" not in row])
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"federation__strategy": "scaffold"},
        {"federation__strategy": "feddyn"},
        {"federation__strategy": {"name": "fednova", "server_momentum": 0.5}, "training__momentum": 0.9},
        {"federation__strategy": "fedadam"},
        {"federation__strategy": "flower.FedAdam"},
        {"federation__strategy": {"name": "flower.FedAvgM", "server_momentum": 0.9}},
        {"federation__sampler": {"name": "uniform", "fraction": 0.5}, "training__schedule": "cosine"},
        {"exchange__local": ["norm"], "model__name": "simple_cnn"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values()))[:40] or "plain",
)
def test_stopping_and_going_on_changes_nothing(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method], changes: dict[str, Any]
) -> None:
    if changes.get("model__name"):
        changes = {**changes, "model": {"name": changes["model__name"]}}
        del changes["model__name"]
        changes["exchange__local"] = ["model.head.*"]
    config = settings(federation__rounds=4, evaluation__every=2, **changes)
    whole = fedlab.run(config, method=plain, data=samples)
    half = fedlab.run(config, method=plain, data=samples, until=3)
    assert len(half.history.rounds) == 3
    same(fedlab.resume(half.path, method=plain, data=samples), whole)


def test_stages_shared_tensors_and_local_networks_are_resumed_on_another_engine(
    ray_workers: None, settings: Settings, samples: fedlab.Dataset, staged: type[Method]
) -> None:
    config = settings(federation__rounds=5)
    whole = fedlab.run(config, method=staged, data=samples)
    half = fedlab.run(config, method=staged, data=samples, until=2)
    ray = ["engine.name=ray", "engine.workers=2", "engine.chunk=1"]
    same(fedlab.resume(half.path, method=staged, data=samples, overrides=ray), whole)


def test_several_stops_and_more_rounds(settings: Settings, samples: fedlab.Dataset, plain: type[Method]) -> None:
    whole = fedlab.run(settings(federation__rounds=ROUNDS), method=plain, data=samples)
    run = fedlab.run(settings(federation__rounds=2), method=plain, data=samples)
    for until in (3, 5):
        run = fedlab.resume(run.path, rounds=ROUNDS, until=until, method=plain, data=samples)
        assert run.history.rounds[-1]["round"] == until
    run = fedlab.resume(run.path, method=plain, data=samples)
    assert digest(run) == digest(whole)


def test_a_damaged_checkpoint_sends_the_run_back_to_the_one_before(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    config = settings(federation__rounds=ROUNDS, tracking__checkpoint_every=2, federation__strategy="scaffold")
    whole = fedlab.run(config, method=plain, data=samples)
    half = fedlab.run(config, method=plain, data=samples, until=5)
    newest = half.folder.checkpoints / "round_000005" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    again = fedlab.resume(half.path, method=plain, data=samples)
    assert again.history.start["resumed"] == 4
    same(again, whole)
    (warning,) = again.history.warnings
    assert warning.startswith("a damaged checkpoint is kept, with damaged_ before its name")
    assert "round_000005" in warning
    assert (half.folder.checkpoints / "damaged_round_000005" / "tensors.safetensors").is_file()


def test_without_a_checkpoint_the_run_starts_again(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    whole = fedlab.run(settings(), method=plain, data=samples)
    run = fedlab.run(settings(), method=plain, data=samples, until=1)
    (run.folder.checkpoints / "round_000001" / "checkpoint.json").unlink()
    same(fedlab.resume(run.path, method=plain, data=samples), whole)


def test_what_would_give_another_result_is_refused_and_nothing_is_lost(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    run = fedlab.run(settings(), method=plain, data=samples, until=2)
    before = run.folder.events.read_text()
    with pytest.raises(ConfigError, match=r"--set = 'training\.lr=1'"):
        fedlab.resume(run.path, method=plain, data=samples, overrides=["training.lr=1"])
    images = samples.train.columns["image"].copy()
    images[0, 0, 0, 0] = 1 - images[0, 0, 0, 0]
    other = fedlab.from_arrays(
        images, samples.train["label"], samples.test["image"], samples.test["label"],
        domains=(samples.train["domain"], samples.test["domain"]),
    )  # fmt: skip
    with pytest.raises(DataError, match=f"fingerprint {samples.fingerprint}"):
        fedlab.resume(run.path, method=plain, data=other)
    assert run.folder.events.read_text() == before
    done = fedlab.resume(run.path, method=plain, data=samples)
    with pytest.raises(CheckpointError, match="3 are done"):
        fedlab.resume(done.path, method=plain, data=samples)


PROGRAM = """
import signal
import sys
import fedlab
from fedlab.server.records import RunWriter

write = RunWriter.checkpoint

def and_wait(self, round, *rest, **options):
    # however slowly this program is watched, it is not through before it is killed
    write(self, round, *rest, **options)
    if round == 6:
        signal.pause()

RunWriter.checkpoint = and_wait
fedlab.run(sys.argv[1])
"""


@pytest.mark.drill
@pytest.mark.parametrize("engine", ["inline", "ray"])
def test_a_run_killed_at_any_moment_goes_on(tmp_path: Path, forks: Forks, engine: str) -> None:
    config = tmp_path / "killed.yaml"
    workers = 1 if engine == "inline" else 2

    def write(name: str) -> None:
        config.write_text(
            f"""
method: {{name: fedlgd, ipc_local: 2, ipc_global: 2, warmup_steps: 3, dm_steps: 2, gm_steps: 2, spacing: 3, updates: 4}}
model: {{name: convnet, width: 4, depth: 1}}
data:
  source: {{name: shifted_digits, train_per_class: 4, test_size: 40}}
  partition: [domain]
federation: {{rounds: 8}}
engine: {{name: {engine}, workers: {workers}}}
tracking: {{folder: {tmp_path}, name: {name}, console: quiet, cache: {tmp_path / name}-cache,
  tensorboard: false, checkpoint_every: 2}}
"""
        )

    write("whole")
    whole = fedlab.run(config, overrides=["engine.name=inline"])
    write("killed")
    folder = tmp_path / "killed"
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    program = forks.start([file, config], cwd=tmp_path)
    while len(list(folder.glob("checkpoints/round_*/checkpoint.json"))) < 2:
        assert program.lives(), "it ended before it could be killed"
        time.sleep(0.01)
    os.killpg(program.pid, signal.SIGKILL)
    assert program.wait() == -signal.SIGKILL
    assert fedlab.load(folder).history.end == {}
    resumed = fedlab.resume(folder, overrides=["engine.name=inline"])
    assert 4 <= resumed.history.start["resumed"] < 8
    same(resumed, whole)
