"""The Ray cluster itself: joining or starting one, and what it has room for."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from fedlab.errors import MachineError

log = logging.getLogger(__name__)


def connect(cpus: int, address: str | None) -> bool:
    """Connect to Ray unless the program has; returns whether it was done here."""
    if ray.is_initialized():
        return False
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        with _own_sigterm():
            # "local": Ray would rather join whatever cluster somebody has started on this machine
            ray.init(address="local", num_cpus=cpus, **quiet)
        return True
    try:
        with _own_sigterm():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise MachineError(
            "engine.address", address, "the address of a running Ray cluster", f"start one with ray start: {error}"
        ) from error
    return True


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the program's handler of SIGTERM: Ray's prints a native stack trace and can abort the process at its end."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGTERM, handler)


def room_for(workers: int, threads: int, gpus: float) -> int:
    """How many of the workers the cluster has room for."""
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
    if room < workers:
        log.warning("engine.workers = %d, but the cluster has room for %d", workers, room)
    return min(room, workers)


def _total(resource: str) -> str:
    return f"{ray.cluster_resources().get(resource, 0):g}"


def free(resource: str) -> str:
    """How much of a resource is free, in words."""
    return f"{ray.available_resources().get(resource, 0):g} of {_total(resource)}"
