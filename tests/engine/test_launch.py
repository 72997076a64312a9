"""The single entry: its own engines, machine checks, clean ends, Flower's private names.

Flower's simulation is held against them in tests/server/test_parity.py.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from flwr.app import Array, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

import fedlab.engine
from fedlab.config import EngineConfig
from fedlab.engine import Listeners, Simulation, check_engine, launch, pin_threads
from fedlab.engine.grids.base import SimulationGrid
from fedlab.errors import ConfigError, MachineError
from fedlab.protocol.messages import metric_record
from tests.forks import Forks

Ask = Callable[..., list[Message]]

# Programs of their own, because they start and stop Ray
PREAMBLE = f"""
import hashlib, importlib.util, json, os, sys
import fedlab.engine
from fedlab.config import EngineConfig
spec = importlib.util.spec_from_file_location("engine_apps", {str(Path(__file__).parent / "conftest.py")!r})
apps = importlib.util.module_from_spec(spec)
sys.modules["engine_apps"] = apps
spec.loader.exec_module(apps)
"""

ENGINES = """
import ray
import flwr.supercore.telemetry
from fedlab.protocol.messages import exact_sum, requested_reduction

digests, pids = {}, []

def main(grid, context):
    assert dict(context.run_config) == {"secret": 5}
    messages = apps.ask(grid, range(4), reduce=True)
    for message, node in zip(messages, sorted(grid.get_node_ids()), strict=True):
        message.metadata.dst_node_id = node
    replies = list(grid.send_and_receive(messages))
    assert not any(reply.has_error() for reply in replies), replies
    pids.extend(reply.content["metrics"]["pid"] for reply in replies)
    mean = exact_sum(replies, requested_reduction(messages[0].content)).mean()
    digests[config.name] = hashlib.sha256(b"".join(mean[name].tobytes() for name in sorted(mean))).hexdigest()

for config in (EngineConfig(name="inline"), EngineConfig(workers=1)):
    simulation = fedlab.engine.Simulation(apps.build_app, 4, {"secret": 5})
    fedlab.engine.launch(config, fedlab.engine.check_engine(config), main, simulation)
    assert not ray.is_initialized()
print(json.dumps({
    "digests": digests,
    "processes": len(set(pids)),
    "telemetry": flwr.supercore.telemetry.FLWR_TELEMETRY_ENABLED,
}))
"""

INTERRUPTED = """
def main(grid, context):
    print(json.dumps(grid.worker_pids()), flush=True)
    grid.send_and_receive(apps.ask(grid, [0], hang=[0], began=sys.argv[1]))

config = EngineConfig(workers=1)
simulation = fedlab.engine.Simulation(apps.build_app, 4, {"secret": 5})
fedlab.engine.launch(config, fedlab.engine.check_engine(config), main, simulation)
"""


@pytest.fixture(autouse=True)
def _same_threads_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    pin_threads(before)


@pytest.mark.programs
def test_both_engines_give_the_same_result_quietly(forks: Forks, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PREAMBLE + ENGINES)
    done = forks.run([program], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["digests"]) == {"inline", "ray"}
    assert len(set(found["digests"].values())) == 1
    assert found["processes"] == 2
    assert found["telemetry"] == "0"
    assert "deprecated" not in done.stderr.lower(), done.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_memory_that_a_step_frees_is_there_for_the_next(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    # The C library gives memory back by thresholds that rise while a program runs, so they are set here. Huge pages
    # would hide most of the page faults. A fork would have free memory from before, in which all of this might fit.
    program.write_text("""
import ctypes, resource, sys
import numpy as np
from fedlab.engine.machine import keep_freed_memory

TRIM_THRESHOLD, MMAP_THRESHOLD, THP_DISABLE = -1, -3, 41
library = ctypes.CDLL(None)
library.prctl(THP_DISABLE, 1, 0, 0, 0)
library.mallopt(TRIM_THRESHOLD, 2**17)
library.mallopt(MMAP_THRESHOLD, 2**16)
library.malloc_trim(0)
if sys.argv[1] == "keep":
    keep_freed_memory()
for step in range(20):
    if step == 5:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    parts = [np.ones(2**20) for _ in range(12)]  # 96 MB
    del parts
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / 2**20)
""")
    given_back, kept = (float(subprocess.check_output([sys.executable, program, how])) for how in ("plain", "keep"))
    assert given_back > 100  # MB; otherwise this test shows nothing here
    assert kept < 10


@pytest.mark.programs
def test_an_interrupt_leaves_no_process_behind(tmp_path: Path) -> None:
    began = tmp_path / "began"
    program = subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + INTERRUPTED, str(began)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # the group that a terminal would interrupt
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores Ctrl-C
    )
    assert program.stdout is not None
    try:
        pids = json.loads(program.stdout.readline())
        while not began.exists():
            assert program.poll() is None, "it ended before it could be interrupted"
            time.sleep(0.05)
        os.killpg(program.pid, signal.SIGINT)
        _, errors = program.communicate()
    finally:
        program.kill()
    assert "KeyboardInterrupt" in errors
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) or _members_of_session(program.pid):
        time.sleep(0.05)


def _members_of_session(session: int) -> list[str]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        if rest.split()[3] == str(session) and rest.split()[0] != "Z":
            found.append(name)
    return found


def test_launch_restores_states_and_closes_after_an_error(factory: Callable[[], ClientApp], ask: Ask) -> None:
    closed: list[str] = []
    states = {0: RecordDict({"memory": MetricRecord({"count": 2})})}
    progress: list[tuple[int, int]] = []

    def main(grid: Grid, context: Context) -> None:
        assert isinstance(grid, SimulationGrid)
        grid.close = lambda: closed.append("yes")  # type: ignore[method-assign]  # watch the call
        (reply,) = grid.send_and_receive(ask(grid, [0]))
        metrics = metric_record(reply.content, "metrics")
        assert metrics is not None
        assert metrics["count"] == 3
        raise ArithmeticError("the server's own")

    inline = EngineConfig(name="inline")
    with pytest.raises(ArithmeticError):
        launch(
            inline,
            check_engine(inline),
            main,
            Simulation(factory, 4, {"secret": 5}),
            Listeners(on_progress=lambda done, total: progress.append((done, total))),
            client_states=states,
        )
    assert closed == ["yes"]
    assert progress == [(1, 1)]
    flower = EngineConfig(name="flower")
    with pytest.raises(ConfigError, match=r"engine\.name = 'flower'.*\n.*inline or ray"):
        launch(flower, check_engine(flower), main, Simulation(factory, 4), client_states=states)


def test_the_machine_is_checked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("fedlab.engine.placement.cores", lambda: 4)
    with pytest.raises(MachineError, match=r"engine\.device = 'cuda'\n  expected: a CUDA GPU"):
        check_engine(EngineConfig(device="cuda"))
    with pytest.raises(MachineError, match=r"engine\.gpus_per_worker = 0\.5"):
        check_engine(EngineConfig(gpus_per_worker=0.5))
    plain = check_engine(EngineConfig(threads=2))
    assert (plain.device, plain.workers, plain.gpus_per_worker) == ("cpu", 2, 0.0)
    assert check_engine(EngineConfig(name="inline")).workers == 1
    remote = check_engine(EngineConfig(device="cuda", address="10.0.0.1:6379"))
    assert (remote.device, remote.gpus_per_worker) == ("cuda", 1.0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"engine\.name = 'ray'\n  expected: the package ray"):
        check_engine(EngineConfig())
    assert check_engine(EngineConfig(name="inline")).device == "cpu"


@pytest.mark.parametrize(
    ("workers", "gpus", "share"), [(1, 1, 1.0), (4, 1, 0.25), (4, 2, 0.5), (5, 2, 1 / 3), (1, 4, 1)]
)
def test_workers_share_the_gpus_evenly(monkeypatch: pytest.MonkeyPatch, workers: int, gpus: int, share: float) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    placement = check_engine(EngineConfig(workers=workers))
    assert placement.device == "cuda"
    assert placement.gpus_per_worker == pytest.approx(share)
    assert check_engine(EngineConfig(workers=workers, device="cpu")).gpus_per_worker == 0


def test_more_workers_than_cores_is_a_warning(
    factory: Callable[[], ClientApp], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stop_here(*arguments: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(fedlab.engine, "_open", stop_here)
    monkeypatch.setattr(fedlab.engine, "cores", lambda: 2)
    config = EngineConfig(workers=3)
    with pytest.raises(InterruptedError):
        launch(config, check_engine(config), lambda grid, context: None, Simulation(factory, 1))
    assert "3 threads in all on 2 cores" in caplog.text


def test_threads_are_pinned_here() -> None:
    pin_threads(1)
    from threadpoolctl import threadpool_info

    assert torch.get_num_threads() == 1
    assert {pool["num_threads"] for pool in threadpool_info()} == {1}
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_flowers_private_names_are_still_there() -> None:
    """If this fails, Flower was upgraded: look at fedlab/engine before allowing that version."""
    for module, name in (
        ("flwr.supercore.run", "Run"),
        ("flwr.supercore.task_identity", "TaskIdentity"),
        ("flwr.supercore.constant", "NOOP_FEDERATION_ID"),
        ("flwr.supercore.telemetry", "EventType"),
        ("flwr.simulation.run_simulation", "_run_simulation"),
        ("flwr.app.user_config", "UserConfig"),
        *(("flwr.common.constant", name) for name in ("ErrorCode", "SUPERLINK_NODE_ID", "NUM_PARTITIONS_KEY")),
    ):
        assert hasattr(importlib.import_module(module), name), f"{module}.{name} is gone"
    from flwr.simulation.run_simulation import _run_simulation
    from flwr.supercore.run import Run

    needed = {"num_supernodes", "client_app", "server_app", "server_app_context", "run", "backend_config", "exit_event"}
    assert needed <= set(inspect.signature(_run_simulation).parameters)
    assert Run.create_empty(1).run_id == 1
    assert "metadata" in inspect.signature(Message.__init__).parameters
    message = Message(RecordDict(), 1000, "train")
    assert message.metadata.__dict__["_message_id"] == message.metadata.message_id
    assert {field.name for field in Array.__dataclass_fields__.values()} == {"dtype", "shape", "stype", "data"}
