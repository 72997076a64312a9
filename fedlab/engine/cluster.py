"""The Ray cluster: connecting to one or starting one, and how many workers it has room for."""

from __future__ import annotations

import atexit
import contextlib
import logging
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from fedlab.config.modules import own_modules
from fedlab.engine import members
from fedlab.engine.machine import ray_folder
from fedlab.engine.raywatch import ADVICE, RayWatch, processes_of_ray
from fedlab.errors import MachineError

log = logging.getLogger(__name__)

_watch: RayWatch | None = None  # of the Ray that this process has started
_membership: subprocess.Popen[bytes] | None = None  # of this machine in the cluster that this process is connected to


def connect(cpus: int, address: str | None) -> bool:
    """Connect to Ray, unless the program has done so already.

    Args:
        cpus: number of CPUs of a cluster that is started here.
        address: address of a running cluster; None starts one here.

    Returns:
        Whether this call has connected, so that the caller must `disconnect`.

    Raises:
        MachineError: Ray does not start here, or there is no cluster at the address.
    """
    global _membership, _watch
    if ray.is_initialized():
        return False
    if address is None:
        try:
            with _own_sigterm():
                ray.init(**local(cpus))
        except Exception as error:  # Ray raises errors of many types when it does not start
            ray.shutdown()
            said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise MachineError(
                "engine.name",
                "ray",
                f"a machine on which Ray starts; it said: {said[:300]}",
                "run with --engine inline, which needs no Ray; fedlab doctor --deep tells more",
            ) from error
        _watch = RayWatch(processes_of_ray())
        _watch.start()
        return True
    if _membership is None:
        _membership = members.join(address)
    # other machines have what is installed, and not the modules beside a configuration
    own = {"runtime_env": {"py_modules": modules}} if (modules := own_modules()) else {}
    try:
        with _own_sigterm():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:  # of many types, also when the user's modules cannot be sent
        disconnect()
        raise MachineError(
            "engine.address", address, "the address of a running Ray cluster, with the same version of Ray", str(error)
        ) from error
    return True


def broken(error: BaseException) -> MachineError:
    """The error to raise where Ray itself fails, and not a client.

    Args:
        error: what Ray raised.
    """
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return MachineError("engine.name", "ray", f"a Ray whose processes live; it said: {said[:300]}", ADVICE)


def lost() -> str:
    """Which process of the Ray that this process has started has died, as a sentence; empty while all is well."""
    return "" if _watch is None else _watch.lost


def check_alive() -> None:
    """Refuse to go on without Ray.

    Raises:
        MachineError: one of its processes has died.
    """
    if problem := lost():
        raise MachineError("engine.name", "ray", f"a Ray whose processes live, but {problem}", ADVICE)


def stop_watching() -> None:
    """The run ends, in good order or not: from now on nobody has to end the process if Ray is dead."""
    if _watch is not None:
        _watch.stop()


def on_stuck(listener: Callable[[str], None]) -> None:
    """See `fedlab.engine.raywatch.RayWatch.on_stuck`; without a Ray of this process nothing gets stuck."""
    if _watch is not None:
        _watch.on_stuck(listener)


def disconnect() -> None:
    """End what `connect` has begun."""
    global _membership, _watch
    stop_watching()
    watch, _watch = _watch, None
    if watch is not None and watch.lost:
        _leave_behind()
    else:
        ray.shutdown()
    ended, _membership = _membership, None
    members.leave(ended)


def _leave_behind() -> None:
    """End what is left of a Ray that has died. Ray's own shutdown may wait for the dead, so it gets a few seconds."""
    global abandoned
    from ray._private import worker

    abandoned = True
    atexit.unregister(worker.shutdown)
    node = getattr(worker, "_global_node", None)
    if node is not None:
        with contextlib.suppress(Exception):  # whatever Ray raises, the run has ended
            node.kill_all_processes(check_alive=False, allow_graceful=False)
    ended = threading.Thread(target=ray.shutdown, daemon=True)
    ended.start()
    ended.join(_FAREWELL)


abandoned = False
"""Whether this process has left a dead Ray behind, whose threads may end the process at any time."""
_FAREWELL = 5.0  # seconds


def local(cpus: int) -> dict[str, Any]:
    """Arguments of ``ray.init`` for a new cluster on this machine, which this process owns.

    Raises:
        MachineError: see `ray_folder`.
    """
    # without "local" Ray joins any cluster that somebody has started on this machine
    found = {"address": "local", "num_cpus": cpus, "include_dashboard": False, "log_to_driver": False}
    folder = ray_folder()
    return {**found, "logging_level": logging.ERROR, **({"_temp_dir": folder} if folder else {})}


@contextmanager
def connected(
    workers: int,
    threads: int,
    gpus: float,
    address: str | None,
    *,
    leave: bool = False,
    shared: Path | None = None,
    read: Sequence[Path] = (),
) -> Iterator[int]:
    """Be connected to Ray while the code inside runs, and refuse an unsuitable cluster before it begins.

    The context gives the number of workers that there is room for.

    Args:
        workers: number of workers that are to run.
        threads: CPUs of each worker.
        gpus: GPUs of each worker.
        address: address of a running cluster; None starts one here.
        leave: only check, and stop Ray again before the code inside runs, because that starts Ray itself.
        shared: folder that all machines of the cluster must see; None if there is none.
        read: files and folders that they must see.

    Raises:
        MachineError: Ray does not start, has no room for a single worker, or a machine lacks what the run needs.
    """
    global _watch
    ours = connect(workers * threads, address)
    try:
        try:
            room = _room(workers, threads, gpus)
            members.check_members(shared, read)
        except ray.exceptions.RayError as error:
            raise broken(error) from error
        if ours and leave:
            stop_watching()
            _watch = None  # what ends now has not died
            ray.shutdown()
        yield room
    finally:
        if ours:
            disconnect()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the program's own handler of SIGTERM.

    Ray replaces it by one that prints a native stack trace and can abort the process at its end.
    """
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGTERM, handler)


def room_for(workers: int, threads: int, gpus: float) -> int:
    """How many of the workers the cluster has room for. A warning is logged if there is not room for all.

    Raises:
        MachineError: there is no room for a single worker.
    """
    room = _room(workers, threads, gpus)
    if room < workers:
        log.warning("engine.workers = %d, but the cluster has room for %d", workers, room)
    return min(room, workers)


def _room(workers: int, threads: int, gpus: float) -> int:
    room = 0
    for node in ray.nodes():
        has = node["Resources"] if node["Alive"] else {}
        by_cpu = int(has.get("CPU", 0) // threads)
        room += min(by_cpu, int(has.get("GPU", 0) / gpus + 1e-9)) if gpus else by_cpu
    if room == 0:
        raise MachineError(
            "engine.workers",
            workers,
            f"a node with {threads} CPUs and {gpus:g} GPUs for each; no worker could be started: {workers * threads} "
            f"CPUs asked, the cluster has {_total('CPU')} CPUs and {_total('GPU')} GPUs",
            "lower engine.threads or engine.gpus_per_worker, or add nodes",
        )
    return room


def _total(resource: str) -> str:
    return f"{ray.cluster_resources().get(resource, 0):g}"


def free(resource: str) -> str:
    """How much of a resource is free, as a text such as ``2 of 8``."""
    return f"{ray.available_resources().get(resource, 0):g} of {_total(resource)}"
