"""A whole run of a Flower app: results, record, errors, and the same on every engine."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlab.errors import CheckpointError, ClientError, DiskFullError
from fedlab.experiment.last_words import REASON
from fedlab.flowerapp.loading import FlowerAppError
from fedlab.tracking import History
from tests.flowerapp.apps import TASK

Write, Run = Callable[..., Path], Callable[..., Any]

# Four clients add (client + 1) · seen · 2 to every value: on average 5 in round 1 and 10 in round 2.
EXPECTED = [np.full((2, 3), 15, np.float32), np.full((), 16, np.float32)]


def test_an_app_runs_as_it_is_written_and_its_results_are_kept(write_app: Write, run_app: Run) -> None:
    run = run_app(write_app())
    assert [values.tolist() for values in run.arrays.values()] == [values.tolist() for values in EXPECTED]
    assert [values.dtype for values in run.arrays.values()] == [np.float32, np.float32]
    saved = np.load("final.npz")  # by the app itself, in the current folder
    assert all(np.array_equal(saved[f"arr_{number}"], values) for number, values in enumerate(EXPECTED))
    assert run.history.end["status"] == "completed"
    assert "Strategy execution finished" in (run.path / "flower.log").read_text(encoding="utf-8")


def test_the_record_has_rounds_clients_and_what_strategy_and_server_measured(write_app: Write, run_app: Run) -> None:
    run = run_app(write_app())
    rounds = run.history.rounds
    assert [(event["round"], event["rounds"], event["clients"]) for event in rounds] == [
        (1, 2, [0, 1, 2, 3]),
        (2, 2, [0, 1, 2, 3]),
    ]
    assert [event["train"]["loss"] for event in rounds] == [1.5, 1.5]  # the strategy's own average
    assert [event["train"]["modded"] for event in rounds] == [1, 1]
    assert [event["train"]["seen"] for event in rounds] == [1, 2]  # the state of a client lasts from round to round
    payload = 4 * (6 + 1) * 4  # bytes: clients, values, float32
    assert [(event["bytes_down"], event["bytes_up"]) for event in rounds] == [(payload, payload)] * 2
    assert rounds[0]["bytes"] == {"arrays": {"down": payload, "up": payload}}
    assert set(rounds[0]["seconds"]) == {"train", "server", "evaluate"}
    first, last = run.history.evaluations
    assert last["clients"]["client 3"] == {"accuracy": 0.75, "total": 6 * 15 + 16, "modded": 1}
    assert (last["mean"]["accuracy"], last["strategy"]["accuracy"]) == (0.375, 0.375)
    assert (first["server"], last["server"]) == ({"first": 6.0}, {"first": 16.0})
    assert run.history.probed["server"] == {"first": 1.0}
    assert last["samples"] == {f"client {number}": 16 for number in range(4)}
    (left,) = run.history.left_out
    assert (left.what, left.examples) == ("metrics", ("list",))
    assert left.count == 2 * (4 + 1)  # of four clients and of the strategy
    start = run.history.start
    assert (start["title"], start["clients"], start["parameters"]) == ("Flower app numbers-app", 4, 7)
    spans = json.loads((run.path / "timeline.json").read_text())
    assert {span["name"] for span in spans if span.get("ph") == "X"} >= {f"client {number}" for number in range(4)}
    assert (run.path / "ledger.csv").read_text().splitlines()[1] == "1,0,arrays,28,28,28"


def test_keys_of_the_app_and_the_number_of_clients_can_be_given(write_app: Write, run_app: Run) -> None:
    folder = write_app()
    run = run_app(folder, run_config=["num-server-rounds=1 fraction=0.5", "note.text='b c'"])
    assert run.config.flower_app.run_config == {
        "num-server-rounds": 1,
        "fraction": 0.5,
        "misbehave": "",
        "note.text": "b c",
    }
    (only,) = run.history.rounds
    assert len(only["clients"]) == 2
    assert only["rounds"] == 1
    again = run_app(run.folder.config)  # the recorded configuration is enough to run it again
    assert again.config.flower_app == run.config.flower_app
    assert again.history.rounds[0]["clients"] == only["clients"]
    other = run_app(folder, "seed=1", run_config={"num-server-rounds": 1, "fraction": 0.5})
    assert other.history.rounds[0]["train"]["draw"] != only["train"]["draw"]


def test_the_seed_decides_what_is_drawn_and_the_state_of_the_generators_outside_stays(
    write_app: Write, run_app: Run
) -> None:
    folder, state = write_app(), np.random.get_state()[1].tolist()  # type: ignore[index]  # a tuple, as asked for
    one, same = run_app(folder), run_app(folder)
    draws = [event["metrics"]["draw"] for event in one.history.of("client")]
    assert len(set(draws)) == 8  # each client's in each round are its own
    assert draws == [event["metrics"]["draw"] for event in same.history.of("client")]
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index]  # as above


def test_the_error_of_a_client_ends_the_run_with_its_traceback(write_app: Write, run_app: Run) -> None:
    with pytest.raises(
        ClientError, match=r"client 2 failed in round 1, phase train(.|\n)*client 2 has no data"
    ) as told:
        run_app(write_app(), run_config={"misbehave": "raise"})
    (path,) = Path("runs").iterdir()
    assert f"run folder: {path.absolute()}" in told.value.__notes__[0]
    events = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    assert events[-1]["status"] == "failed"
    assert "client 2 has no data" in events[-1]["error"]
    assert not [event for event in events if event["event"] == "round"]  # none was finished


def test_the_strategy_is_given_the_errors_of_clients_if_that_is_asked_for(write_app: Write, run_app: Run) -> None:
    run = run_app(write_app(), "federation.on_client_error=skip", run_config={"misbehave": "raise"})
    assert [event["clients"] for event in run.history.rounds] == [[0, 1, 3]] * 2
    (left, _) = run.history.left_out
    assert (left.what, left.count, left.total) == ("replies to train", 2, 8)
    assert "client 2 has no data" in left.why


def test_a_client_error_that_the_app_catches_still_ends_the_run(write_app: Write, run_app: Run) -> None:
    server = """
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    try:
        list(grid.send_and_receive([Message(RecordDict(), node, "train") for node in grid.get_node_ids()]))
    except Exception:
        pass
"""
    with pytest.raises(ClientError, match="failed in round 1, phase train"):
        run_app(write_app(server_app=server))


def test_the_error_of_the_server_is_told_with_the_traceback_of_the_app(write_app: Write, run_app: Run) -> None:
    with pytest.raises(FlowerAppError, match="the server cannot count") as told:
        run_app(write_app(), run_config={"misbehave": "server"})
    message = str(told.value)
    assert message.startswith("the Flower app failed, in its ServerApp numbers_app.server_app:app:\nTraceback")
    assert message.splitlines()[2].strip().startswith("File")
    assert "numbers_app/server_app.py" in message.splitlines()[2]  # the first line is of the app, not of FedLab
    (path,) = Path("runs").iterdir()
    assert (path / "artifacts" / "arrays.safetensors").is_file()  # what there was until then is kept


@pytest.mark.parametrize(("code", "ends"), [("0", "completed"), ("3", "failed")])
def test_an_app_that_ends_the_program(code: str, ends: str, write_app: Write, run_app: Run) -> None:
    server = f"""
import sys
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    sys.exit({code})
"""
    if ends == "completed":
        assert run_app(write_app(server_app=server)).history.end["status"] == ends
        return
    with pytest.raises(FlowerAppError, match=r"which ended the program(.|\n)*SystemExit: 3"):
        run_app(write_app(server_app=server))


def test_two_apps_with_modules_of_one_name_do_not_meet(write_app: Write, run_app: Run) -> None:
    one = write_app(package="twin_app")
    values = run_app(one).arrays
    (one / "twin_app" / "task.py").write_text(TASK.replace("(client + 1) * seen * rate", "1"))
    changed = run_app(one)
    assert [array.tolist() for array in changed.arrays.values()] == [[[2.0] * 3] * 2, 3.0]
    assert [array.tolist() for array in values.values()] != [array.tolist() for array in changed.arrays.values()]
    codes = [json.loads(run.folder.environment.read_text())["code"]["twin-app"] for run in (run_app(one), changed)]
    assert codes[0] == codes[1]


def test_the_run_cannot_be_opened_as_one_of_a_method(write_app: Write, run_app: Run) -> None:
    import fedlab

    run = run_app(write_app())
    with pytest.raises(CheckpointError, match=r"this one is of a Flower app(.|\n)*fedlab run "):
        fedlab.load(run.path)
    with pytest.raises(CheckpointError, match="this one is of a Flower app"):
        fedlab.resume(run.path)


def test_workers_of_ray_give_the_same_bits(write_app: Write, run_app: Run, ray_workers: None) -> None:
    folder = write_app()
    inline, ray = run_app(folder), run_app(folder, "engine.name=ray", "engine.workers=2")
    assert {name: values.tobytes() for name, values in inline.arrays.items()} == {
        name: values.tobytes() for name, values in ray.arrays.items()
    }
    told = [[event["metrics"] for event in run.history.of("client")] for run in (inline, ray)]
    assert told[0] == told[1]


SIMULATION = """
import os
import sys
import traceback
import fedlab  # switches telemetry off
import numpy as np
from flwr.app import Context, RecordDict
from flwr.common.config import get_fused_config_from_dir
from flwr.simulation.run_simulation import _run_simulation
from flwr.supercore.constant import NOOP_FEDERATION_ID
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supercore.telemetry import EventType
from pathlib import Path

folder = Path(sys.argv[1])
run = Run.create_empty(1)
run.primary_task_id, run.federation_id = 1, NOOP_FEDERATION_ID
TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
config = get_fused_config_from_dir(folder, {})
run.override_config = config
try:
    _run_simulation(
        num_supernodes=4, exit_event=EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
        server_app_attr="numbers_app.server_app:app", client_app_attr="numbers_app.client_app:app", app_dir=str(folder),
        run=run, is_app=True, server_app_context=Context(1, 1, {}, RecordDict(), config),
        backend_config={"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 1, "include_dashboard": False}},
    )
except BaseException:
    # Flower's thread of the ServerApp would wait for ever for replies that nobody sends any more
    traceback.print_exc()
    os._exit(1)
"""


@pytest.mark.slow  # alone: Flower joins any Ray that runs here, such as that of another test, and fails
def test_flowers_own_simulation_gives_the_same_arrays(write_app: Write, run_app: Run) -> None:
    folder = write_app()
    # Flower starts its server before all clients are registered; a query must reach all four
    text = (folder / "numbers_app" / "server_app.py").read_text()
    wait = "    import time\n    while len(list(grid.get_node_ids())) < 4:\n        time.sleep(0.1)\n"
    (folder / "numbers_app" / "server_app.py").write_text(text.replace("    # any records", f"{wait}    # any records"))
    ours = run_app(folder)
    Path("final.npz").unlink()
    Path("program.py").write_text(SIMULATION)
    # no fork: its workers would not look into the folder that Flower names in their environment
    done = subprocess.run([sys.executable, "program.py", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    theirs = np.load("final.npz")
    for number, values in enumerate(ours.arrays.values()):
        assert theirs[f"arr_{number}"].tobytes() == values.tobytes()


def test_a_full_disk_is_told_with_what_to_do(write_app: Write, run_app: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedlab.flowerapp.grid import RecordingGrid

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RecordingGrid, "send_and_receive", full)
    with pytest.raises(DiskFullError, match="free some room, then start the run again"):
        run_app(write_app())


KILLED = """
import os, signal, sys
from fedlab.engine.grids.ray import RayGrid
from fedlab.flowerapp.start import run_app

RayGrid.send_and_receive = RayGrid.push_messages = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
run_app(sys.argv[1], overrides=["engine.workers=1", "tracking.tensorboard=false", "tracking.console=quiet"])
"""


@pytest.mark.programs
def test_a_program_that_is_killed_leaves_a_run_with_an_end(write_app: Write, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(write_app())]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert "start the run again" in done.stderr, "no simulation, so nothing can go on"
    (folder,) = (tmp_path / "runs").iterdir()
    assert History.from_jsonl(folder / "events.jsonl").end["error"] == REASON
    assert (folder / "report.html").is_file()
