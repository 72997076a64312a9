"""Ray itself is killed under a run: the run ends with a word, and goes on later."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fedlab
from fedlab.storage.checkpoint import load_checkpoint
from tests.forks import Forks
from tests.waiting import until

pytestmark = pytest.mark.drill

CONFIG = """
method: supervised
model: {{name: logistic}}
data:
  source: {{name: shifted_digits, train_per_class: 2, test_size: 20}}
  partition: [{{name: iid, clients: 4}}]
federation: {{rounds: 40}}
engine: {{name: {engine}, workers: {workers}}}
tracking: {{folder: runs, name: {name}, console: quiet, tensorboard: false, checkpoint_every: 1}}
"""

PROGRAM = """
import os, pathlib, signal, sys, time
import ray
from fedlab.cli.main import main
from fedlab.engine import raywatch

what, wait = sys.argv.pop(1), ray.wait

def killing(refs, **options):
    # a wait in which Ray dies finishes nothing; were Ray asked something in that moment, it would end the driver itself
    if '"event": "checkpoint"' not in pathlib.Path("runs/killed/events.jsonl").read_text():
        return wait(refs, **options)
    if what == "program":
        os._exit(1)  # as Ray does when it is asked something in the moment in which its raylet dies
    process = raywatch.processes_of_ray()[what]
    os.kill(process.pid, signal.SIGKILL)
    while process.poll() is None:
        time.sleep(0.01)
    return [], refs

ray.wait = killing
main()
"""


@pytest.mark.parametrize("what", ["raylet", "gcs_server"])
def test_a_run_whose_ray_is_killed_ends_with_a_word_and_goes_on_later(what: str, tmp_path: Path, forks: Forks) -> None:
    (tmp_path / "killed.yaml").write_text(CONFIG.format(engine="ray", workers=1, name="killed"))
    (tmp_path / "program.py").write_text(PROGRAM)
    done = forks.run([tmp_path / "program.py", what, "run", "killed.yaml"], cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert f"Ray's {what} has died (signal 9)" in done.stderr
    assert "fedlab resume RUN" in done.stderr
    assert "Traceback" not in done.stderr
    killed = fedlab.load(tmp_path / "runs" / "killed")
    assert killed.history.end["status"] == "failed"
    assert "has died" in killed.history.end["error"]
    assert killed.folder.report.is_file()
    _goes_on(killed, tmp_path)


def test_a_run_that_ray_ends_by_itself_has_an_end_too_and_goes_on_later(tmp_path: Path, forks: Forks) -> None:
    (tmp_path / "killed.yaml").write_text(CONFIG.format(engine="ray", workers=1, name="killed"))
    (tmp_path / "program.py").write_text(PROGRAM)
    done = forks.run([tmp_path / "program.py", "program", "run", "killed.yaml"], cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    killed = fedlab.load(tmp_path / "runs" / "killed")
    until(killed.folder.report.is_file)  # by the process that waited beside the run
    assert killed.history.end["status"] == "failed"
    assert "ended without a word" in killed.history.end["error"]
    _goes_on(killed, tmp_path)


def _goes_on(killed: fedlab.Run, tmp_path: Path) -> None:
    """The run ends with the weights of one that was never killed."""
    resumed = fedlab.resume(killed.path, overrides=["engine.name=inline"])
    (tmp_path / "whole.yaml").write_text(CONFIG.format(engine="inline", workers=1, name="whole"))
    whole = fedlab.run(tmp_path / "whole.yaml", overrides=[f"tracking.folder={tmp_path / 'runs'}"])
    ours, theirs = (load_checkpoint(run.checkpoint)[0] for run in (resumed, whole))
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
