"""`fedlab cluster up` and `down` over real ssh: two machines, and a third from which they are called, as containers."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

pytestmark = [pytest.mark.docker, pytest.mark.timeout(3600)]
Called = Callable[..., str]

# every machine lets in whoever has the key that all of them have
DOCKERFILE = """
FROM {image}
USER 0
RUN apt-get update && apt-get install -y --no-install-recommends openssh-server openssh-client
RUN mkdir -p /run/sshd /home/fedlab/.ssh && usermod --shell /bin/sh --home /home/fedlab --password '*' fedlab && \\
    cd /home/fedlab/.ssh && ssh-keygen -q -t ed25519 -N '' -f id_ed25519 && cp id_ed25519.pub authorized_keys && \\
    echo 'StrictHostKeyChecking accept-new' > config && chown -R fedlab:fedlab /home/fedlab && chmod 700 .
USER 10001:10001
"""
CONFIG = """
method: supervised
model: {name: logistic}
data:
  source: {name: digits, train_per_domain: 40, test_per_domain: 20}
  partition: [{name: iid, clients: 6}]
federation: {rounds: 2}
engine: {chunk: 1}
tracking: {tensorboard: false, report: false}
"""
PYTHON = ("--python", "/opt/fedlab/bin/python")


@pytest.fixture
def driver(image: str, docker: Called, tmp_path: Path) -> Iterator[str]:
    """A container in a network with the machines ``one`` and ``two``; both run nothing but an ssh server."""
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.format(image=image))
    name = f"fedlab-ssh-{uuid4().hex[:8]}"
    docker("build", "--tag", name, ".")
    docker("network", "create", name)
    common = ("run", "--detach", "--init", "--network", name, "--shm-size", "1g")
    try:
        for host in ("one", "two"):
            named = ("--name", f"{name}-{host}", "--hostname", host, "--network-alias", host)
            docker(*common, *named, "--user", "0", name, "/usr/sbin/sshd", "-D", "-e")
        docker(*common, "--name", f"{name}-driver", name, "sleep", "infinity")
        (tmp_path / "tiny.yaml").write_text(CONFIG)
        docker("cp", str(tmp_path / "tiny.yaml"), f"{name}-driver:/project/tiny.yaml")
        yield f"{name}-driver"
    finally:
        made = [f"{name}-{machine}" for machine in ("one", "two", "driver")]
        for words in (["rm", "--force", *made], ["network", "rm", name], ["image", "rm", name]):
            subprocess.run(["docker", *words], capture_output=True, check=False)


def failing(driver: str, *words: str) -> str:
    """What a command says that must fail."""
    done = subprocess.run(["docker", "exec", driver, *words], capture_output=True, text=True, check=False)
    assert done.returncode != 0, done.stdout
    return done.stderr


def test_a_cluster_is_started_used_and_stopped_over_ssh(driver: str, docker: Called) -> None:
    def fedlab(*words: str) -> str:
        return docker("exec", driver, "fedlab", *words)

    assert "nowhere" in failing(driver, "fedlab", "cluster", "up", "one", "nowhere", *PYTHON)
    said = fedlab("cluster", "up", "one", "two", *PYTHON, "--cpus", "1")
    assert "cluster of 2 machines at " in said
    address = said.split(" at ")[1].split()[0]
    assert "Ray runs on it" in failing(driver, "fedlab", "cluster", "up", "two", *PYTHON)
    run = ("run", "tiny.yaml", "--quiet", "--folder", "/tmp/runs", "--name")
    fedlab(*run, "cluster", "--engine", "ray", "--address", address)
    fedlab(*run, "inline", "--engine", "inline")
    file = "checkpoints/round_000002/tensors.safetensors"
    hashes = docker("exec", driver, "sha256sum", f"/tmp/runs/cluster/{file}", f"/tmp/runs/inline/{file}").split()
    assert hashes[0] == hashes[2]
    events = docker("exec", driver, "head", "-1", "/tmp/runs/cluster/events.jsonl")
    assert '"workers": 2' in events
    fedlab("cluster", "down", "one", "two", *PYTHON)
    for host in ("one", "two"):
        machine = driver.replace("driver", host)
        assert '"nodes": 0' in docker("exec", machine, "/opt/fedlab/bin/python", "-m", "fedlab.engine.host", "about")
