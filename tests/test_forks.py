"""A fork does what a fresh process would, and leaves nothing behind for the next one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.forks import Forks

pytestmark = pytest.mark.programs

PROGRAM = """
import atexit, os, sys
import beside
import fedlab.config
marked = hasattr(fedlab.config, "mark")
print(*sys.argv[1:], os.getcwd(), sorted(os.environ), beside.value, __name__, marked, os.getpid())
print("told apart", file=sys.stderr)
fedlab.config.mark = True
atexit.register(print, "at the end")
sys.exit(len(sys.argv))
"""


def test_a_program_runs_as_in_a_process_of_its_own(forks: Forks, tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "beside.py").write_text("value = 'of the current folder'")
    (tmp_path / "scripts" / "beside.py").write_text("value = 'of its own folder'")
    program = tmp_path / "scripts" / "program.py"
    program.write_text(PROGRAM)
    first, second = (forks.run([program, "one", "two"], cwd=tmp_path, env={"KEY": "1"}) for _ in range(2))
    told = f"one two {tmp_path} ['KEY'] of its own folder __main__ False "
    for done in (first, second):
        assert (done.returncode, done.stderr) == (3, "told apart\n")
        assert done.stdout.startswith(told)
        assert done.stdout.endswith("\nat the end\n")
    assert first.stdout != second.stdout  # each is a process


def test_what_ends_a_program_is_told(forks: Forks, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    for statement, status, told in (
        ("raise ArithmeticError('of the program')", 1, "ArithmeticError: of the program"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, ""),
        ("import sys; sys.exit('no')", 1, "no"),
    ):
        program.write_text(statement)
        done = forks.run([program], cwd=tmp_path)
        assert done.returncode == status
        assert told in done.stderr


def test_a_program_can_be_interrupted_and_killed(forks: Forks, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import signal; print('begun', flush=True); signal.pause()")
    for number, status, told in ((signal.SIGINT, -2, "KeyboardInterrupt"), (signal.SIGKILL, -9, "")):
        with (tmp_path / f"{number}.out").open("w+") as out, (tmp_path / f"{number}.err").open("w+") as err:
            started = forks.start([program], cwd=tmp_path, out=out, err=err)
            while not (tmp_path / f"{number}.out").read_text():
                pass
            os.killpg(started.pid, number)
            assert started.wait() == status
        assert told in (tmp_path / f"{number}.err").read_text()


def test_who_is_no_longer_waited_for_is_killed(forks: Forks, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import signal; signal.pause()")
    started = forks.start([program], cwd=tmp_path)
    pid = started.pid
    assert os.path.exists(f"/proc/{pid}")
    del started
    while os.path.exists(f"/proc/{pid}"):
        pass


def test_workers_of_ray_are_forks(ray_running: None, forks: Forks) -> None:
    import ray

    @ray.remote(num_cpus=0)
    class Worker:
        def told(self) -> tuple[int, bool]:
            import sys

            return os.getpid(), "matplotlib.figure" in sys.modules

    workers = [Worker.remote() for _ in range(2)]
    (one, loaded), (other, too) = ray.get([worker.told.remote() for worker in workers])
    assert loaded  # Ray's own workers would not have imported it
    assert too
    assert one != other
    ray.kill(workers[0])
    while os.path.exists(f"/proc/{one}"):
        pass
    assert ray.get(workers[1].told.remote())[0] == other
