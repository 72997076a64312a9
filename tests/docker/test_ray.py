"""docker/compose.ray.yml: a head, two workers and a driver, whose folder the workers do not see."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.docker.conftest import REPOSITORY

pytestmark = [pytest.mark.docker, pytest.mark.timeout(3600)]
Called = Callable[..., str]

CONFIG = """
method: {name: "own_method:Mine"}
model: {name: logistic}
data:
  source: {name: digits, train_per_domain: 40, test_per_domain: 20}
  partition: [{name: iid, clients: 6}]
federation: {rounds: 3}
engine: {chunk: 1}
tracking: {tensorboard: false}
"""
# the workers have neither this file nor the helper that it imports, and its clients keep a tensor
METHOD = """
import torch

from fedlab.methods.supervised.method import Supervised
from own_helper import LABEL


class Mine(Supervised):
    def fit(self, ctx):
        ctx.state[LABEL] = ctx.state.get(LABEL, torch.zeros(1)) + 1
        ctx.train()
"""


@pytest.fixture
def cluster(image: str, docker: Called, tmp_path: Path) -> Iterator[Path]:
    shutil.copy(REPOSITORY / "docker" / "compose.ray.yml", tmp_path / "compose.yml")
    user = [f"FEDLAB_UID={os.getuid() or 10001}", f"FEDLAB_GID={os.getgid() or 10001}"]
    (tmp_path / ".env").write_text("\n".join([*user, f"FEDLAB_IMAGE={image}", ""]))
    (tmp_path / "own.yaml").write_text(CONFIG)
    (tmp_path / "own_method.py").write_text(METHOD)
    (tmp_path / "own_helper.py").write_text('LABEL = "rounds"\n')
    (tmp_path / "runs").mkdir()
    if os.getuid() == 0:  # the containers never run as root
        os.chown(tmp_path / "runs", 10001, 10001)
    tmp_path.chmod(0o755)
    try:
        docker("compose", "up", "--detach", "--wait")
        yield tmp_path
    finally:
        docker("compose", "--profile", "driver", "down", "--volumes")


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "checkpoints" / "round_000003" / "tensors.safetensors").read_bytes()).hexdigest()


def test_a_run_on_the_cluster_ends_with_the_hash_of_the_inline_engine(cluster: Path, docker: Called) -> None:
    run = ("compose", "run", "--rm", "-T", "driver", "run", "own.yaml", "--plain", "--name")
    said = docker(*run, "cluster", "--engine", "ray", "--address", "head:6379")
    assert "cluster" in said
    docker(*run, "inline", "--engine", "inline")
    assert digest(cluster / "runs" / "cluster") == digest(cluster / "runs" / "inline")
    started = next(line for line in (cluster / "runs" / "cluster" / "events.jsonl").read_text().splitlines())
    assert '"workers": 2' in started
