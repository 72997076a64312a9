"""Where a run is placed on this machine: its device, its number of workers and each worker's share of a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fedlab.config import EngineConfig
from fedlab.engine.machine import cores, is_installed, ray_folder
from fedlab.engine.memory import workers_that_fit
from fedlab.errors import MachineError


@dataclass(frozen=True)
class Placement:
    """What the engine takes of this machine, with the defaults of the configuration filled in.

    Args:
        device: ``cpu`` or ``cuda``, the device on which clients and server compute.
        workers: number of processes that run clients; 1 for the inline engine.
        gpus_per_worker: share of a GPU that each worker reserves; 0 on the CPU.
    """

    device: str
    workers: int
    gpus_per_worker: float


def check_engine(config: EngineConfig) -> Placement:
    """Check that this machine can do what the configuration asks, before any work starts.

    Args:
        config: the configuration's section ``engine``.

    Raises:
        MachineError: a GPU is asked for and there is none, or Ray is not installed.
    """
    if config.name in ("ray", "flower") and not is_installed("ray"):
        raise MachineError(
            "engine.name", config.name, "the package ray", "pip install 'flwr[simulation]', or set engine.name: inline"
        )
    if config.name in ("ray", "flower") and config.address is None:
        ray_folder()
    # the GPUs of a cluster need not be in the machine that runs the server
    remote = config.name != "inline" and config.address is not None
    gpus = _gpus()
    if not gpus and not remote:
        if config.device == "cuda":
            raise MachineError(
                "engine.device",
                "cuda",
                "a CUDA GPU that torch can use",
                "set engine.device: auto, or run fedlab doctor",
            )
        if config.gpus_per_worker is not None:
            raise MachineError(
                "engine.gpus_per_worker", config.gpus_per_worker, "a CUDA GPU that torch can use", "remove the setting"
            )
    device = "cuda" if config.device == "cuda" or (config.device == "auto" and gpus) else "cpu"
    workers = 1 if config.name == "inline" else config.workers or max(1, cores() // config.threads)
    return Placement(device, workers, _gpu_share(config, workers, gpus) if device == "cuda" else 0.0)


def fitting(placement: Placement, config: EngineConfig, client_bytes: int | None) -> Placement:
    """The placement with no more workers than there is room for in the memory of this machine's GPUs.

    Args:
        placement: what `check_engine` returned.
        config: the configuration's section ``engine``; if it sets the number of workers, that stays as it is.
        client_bytes: GPU memory that a client was seen to take; None on the CPU.
    """
    gpus = _gpus()
    if client_bytes is None or config.workers is not None or placement.device != "cuda" or not gpus:
        return placement
    workers = min(placement.workers, workers_that_fit(client_bytes))
    return replace(placement, workers=workers, gpus_per_worker=_gpu_share(config, workers, gpus))


def _gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _gpu_share(config: EngineConfig, workers: int, gpus: int) -> float:
    if config.gpus_per_worker is not None:
        return config.gpus_per_worker
    if not gpus:  # a remote cluster: one GPU for each worker, unless the configuration says otherwise
        return 1.0
    # so that every GPU holds the same whole number of workers
    return min(1.0, 1.0 / -(-workers // gpus))
