"""``python -m benchmarks.deployment``: what a round costs on real SuperNodes of this machine.

``rounds`` compares a process for every message and Flower's own pauses with a resident worker and FedLab's, in turns.
``payload`` sends models of so many megabytes to the nodes and back.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.pace import cpu_seconds, family, resident
from fedlab.clients.resident.programs import install
from fedlab.config.node import ALLOW
from fedlab.deployment import processes
from fedlab.deployment.flower import LOOKS

ROOT = Path(__file__).resolve().parents[1]
_LOOK = 0.05  # seconds between two looks for a new round
_FEDLGD: dict[str, Any] = {
    "seed": 3,
    "method": {
        "name": "fedlgd",
        "ipc_local": 2,
        "ipc_global": 2,
        "warmup_steps": 3,
        "dm_steps": 2,
        "gm_steps": 2,
        "spacing": 1,
        "updates": 1,
    },
    "model": {"name": "convnet", "width": 8},
    "data": {
        "source": {
            "name": "digits",
            "domains": ["handwritten", "mnist", "synth"],
            "train_per_domain": 60,
            "test_per_domain": 30,
        },
        "partition": ["domain"],
    },
    "training": {"lr": 0.05, "batch_size": 16},
    "evaluation": {"every": 1},
    "engine": {"device": "cpu"},
}


@dataclass(frozen=True)
class Way:
    """A way to run a deployment.

    Args:
        name: shown in the table.
        server: reference of the ServerApp.
        client: reference of the ClientApp.
        variables: of the environment of all processes.
        light: whether FedLab's programs take the place of two of Flower's.
    """

    name: str
    server: str
    client: str
    variables: Mapping[str, str]
    light: bool = False


OLD = Way("a process for every message", "benchmarks.contenders.flower_polls:app", "fedlab.clients.app:app", {})
NEW = Way(
    "a resident worker",
    "fedlab.server.app:app",
    "fedlab.clients.resident.app:app",
    LOOKS,
    light=True,
)


@dataclass
class Round:
    """What a round took: seconds, and CPU seconds of all processes of the federation."""

    wall: float
    cpu: float


@dataclass
class Peaks:
    """Megabytes at the peak: of each kind of process, and of all processes together at one moment."""

    kinds: dict[str, float] = field(default_factory=dict)
    together: float = 0.0

    def look(self, running: list[int]) -> None:
        """Take what is held now into account."""
        held = [(_kind(process), resident(process)) for process in running]
        for kind, size in held:
            self.kinds[kind] = max(self.kinds.get(kind, 0.0), size)
        self.together = max(self.together, sum(size for _, size in held))


class Federation:
    """A SuperLink and its SuperNodes, with all that they write below one folder."""

    def __init__(self, folder: Path, nodes: int, way: Way) -> None:
        self.folder, self.nodes, self.way = folder, nodes, way
        self.environment = {
            **os.environ,
            **way.variables,
            "FLWR_HOME": str(folder / "flower"),
            "FEDLAB_RUNS": str(folder / "runs"),
            ALLOW: "benchmarks.*",  # the method that sends payloads
            "PATH": os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        }

    @contextmanager
    def started(self) -> Iterator[Federation]:
        """The processes, which end when this is left."""
        ports = processes.free_ports(self.nodes + 1)
        app = self.folder / "app"
        for made in (self.folder / "flower", app):
            made.mkdir(parents=True)
        if self.way.light:
            install(self.folder / "bin")
        text = (ROOT / "fedlab" / "deployment" / "app" / "pyproject.toml").read_text()
        text = text.replace('"fedlab.server.app:app"', f'"{self.way.server}"')
        (app / "pyproject.toml").write_text(_with_client(text, self.way.client))
        (self.folder / "flower" / "config.toml").write_text(
            f'[superlink]\ndefault = "loop"\n[superlink.loop]\naddress = "127.0.0.1:{ports[0]}"\ninsecure = true\n'
        )
        try:
            link = self._start(
                "superlink", "flower-superlink", "--insecure", "--port", str(ports[0]), "--isolation", "subprocess"
            )
            _wait_for(f"http://127.0.0.1:{ports[0]}/health", link)
            for node, port in enumerate(ports[1:]):
                own = f'partition-id={node} state-dir="{self.folder / f"node{node}"}"'
                address = ("--superlink", f"127.0.0.1:{ports[0]}", "--port", str(port))
                self._start(f"node{node}", "flower-supernode", "--insecure", *address, "--node-config", own)
            yield self
        finally:
            processes.end_carrying({"FLWR_HOME": self.environment["FLWR_HOME"]}, grace=0.0)

    def run(self, config: Mapping[str, Any], peaks: Peaks | None = None) -> list[Round]:
        """Run a configuration, and return what every round after the first took."""
        from fedlab.config import Config, parse
        from fedlab.protocol.runconfig import Submission, pack

        before = set((self.folder / "runs").glob("*/events.jsonl"))
        packed = pack(Submission(parse(Config, dict(config)), simulate_partition=True))
        settings = self.folder / "run.toml"
        settings.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in packed.items()))
        command = ["flwr", "run", str(self.folder / "app"), "loop", "--run-config", str(settings)]
        subprocess.run(command, env=self.environment, check=True, stdout=subprocess.DEVNULL)
        if peaks is not None:
            threading.Thread(target=self._watch, args=[peaks], daemon=True).start()
        rounds, last = list[Round](), (0.0, 0.0)
        while True:
            time.sleep(_LOOK)
            found = [path for path in (self.folder / "runs").glob("*/events.jsonl") if path not in before]
            if not found:
                continue
            if _finished(found[0]) > len(rounds):
                now = time.monotonic(), self._cpu()
                rounds.append(Round(now[0] - last[0], now[1] - last[1]))
                last = now
            if len(rounds) == config["federation"]["rounds"]:
                return rounds[1:]

    def processes(self) -> list[int]:
        """All processes of this federation; a worker that nobody waits for is one, too."""
        return processes.carrying({"FLWR_HOME": self.environment["FLWR_HOME"]})

    def _cpu(self) -> float:
        ours = set(self.processes())
        # a process that has ended and was not waited for has no environment, but a parent
        return sum(cpu_seconds(process) for process in ours | {p for root in ours for p in family(root)})

    def _watch(self, peaks: Peaks) -> None:
        while running := self.processes():
            peaks.look(running)
            time.sleep(0.2)

    def _start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{name}.log").open("w")
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, env=self.environment)


def compare_rounds(rounds: int, heats: int) -> None:
    """FedLGD on three nodes, both ways in turns."""
    config = {**_FEDLGD, "federation": {"rounds": rounds + 1}}
    taken: dict[str, list[Round]] = {OLD.name: [], NEW.name: []}
    with tempfile.TemporaryDirectory(prefix="fl-") as folder:
        places = {way.name: Federation(Path(folder, name), 3, way) for name, way in (("old", OLD), ("new", NEW))}
        for _ in range(heats):
            for name, federation in places.items():
                # a federation of its own for each turn: the other's processes would look for work meanwhile
                place = Federation(federation.folder / str(len(taken[name])), 3, federation.way)
                with place.started():
                    taken[name] += place.run(config)
                print(f"{name}: {[f'{one.wall:.2f}' for one in taken[name]]}", file=sys.stderr, flush=True)
    print(f"FedLGD, 3 nodes, an evaluation every round, {heats} × {rounds} rounds in turns, {_machine()}\n")
    print("| way | seconds a round (median) | least | most | CPU seconds a round (median) |\n|---|---|---|---|---|")
    for name, found in taken.items():
        walls, cpus = [one.wall for one in found], [one.cpu for one in found]
        middle = f"{statistics.median(walls):.2f} | {min(walls):.2f} | {max(walls):.2f} | {statistics.median(cpus):.2f}"
        print(f"| {name} | {middle} |")
    old, new = (
        [statistics.median([getattr(one, what) for one in found]) for what in ("wall", "cpu")]
        for found in taken.values()
    )
    print(f"\nnew / old: {new[0] / old[0]:.2f} of the seconds, {new[1] / old[1]:.2f} of the CPU seconds")


def send_payloads(megabytes: list[float], nodes: int, rounds: int) -> None:
    """Models of these sizes, sent to the nodes and back unchanged."""
    print(f"a model sent to {nodes} nodes and back, {rounds} rounds, {_machine()}\n")
    for size in megabytes:
        config = {
            "method": {"name": "benchmarks.contenders.payload:Changing", "payload": int(size * 1e6) // 4},
            "data": {
                "source": {"name": "digits", "domains": ["synth"], "train_per_domain": 20, "test_per_domain": 10},
                "partition": [{"name": "iid", "clients": nodes}],
            },
            # neither the first round is measured nor the last, which also evaluates
            "federation": {"rounds": rounds + 2},
            "evaluation": {"every": rounds + 2},
            "engine": {"device": "cpu"},
            "tracking": {"checkpoint_every": 10**6, "report": False},
        }
        with tempfile.TemporaryDirectory(prefix="fl-") as folder:
            federation = Federation(Path(folder, "new"), nodes, NEW)
            peaks = Peaks()
            with federation.started():
                taken = federation.run(config, peaks)[:-1]
            _tell(f"{size:g} MB, {nodes} nodes", taken, peaks)
            for engine in ({"name": "inline"}, {"name": "ray", "workers": nodes}):
                peaks = Peaks()
                taken = _simulated(
                    {**config, "engine": {**engine, "device": "cpu"}}, Path(folder, engine["name"]), peaks
                )
                _tell(f"{size:g} MB, simulated {engine['name']}", taken, peaks)


def _tell(what: str, rounds: list[Round], peaks: Peaks) -> None:
    walls = ", ".join(f"{one.wall:.1f} s ({one.cpu:.1f} s of CPU)" for one in rounds)
    kinds = ", ".join(f"{kind} {held:.0f}" for kind, held in sorted(peaks.kinds.items()))
    print(f"{what}: rounds of {walls}\n  MB at the peak: {kinds}; all together {peaks.together:.0f}", flush=True)


def _simulated(config: Mapping[str, Any], folder: Path, peaks: Peaks) -> list[Round]:
    """What the rounds of a simulation took, but for the first and the last."""
    folder.mkdir()
    place = {**config["tracking"], "folder": str(folder), "name": "run", "console": "quiet"}
    (folder / "run.yaml").write_text(json.dumps({**config, "tracking": place}))
    command = [str(Path(sys.executable).with_name("fedlab")), "run", str(folder / "run.yaml")]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    ends = [(0.0, 0.0)]
    while process.poll() is None:
        running = family(process.pid)
        peaks.look(running)
        if _finished(folder / "run" / "events.jsonl") >= len(ends):
            ends.append((time.monotonic(), sum(map(cpu_seconds, running))))
        time.sleep(_LOOK)
    if process.returncode:
        raise SystemExit(f"the simulation ended with exit code {process.returncode}")
    return [Round(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(ends[1:])]


def _finished(file: Path) -> int:
    """Number of finished rounds of a run; ends the benchmark if the run has failed."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("\n")]  # the last line may still be written
    failed = [event for event in events if event["event"] == "run_end" and event["status"] != "completed"]
    if failed:
        raise SystemExit(f"the run failed: {failed}")
    return sum(event["event"] == "round" for event in events)


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deployment", description=__doc__)
    parser.add_argument("what", choices=["rounds", "payload"])
    parser.add_argument("--rounds", type=int, default=4, help="measured rounds of a run")
    parser.add_argument("--heats", type=int, default=2, help="runs of each way")
    parser.add_argument("--nodes", type=int, default=2, help="nodes that get the payload")
    parser.add_argument("--megabytes", type=float, nargs="+", default=[344.0, 1200.0], help="sizes of the model")
    asked = parser.parse_args()
    if asked.what == "rounds":
        compare_rounds(asked.rounds, asked.heats)
    else:
        send_payloads(asked.megabytes, asked.nodes, asked.rounds)


def _with_client(text: str, reference: str) -> str:
    lines = [f'clientapp = "{reference}"' if line.startswith("clientapp =") else line for line in text.splitlines()]
    return "\n".join(lines) + "\n"


def _kind(process: int) -> str:
    """Which part of the federation a process is."""
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return "gone"
    parts = ("resident.worker", "flwr-serverapp", "flwr-clientapp", "superexec", "superlink", "supernode")
    return next((part for part in parts if part in command), "other")


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=60):
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the SuperLink did not start")


def _machine() -> str:
    libraries = ", ".join(f"{name} {version(package)}" for name, package in (("PyTorch", "torch"), ("Flower", "flwr")))
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, {libraries}, {date.today()}"


if __name__ == "__main__":
    main()
