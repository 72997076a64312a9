"""A SuperLink and two SuperNodes on loopback, with everything they write below one folder."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for held in sockets:
        held.bind(("127.0.0.1", 0))
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


def _end(root: Path) -> None:
    """End every process of this federation. Flower detaches its children from the group, but all inherit the folder."""
    mark = f"FLWR_HOME={root / 'flower'}".encode()

    def ours() -> list[int]:
        found = []
        for environment in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in environment.read_bytes().split(b"\0"):
                    found.append(int(environment.parent.name))
            except OSError:
                continue
        return [pid for pid in found if pid != os.getpid()]

    # a process may take its time over a request to end, but not over its death
    for kind, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, math.inf)):
        for pid in ours():
            try:
                os.kill(pid, kind)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + patience
        while ours() and time.monotonic() < deadline:
            time.sleep(0.1)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the federation: ``runs`` of the server, ``node0``, ``node1``; the connection is called ``loop``."""
    root = tmp_path_factory.mktemp("deployment")
    superlink, *nodes = _free_ports(3)
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
        environment.setenv("PATH", f"{binaries}{os.pathsep}{os.environ['PATH']}")
        environment.syspath_prepend(root / "modules")
        environment.setenv(
            "PYTHONPATH", os.pathsep.join([str(root / "modules"), *filter(None, [os.environ.get("PYTHONPATH")])])
        )

        processes = []

        def start(name: str, *command: str) -> None:
            log = (root / f"{name}.log").open("w")
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=root))

        try:
            start("superlink", "flower-superlink", "--insecure", "--port", str(superlink), "--isolation", "subprocess")
            for client, port in enumerate(nodes):
                node_config = f'partition-id={client} num-partitions=2 state-dir="{root / f"node{client}"}"'
                address = ("--superlink", f"127.0.0.1:{superlink}", "--port", str(port))
                start(f"node{client}", "flower-supernode", "--insecure", *address, "--node-config", node_config)
            _wait_for(f"http://127.0.0.1:{superlink}/health", processes[0], root)
            yield root
        finally:
            _end(root)
            for process in processes:
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
