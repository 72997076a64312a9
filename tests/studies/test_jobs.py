"""Runs of a sweep side by side, in processes of their own."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import fedlab
from fedlab.errors import RunFailedError
from fedlab.studies.spec import load_spec
from fedlab.studies.sweep import sweep
from tests.forks import Forks

pytestmark = pytest.mark.programs

SLEEP = "__import__('time').sleep(600)"
METHOD = """
from fedlab.methods.supervised.method import Supervised

class Mine(Supervised):
    title = "Mine"

    def loss(self, networks, batch, step):
        if {when}:
            {what}
        print("printed by the method")
        return super().loss(networks, batch, step)

METHOD = Mine
"""


def write_sweep(folder: Path, **raw: Any) -> Path:
    base = {
        "method": "supervised",
        "model": "logistic",
        "data": {"source": {"name": "shifted_digits", "train_per_class": 4, "test_size": 20}, "partition": ["domain"]},
        "federation": {"rounds": 2},
        "engine": {"name": "inline"},
        "tracking": {"console": "quiet", "tensorboard": False, "report": False, "checkpoint_every": 1},
        **raw,
    }
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump({"base": base, "grid": {"training.lr": [0.1, 0.2]}, "seeds": [0, 1]}))
    return file


def weights(run: fedlab.Run) -> bytes:
    return (run.checkpoint / "tensors.safetensors").read_bytes()


def test_the_results_are_those_of_runs_one_after_the_other(tmp_path: Path) -> None:
    asked = load_spec(str(write_sweep(tmp_path)))
    told: list[str] = []
    one = sweep(asked, tmp_path / "one")
    two = sweep(asked, tmp_path / "two", jobs=2, announce=told.append)
    for point, runs in one.batch.results.items():
        for seed, run in runs.items():
            other = two.batch.results[point][seed]
            assert weights(other) == weights(run)
            assert other.metrics["clients"] == run.metrics["clients"]
    assert sum(": begun" in line for line in told) == 4
    assert not list((tmp_path / "two" / "logs").iterdir())


def test_a_run_that_fails_is_told_with_its_reason_and_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(METHOD.format(when="step.round == 2", what="raise ValueError('a bug')"))
    monkeypatch.chdir(tmp_path)
    asked = load_spec(str(write_sweep(tmp_path, method={"name": "own:Mine"})))
    with pytest.raises(RunFailedError, match="a bug") as caught:
        sweep(asked, tmp_path / "out", jobs=2)
    log = Path(str(caught.value).rpartition("what it printed: ")[2])
    assert "printed by the method" in log.read_text()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_that_is_ended_leaves_no_process_and_goes_on(
    tmp_path: Path, forks: Forks, sent: signal.Signals
) -> None:
    slow = METHOD.format(when="step.round == 2 and not __import__('pathlib').Path('go').exists()", what=SLEEP)
    (tmp_path / "own.py").write_text(slow)
    file, out = write_sweep(tmp_path, method={"name": "own:Mine"}), tmp_path / "out"
    command = [Path(sys.executable).parent / "fedlab", "sweep", file, "--jobs", "2", "--folder", out]
    with (tmp_path / "output").open("w") as output:
        program = forks.start(command, cwd=tmp_path, out=output, err=output)
        while len(list(out.glob("runs/*/*/checkpoints/round_000001/checkpoint.json"))) < 2:
            assert program.lives(), (tmp_path / "output").read_text()
            time.sleep(0.05)
        os.kill(program.pid, sent)
        status = program.wait()
    begun = {path.parent for path in out.glob("runs/*/*/config.yaml")}
    assert len(begun) == 2
    if sent != signal.SIGKILL:
        assert status == 130
        assert "give the same command again to continue" in (tmp_path / "output").read_text()
    while [ending(path) for path in begun] != ["interrupted"] * 2:
        assert sent == signal.SIGKILL, "nobody waited for the runs to record their end"
        time.sleep(0.05)
    (tmp_path / "go").touch()
    done = forks.run(command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("continuing after round 1") == 2
    assert {path.parent for path in out.glob("runs/*/*/config.yaml")} > begun


def ending(path: Path) -> str | None:
    return fedlab.load(path).history.end.get("status")
