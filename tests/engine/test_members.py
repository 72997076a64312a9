"""A cluster that is running already: joining it, what is sent to its machines, and what they must have."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import ray

from fedlab.config.modules import own_modules, search
from fedlab.engine import members
from fedlab.engine.cluster import connect
from fedlab.errors import MachineError

PROGRAM = '''
"""A run with a method of the user's own, on a cluster of two nodes with one CPU each."""

import json
import sys
import threading
from pathlib import Path

import fedlab
import ray
from fedlab.engine import members
from ray.cluster_utils import Cluster

folder, where = Path(sys.argv[1]), sys.argv[2]
config = {
    "method": "own_method:Mine",
    "modules": [str(folder / "modules")],
    "model": {"name": "logistic"},
    "data": {"source": {"name": "digits", "train_per_domain": 20, "test_per_domain": 10},
             "partition": [{"name": "iid", "clients": 4}]},
    "federation": {"rounds": 2},
    "tracking": {"folder": str(folder), "console": "quiet", "tensorboard": False, "report": False},
}
told = {}
if where == "cluster":
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    config["engine"] = {"address": cluster.address, "chunk": 1}

    seen = []
    checked = members.check_members

    def look(shared, read):
        seen.append(str(shared))
        checked(shared, read)
        truth, versions = members._look, members.versions()
        for lie in (lambda paths: (versions, paths[-1:]), lambda paths: ({**versions, "torch": "0.1"}, []),
                    lambda paths: (versions, paths[:1])):
            members._look = lie
            try:
                checked(shared, [Path("/weights.safetensors")])
            except fedlab.FedLabError as error:
                seen.append(str(error))
        members._look = truth

    members.check_members = look
else:
    config["engine"] = {"name": "inline"}
run = fedlab.run(config)
told["digest"] = __import__("hashlib").sha256((run.checkpoint / "tensors.safetensors").read_bytes()).hexdigest()
told["workers"] = run.history.start["workers"]
if where == "cluster":
    told["seen"] = seen
    told["ray"] = ray.is_initialized()
    cluster.shutdown()
print(json.dumps(told))
'''

METHOD = """
import os
from pathlib import Path

import torch

from fedlab.methods.supervised.method import Supervised
from own_helper import note


class Mine(Supervised):
    def fit(self, ctx):
        note(__file__)
        ctx.state["kept"] = torch.ones(1)
        ctx.train()
"""

HELPER = """
import os
from pathlib import Path


def note(file):
    Path(os.environ["OWN_NOTES"], str(os.getpid())).write_text(f"{file}\\n{__file__}")
"""


def run(folder: Path, where: str) -> tuple[dict[str, object], list[list[str]]]:
    (folder / "modules").mkdir(parents=True)
    (folder / "modules" / "own_method.py").write_text(METHOD)
    (folder / "modules" / "own_helper.py").write_text(HELPER)
    (folder / "notes").mkdir()
    (folder / "program.py").write_text(PROGRAM)
    with tempfile.TemporaryDirectory(prefix="ray") as place:
        done = subprocess.run(
            [sys.executable, str(folder / "program.py"), str(folder), where],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "RAY_TMPDIR": place, "OWN_NOTES": str(folder / "notes")},
        )
    assert done.returncode == 0, done.stderr[-3000:]
    notes = [note.read_text().splitlines() for note in (folder / "notes").iterdir()]
    return json.loads(done.stdout.splitlines()[-1]), notes


@pytest.mark.slow
def test_a_method_of_the_users_own_reaches_the_workers_and_the_result_is_the_same(tmp_path: Path) -> None:
    alone, _ = run(tmp_path / "alone", "inline")
    told, notes = run(tmp_path / "cluster", "cluster")
    assert told["digest"] == alone["digest"]
    assert told["workers"] == 2, "one for each CPU of the cluster"
    sent = [files for files in notes if all("runtime_resources" in file for file in files)]
    assert sent
    assert len(notes) == len(sent) + 1, "only the preflight, in the driver's own process, used the folder itself"
    shared, apart, other, without = told["seen"]  # type: ignore[misc]  # a list, as JSON has it
    assert shared == str(tmp_path / "cluster")
    assert "tracking.folder" in apart
    assert "disk that the machines share" in apart
    assert "torch 0.1 instead of" in other
    assert "without /weights.safetensors" in without
    assert told["ray"] is False


def test_where_no_cluster_answers_the_address_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests of this process may have connected
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(MachineError, match=rf"engine.address = '{address}'\n.*running Ray cluster.*\n.*cluster up"):
            members.join(address)
        with pytest.raises(MachineError, match=r"engine\.address"):
            connect(1, address)
    with pytest.raises(MachineError, match=r"no-such-host"):
        members.join("no-such-host.invalid:6379")


@pytest.mark.parametrize("address", ["auto", "ray://somewhere:10001", "local", "host:port"])
def test_addresses_of_other_forms_are_left_to_ray(address: str) -> None:
    assert members.join(address) is None


def test_a_difference_is_told_by_name() -> None:
    here = members.versions()
    assert set(here) == {"Python", "fedlab-sim", "ray", "torch", "numpy"}
    assert members.difference(here, dict(here)) == ""
    assert members.difference(here, {**here, "numpy": "1.0"}) == f"numpy 1.0 instead of {here['numpy']}"
    without = {name: version for name, version in here.items() if name != "torch"}
    assert members.difference(here, without) == f"torch missing instead of {here['torch']}"


def test_modules_of_the_users_own_are_found_and_installed_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in (
        "mine_alone.py",
        "mine_unused.py",
        "mine_package/__init__.py",
        "mine_package/part.py",
        "deep/mine_deep.py",
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setattr("fedlab.config.modules._searched", [])
    search([tmp_path])
    sys.path.append(str(tmp_path / "deep"))
    try:
        for name in ("mine_alone", "mine_package.part", "mine_deep"):
            __import__(name)
        assert own_modules() == [str(tmp_path / "mine_alone.py"), str(tmp_path / "mine_package")]
    finally:
        for name in [name for name in sys.modules if name.startswith("mine_")]:
            del sys.modules[name]
