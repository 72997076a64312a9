"""The job script for Slurm: it is carried out with programs that stand in for those of Slurm, Ray and FedLab."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "slurm.sh"

# Each writes down how it was called. srun runs what it is given, and a Ray that has started waits to be ended.
STAND_INS = {
    "scontrol": 'printf "node1\\nnode2\\nnode3\\n"',
    "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
    "python": """
[ "${FAILS:-}" = ray ] && exit 1
[[ " $* " == *" --head "* ]] && count=1 || count=$((SLURM_JOB_NUM_NODES - 1))
for ((i = 0; i < count; i++)); do echo " 1 node_$i" >> "$PLACE/nodes"; done
trap 'echo "ray ended" >> "$PLACE/calls"; exit 0' TERM
while :; do sleep 0.02; done""",
    "ray": 'cat "$PLACE/nodes"',
    "sleep": '[ "$1" = 2 ] && exec /bin/sleep 0.02; exec /bin/sleep "$1"',
    "fedlab": """
[ "${FAILS:-}" = hang ] || exit "${CODE:-0}"
trap 'echo "run told to end" >> "$PLACE/calls"; /bin/sleep 0.1; exit 130' TERM
touch "$PLACE/began"
while :; do sleep 0.02; done""",
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "nodes").touch()
    for name, text in STAND_INS.items():
        note = "" if name in ("sleep", "ray") else f'echo "{name} $*" >> "$PLACE/calls"\n'
        (folder / name).write_text(f"#!/bin/bash\n{note}{text}\n")
        (folder / name).chmod(0o755)
    return tmp_path


def start(place: Path, *arguments: str, nodes: int = 3, **variables: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PLACE": str(place),
        "SLURM_JOB_ID": "12345",
        "SLURM_JOB_NODELIST": "node[1-3]",
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_CPUS_PER_TASK": "8",
        **variables,
    }
    return subprocess.Popen(
        ["bash", SCRIPT, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def calls(place: Path) -> list[str]:
    return (place / "calls").read_text().splitlines()


def test_ray_is_started_on_all_machines_before_the_run_and_ended_after_it(place: Path) -> None:
    job = start(place, "fedlgd", "--name", "two words")
    out, _ = job.communicate()
    assert job.returncode == 0, out
    found = [call for call in calls(place) if not call.startswith(("srun", "scontrol", "ray"))]
    address = f"node1:{20000 + 12345}"
    assert found == [
        f"python -m fedlab.engine.host start --head --port={20000 + 12345} --num-cpus=8 --block",
        f"python -m fedlab.engine.host start --address={address} --num-cpus=8 --block",
        f"fedlab run fedlgd --name two words --plain --set engine.name=ray --set engine.address={address}",
    ]
    steps = [call for call in calls(place) if call.startswith("srun")]
    assert "--nodes=1 --ntasks=1 --overlap --nodelist=node1" in steps[0]
    assert "--nodes=2 --ntasks=2 --overlap --exclude=node1" in steps[1]
    until(lambda: calls(place).count("ray ended") >= 2)


def test_one_machine_needs_no_others(place: Path) -> None:
    job = start(place, "fedlgd", nodes=1)
    job.communicate()
    assert job.returncode == 0
    assert len([call for call in calls(place) if call.startswith("srun")]) == 1


def test_the_exit_code_is_that_of_the_run(place: Path) -> None:
    job = start(place, "fedlgd", nodes=1, CODE="2")
    job.communicate()
    assert job.returncode == 2


def test_the_signal_of_slurm_ends_the_run_in_good_order(place: Path) -> None:
    job = start(place, "fedlgd", nodes=1, FAILS="hang")
    until(lambda: (place / "began").exists() or job.poll() is not None)
    assert job.poll() is None
    job.send_signal(signal.SIGTERM)
    job.communicate()
    assert job.returncode == 130
    assert calls(place).count("run told to end") == 1


def test_a_ray_that_does_not_start_ends_the_job(place: Path) -> None:
    job = start(place, "fedlgd", FAILS="ray")
    out, _ = job.communicate()
    assert job.returncode == 1
    assert "Ray did not start on 1 of the job's machines" in out
    assert not [call for call in calls(place) if call.startswith("fedlab")]


def test_the_options_of_the_script_are_slurms_and_the_page_shows_how_to_submit_it() -> None:
    options = re.findall(r"^#SBATCH (--[\w-]+)", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)
    assert {"--nodes", "--ntasks-per-node", "--cpus-per-task", "--time", "--signal"} <= set(options)
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert "examples/slurm.sh fedlgd" in page
    assert f"({os.path.relpath(SCRIPT, ROOT / 'docs')})" in page


@pytest.mark.programs
def test_what_starts_ray_passes_options_and_the_end_on(tmp_path: Path) -> None:
    """A step of Slurm ends by a signal, after which no process of Ray may be left."""
    program = tmp_path / "program.py"
    # a Ray that goes on until it is told to end
    ray = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(' '.join(sys.argv)); time.sleep(600)"
    program.write_text(
        "import sys\nfrom fedlab.engine import host\n"
        f"host._RAY = (sys.executable, '-c', {ray!r}, {str(tmp_path / 'ray')!r})\n"
        "sys.exit(host.main(['start', '--head', '--block']))\n"
    )
    job = subprocess.Popen([sys.executable, program])
    written = tmp_path / "ray"
    until(lambda: (written.exists() and written.read_text()) or job.poll() is not None)
    assert job.poll() is None
    assert "start --head --block --disable-usage-stats --include-dashboard false" in (tmp_path / "ray").read_text()
    job.terminate()
    assert job.wait() == -signal.SIGTERM & 0xFF
