"""What control groups grant, from files as the kernel writes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedlab.engine import cgroup, machine

UNLIMITED = "9223372036854771712\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Makes the files below a root of our own, and says which groups this process is in."""

    def make(own: str, **files: str) -> None:
        (tmp_path / "own").write_text(own)
        monkeypatch.setattr(cgroup, "OWN", tmp_path / "own")
        monkeypatch.setattr(cgroup, "ROOT", tmp_path / "root")
        for name, content in files.items():
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    return make


CPU = {
    "version 2, in a container": ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
    "version 2, the bound is a parent's": (
        "0::/a/b\n",
        {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"},
        2.0,
    ),
    "version 2, the tightest counts": ("0::/a\n", {"cpu.max": "400000 100000", "a/cpu.max": "50000 100000"}, 0.5),
    "version 2, no bound": ("0::/\n", {"cpu.max": "max 100000\n"}, None),
    "version 1": (
        "4:memory:/x\n3:cpu,cpuacct:/x\n",
        {"cpu,cpuacct/cpu.cfs_quota_us": "300000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
        3.0,
    ),
    "version 1, no bound": ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
    "neither": ("", {}, None),
    "nonsense": ("x\n0::/\n", {"cpu.max": "many\n"}, None),
}


@pytest.mark.parametrize("case", CPU)
def test_the_cores_a_container_is_granted(case: str, write: object) -> None:
    own, files, expected = CPU[case]
    write(own, **files)  # type: ignore[operator]  # a function
    assert cgroup.cpu_quota() == expected


@pytest.mark.parametrize(("quota", "cores"), [(1.5, 1), (0.2, 1), (3.0, 3), (64.0, 8), (None, 8)])
def test_workers_are_as_many_as_the_whole_cores_granted(
    quota: float | None, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    assert machine.cores() == cores


MEMORY = {
    "version 2": (
        "0::/\n",
        {"memory.max": "1000\n", "memory.current": "700\n", "memory.stat": "anon 500\ninactive_file 150\n"},
        450,
    ),
    "version 2, no bound": ("0::/\n", {"memory.max": "max\n", "memory.current": "700\n"}, None),
    "version 1": (
        "4:memory:/docker/x\n",
        {"memory/memory.limit_in_bytes": "1000\n", "memory/memory.usage_in_bytes": "400\n"},
        600,
    ),
    "none": ("", {}, None),
}


@pytest.mark.parametrize("case", MEMORY)
def test_the_memory_a_container_has_left(case: str, write: object) -> None:
    own, files, expected = MEMORY[case]
    write(own, **files)  # type: ignore[operator]  # a function
    assert cgroup.memory_left() == expected


def test_a_limit_beyond_all_memory_is_none(write: object) -> None:
    write("4:memory:/\n", **{"memory/memory.limit_in_bytes": UNLIMITED, "memory/memory.usage_in_bytes": "5\n"})  # type: ignore[operator]
    left = cgroup.memory_left()
    assert left is not None
    assert left > 2**60  # the doctor takes the lesser of this and what the machine has


def test_a_container_s_bound_counts_where_it_is_narrower(monkeypatch: pytest.MonkeyPatch) -> None:
    for container, whole, free in ((5, 7, 5), (7, 5, 5), (None, 5, 5), (5, None, 5), (None, None, None)):
        monkeypatch.setattr(cgroup, "memory_left", lambda container=container: container)
        monkeypatch.setattr(cgroup, "available_memory", lambda whole=whole: whole)
        assert cgroup.free_memory() == free


def test_what_the_machine_has_is_read_from_the_system() -> None:
    available = cgroup.available_memory()
    assert available is None or 10**7 < available < 10**14
