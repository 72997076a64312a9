"""Flower's own simulation gives the same run as ours."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.forks import Forks

# a program of its own: Flower's simulation shuts Ray down for the whole process
PROGRAM = """
import json, logging, os, sys
import safetensors.torch, torch
import fedlab

def run(engine):
    return fedlab.run("fedlgd", overrides=[
        f"engine.name={engine}", "engine.workers=1", "engine.device=cpu", "model={name: convnet, width: 8, depth: 2}",
        "training.lr=0.05", "data.source={name: shifted_digits, train_per_class: 4, test_size: 30}",
        "data.partition=[{name: iid, clients: 2}]", "method.ipc_local=2", "method.ipc_global=2",
        "method.warmup_steps=3", "method.dm_steps=2", "method.gm_steps=2", "method.spacing=1", "method.updates=1",
        "federation.rounds=2", "evaluation.every=1", "tracking.console=quiet", "tracking.tensorboard=false",
        "tracking.report=false",
        f"tracking.folder={sys.argv[1]}/{engine}", f"tracking.cache={sys.argv[1]}/{engine}-cache",
    ])

inline = run("inline")
level = logging.getLogger("flwr").level
flower = run("flower")
a, b = (safetensors.torch.load_file(done.checkpoint / "tensors.safetensors") for done in (inline, flower))
print(json.dumps({
    "names": sorted(a) == sorted(b),
    "shared": [name for name in a if name.startswith("shared/")],
    "different": [name for name in a if not torch.equal(a[name], b[name])],
    "metrics": inline.metrics["mean"] == flower.metrics["mean"],
    "undisturbed": logging.getLogger("flwr").level == level and "PYTHONPATH" not in os.environ,
    "rounds": [[event["clients"] for event in done.history.rounds] for done in (inline, flower)],
}))
"""


@pytest.mark.programs
def test_fedlgd_is_the_same_bit_for_bit(tmp_path: Path, forks: Forks) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = forks.run([program, tmp_path], cwd=tmp_path, env={**environment, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower(), done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "names": True,
        "shared": ["shared/images"],
        "different": [],
        "metrics": True,
        "undisturbed": True,
        "rounds": [[[0, 1], [0, 1]], [[0, 1], [0, 1]]],
    }
