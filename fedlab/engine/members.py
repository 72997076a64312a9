"""The machines of a running Ray cluster: this one joins it, and the others must have what the run needs.

Data and settings reach the workers with their first message, and modules of the user's own through Ray. What must be
there already is the same software and, for clients that keep tensors from round to round, the folder of the run.
"""

from __future__ import annotations

import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedlab._environment import DISTRIBUTION
from fedlab.engine.machine import installed_version
from fedlab.errors import MachineError

_SAME_EVERYWHERE = (
    "the same versions on all machines, because others give other results",
    "install the same versions everywhere, with the same constraints.txt",
)
_PATIENCE = 60.0  # seconds in which a machine joins or answers; Ray itself waits that long


def join(address: str) -> subprocess.Popen[bytes] | None:
    """Make this machine a member of a cluster, so that a program on it can connect to the cluster.

    It brings no CPUs and no GPUs, so that it runs no clients, and it leaves when the returned process ends.

    Args:
        address: ``HOST:PORT`` of the cluster; every other form is left to Ray.

    Returns:
        The process, or None if this machine is a member already.

    Raises:
        MachineError: no cluster answers at the address, or the machine cannot join it.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        return None
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10.0).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error
    if _is_member(address):
        return None
    log = tempfile.TemporaryFile()  # noqa: SIM115  the process writes to it as long as it lives
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--address", address, "--block"]
    command += ["--num-cpus", "0", "--num-gpus", "0", "--disable-usage-stats"]
    # in a session of its own, since Ctrl-C in a terminal must not take the machine out of the cluster in mid-round
    process = subprocess.Popen(
        command, stdout=log, stderr=log, start_new_session=True, preexec_fn=_dies_with_its_parent
    )
    waited_until = time.monotonic() + _PATIENCE
    while not _is_member(address):
        if process.poll() is not None or time.monotonic() > waited_until:
            leave(process)
            log.seek(0)
            said = log.read().decode(errors="replace").strip()[-1000:]
            raise MachineError(
                "engine.address", address, "a Ray cluster that this machine can join", f"ray start said: {said}"
            )
        time.sleep(0.2)
    return process


def leave(process: subprocess.Popen[bytes] | None) -> None:
    """Take this machine out of the cluster again.

    Args:
        process: what `join` returned.
    """
    if process is None:
        return
    process.terminate()
    try:
        process.wait(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def check_members(shared: Path | None, read: Sequence[Path] = ()) -> None:
    """Refuse a cluster whose other machines lack what this run needs, before any work starts.

    Args:
        shared: folder that every machine must see, because clients keep their tensors in it; None if they keep none.
        read: files and folders that clients read, and that every machine must therefore see.

    Raises:
        MachineError: a machine has other versions of the software, or does not see one of the paths.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here and node["Resources"].get("CPU")]
    if not others:
        return
    wanted = versions()
    with tempfile.NamedTemporaryFile(dir=_existing(shared), prefix=".fedlab-cluster-") as mark:
        sought = [*map(str, read), *([mark.name] if shared is not None else [])]
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in others]
        look = ray.remote(_look)
        answers = [look.options(num_cpus=0, scheduling_strategy=at).remote(sought) for at in places]
        for machine, answer in zip((node["NodeManagerHostname"] for node in others), answers, strict=True):
            try:
                found, missing = ray.get(answer, timeout=_PATIENCE)
            except ray.exceptions.RayError as error:
                expected = f"a machine with {DISTRIBUTION} {wanted[DISTRIBUTION]}"
                raise MachineError("engine.address", machine, expected, f"install it there: {error}") from error
            if problem := difference(wanted, found):
                raise MachineError("engine.address", f"{machine} with {problem}", *_SAME_EVERYWHERE)
            if mark.name in missing:
                raise MachineError(
                    "tracking.folder",
                    str(shared),
                    f"a folder that every machine of the cluster sees under this path; {machine} does not: with this "
                    "method, clients keep tensors from round to round, and keep them in the run folder",
                    "set tracking.folder to a folder on a disk that the machines share",
                )
            if missing:
                raise MachineError(
                    "engine.address",
                    f"{machine} without {missing[0]}",
                    "machines that see all files that clients read, under the same paths",
                    "copy it there, or move it to a disk that the machines share",
                )


def versions() -> dict[str, str]:
    """The versions on this machine of all that decides what a client computes; empty where a package is missing."""
    found = {"Python": platform.python_version()}
    for name in (DISTRIBUTION, "ray", "torch", "numpy"):
        found[name] = installed_version(name) or ""
    return found


def difference(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    """The first version that differs, as a text such as ``torch 2.12.0 instead of 2.13.0``; empty if none does.

    Args:
        here: what `versions` returned on this machine.
        there: what it returned on another one.
    """
    for name, version in here.items():
        if there.get(name) != version:
            return f"{name} {there.get(name) or 'missing'} instead of {version}"
    return ""


def _look(paths: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """`versions` on the machine that runs this, and those of the paths that it does not see."""
    return versions(), [path for path in paths if not Path(path).exists()]


def _existing(folder: Path | None) -> Path | None:
    """The folder, or the nearest one above it that exists."""
    if folder is None:
        return None
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())


def _is_member(address: str) -> bool:
    from ray._private.services import find_node_ids
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # a compiled module without stubs

    here = find_node_ids()
    if not here:
        return False
    try:
        known: dict[Any, Any] = GcsClient(address=address).get_all_node_info(timeout=_PATIENCE)
    except Exception as error:  # what Ray's own client raises is of many types
        raise _no_cluster(address, error) from error
    return any(node.hex() in here for node in known)


def _no_cluster(address: str, error: Exception) -> MachineError:
    return MachineError(
        "engine.address",
        address,
        "the address of a running Ray cluster, HOST:PORT",
        f"start one with `fedlab cluster up`: {error}",
    )


def _dies_with_its_parent() -> None:
    """In a new process: end when the one that started it ends, however that ends."""
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
