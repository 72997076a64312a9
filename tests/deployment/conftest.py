"""A SuperLink and two SuperNodes on loopback, with everything they write below one folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedlab.deployment import processes

# a method that fails on one client; nodes import it by name
BROKEN = """
from fedlab.methods.supervised.method import Supervised


class Broken(Supervised):
    def fit(self, ctx):
        if ctx.client == 1:
            raise ArithmeticError("one of the nodes cannot count")
        ctx.train()
"""


def _logs(root: Path) -> str:
    tails = [f"== {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in sorted(root.glob("*.log"))]
    return "\n".join(tails)


def ours(root: Path) -> dict[str, str]:
    """What the environment of every process of this federation has: all inherit the folder, also what is detached."""
    return {"FLWR_HOME": str(root / "flower")}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the federation: ``runs`` of the server, ``node0``, ``node1``; the connection is called ``loop``."""
    root = tmp_path_factory.mktemp("deployment")
    superlink, *nodes = processes.free_ports(3)
    for folder in ("flower", "modules"):
        (root / folder).mkdir()
    (root / "modules" / "broken_method.py").write_text(BROKEN)
    (root / "flower" / "config.toml").write_text(
        f'[superlink]\ndefault = "loop"\n[superlink.loop]\naddress = "127.0.0.1:{superlink}"\ninsecure = true\n'
    )
    binaries = Path(sys.executable).parent
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FLWR_HOME", str(root / "flower"))
        environment.setenv("FEDLAB_RUNS", str(root / "runs"))
        environment.setenv("FEDLAB_ALLOW", "broken_method:Broken,waiting_method.*")
        environment.setenv("PATH", f"{binaries}{os.pathsep}{os.environ['PATH']}")
        environment.syspath_prepend(root / "modules")
        environment.setenv(
            "PYTHONPATH", os.pathsep.join([str(root / "modules"), *filter(None, [os.environ.get("PYTHONPATH")])])
        )

        started = []

        def start(name: str, *command: str) -> None:
            log = (root / f"{name}.log").open("w")
            started.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=root))

        try:
            start("superlink", "flower-superlink", "--insecure", "--port", str(superlink), "--isolation", "subprocess")
            for client, port in enumerate(nodes):
                node_config = f'partition-id={client} num-partitions=2 state-dir="{root / f"node{client}"}"'
                address = ("--superlink", f"127.0.0.1:{superlink}", "--port", str(port))
                start(f"node{client}", "flower-supernode", "--insecure", *address, "--node-config", node_config)
            _wait_for(f"http://127.0.0.1:{superlink}/health", started[0], root)
            yield root
        finally:
            processes.end_carrying(ours(root))
            for process in started:
                process.wait()


@pytest.fixture(scope="module")
def logs(deployment: Path) -> Callable[[], str]:
    """The end of every process's log."""
    return lambda: _logs(deployment)


def _wait_for(address: str, process: subprocess.Popen[bytes], root: Path) -> None:
    while process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=60):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the SuperLink did not start\n{_logs(root)}")
