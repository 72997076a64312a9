"""Several nodes: a Ray cluster of two on this machine, one of which is lost in mid-round."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

PROGRAM = '''
"""Rounds over a two-node cluster; in the second one of the nodes is killed while its clients train."""

import json
import logging
import sys
import threading
import time
from pathlib import Path

from ray.cluster_utils import Cluster

import fedlab

folder, name, engine = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
config = {
    "method": "supervised",
    "model": {"name": "logistic"},
    "data": {"source": {"name": "digits", "train_per_domain": 60, "test_per_domain": 20},
             "partition": [{"name": "iid", "clients": 12}]},
    "training": {"batch_size": 1, "local_epochs": 12},
    "federation": {"rounds": 3},
    "tracking": {"folder": str(folder), "name": name, "console": "quiet", "tensorboard": False},
}
if engine == "inline":
    fedlab.run({**config, "engine": {"name": "inline"}})
    raise SystemExit

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
lost = cluster.add_node(num_cpus=1)
told = {}


def kill_when_both_work():
    """The node goes when the first round is over and both nodes have begun the second."""
    events = folder / name / "events.jsonl"
    while not (events.is_file() and '"round": 2, "phase": "train"' in events.read_text()):
        time.sleep(0.005)
    import ray

    told["nodes"] = sum(node["Alive"] for node in ray.nodes())
    time.sleep(0.05)
    cluster.remove_node(lost, allow_graceful=False)
    told["killed"] = True


killer = threading.Thread(target=kill_when_both_work)
killer.start()
run = fedlab.run({**config, "engine": {"name": "ray", "workers": 2, "address": cluster.address, "chunk": 1}})
killer.join()
spans = [event for event in json.loads(run.folder.timeline.read_text()) if event.get("cat") == "train"]
told["workers"] = sorted({event["tid"] for event in spans if event["args"]["round"] == 1})
print(json.dumps(told))
cluster.shutdown()
'''


def run(folder: Path, name: str, engine: str) -> tuple[dict[str, object], str]:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    # where other programs do not look for a cluster to join; the paths of sockets must be short
    with tempfile.TemporaryDirectory(prefix="ray") as place:
        done = subprocess.run(
            [sys.executable, str(program), str(folder), name, engine],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "RAY_TMPDIR": place},
        )
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, object] = json.loads(done.stdout.splitlines()[-1]) if engine != "inline" else {}
    return told, done.stderr


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "checkpoints" / "round_000003" / "tensors.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_a_node_lost_in_mid_round_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path, "inline", "inline")
    told, warnings = run(tmp_path, "cluster", "ray")
    assert told["nodes"] == 2
    assert told["killed"]
    assert told["workers"] == [0, 1], "the first round was to use both nodes"
    assert "repeating clients" in warnings
    assert digest(tmp_path / "cluster") == digest(tmp_path / "inline")
