"""Real processes that are killed in the middle of a run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import fedlab
from fedlab.config import Config, parse
from fedlab.deployment import processes
from fedlab.deployment.submit import DeploymentError, submit, wait
from fedlab.storage.checkpoint import load_checkpoint
from tests.deployment.conftest import ours
from tests.waiting import until

pytestmark = [pytest.mark.deployment, pytest.mark.slow, pytest.mark.timeout(7200)]

# in round 3, client 0 works until somebody lets it go
WAITING = """
import time
from pathlib import Path
from fedlab.methods.supervised.method import Supervised


class Waiting(Supervised):
    def fit(self, ctx):
        ctx.train()
        while ctx.round == 3 and ctx.client == 0 and not ctx.preflight and not Path(__file__).with_name("go").exists():
            time.sleep(0.05)
"""

CONFIG: dict[str, Any] = {
    "method": {"name": "waiting_method:Waiting"},
    "model": {"name": "convnet", "width": 4},
    "data": {
        "source": {"name": "shifted_digits", "train_per_class": 2, "test_size": 12},
        "partition": [{"name": "iid", "clients": 2}],
    },
    # a client's control variate is its own and changes from round to round
    "federation": {"rounds": 4, "strategy": {"name": "scaffold"}},
    "evaluation": {"every": 2},
    "engine": {"device": "cpu"},
    "tracking": {"name": "killed", "report": False},
}


def processes_of(root: Path, program: str) -> list[int]:
    """Processes of this federation that run a program of Flower's."""
    found = []
    for pid in processes.carrying(ours(root)):
        with suppress(OSError):  # it has ended meanwhile
            if program.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def test_a_run_goes_on_after_its_server_was_killed_and_ends_with_the_bits_of_an_undisturbed_one(
    deployment: Path, logs: Callable[[], str], tmp_path: Path
) -> None:
    (deployment / "modules" / "waiting_method.py").write_text(WAITING)
    config, folder = parse(Config, CONFIG), deployment / "runs" / "killed"
    submit(config, "loop", simulate_partition=True, token="c0ffee")
    until((folder / "checkpoints" / "round_000002" / "checkpoint.json").exists)
    until(lambda: bool(list((deployment / "node1" / "runs" / "c0ffee").rglob("000003.state"))))
    for pid in processes_of(deployment, "flwr-serverapp"):
        os.kill(pid, signal.SIGKILL)
    (deployment / "modules" / "go").touch()
    resumed = submit(config, "loop", simulate_partition=True, token="c0ffee", resume="killed")
    try:
        wait(resumed, "loop")
    except DeploymentError as error:
        pytest.fail(f"{error}\n{logs()}")
    run = fedlab.load(folder)
    assert run.history.start["resumed"] == 2
    assert [event["clients"] for event in run.history.rounds] == [[0, 1]] * 4
    here = {"folder": str(tmp_path / "runs"), "cache": str(tmp_path / "cache"), "console": "quiet"}
    whole = fedlab.run({**CONFIG, "engine": {"name": "inline", "device": "cpu"}, "tracking": here})
    ours, theirs = load_checkpoint(run.checkpoint)[0], load_checkpoint(whole.checkpoint)[0]
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert run.metrics["clients"] == whole.metrics["clients"]
