"""``python -m benchmarks.hashes``: what a change that must not change results is held against.

Every method, every aggregation rule and every part of the platform that has a say in the weights trains two rounds of
a federation of seconds. What is kept of a run is a hash of its network state and its last evaluation. Write the table
before a restructuring and check it afterwards, on one machine with one torch: the last bits of a float depend on both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.small_runs import METHODS, PLATFORM, STRATEGIES, SUPERVISED

if TYPE_CHECKING:
    from torch import Tensor

    from fedlab.config import Config

_NETWORK = "network/"
# roles that were called otherwise when tables were first written; names count in a hash
_ONCE = {"network/normalizer.": "network/normaliser."}


def entries() -> dict[str, dict[str, Any]]:
    """Every run of the table: name → sections of its configuration."""
    methods = {
        f"method/{name}": {**sections, "method": {"name": name, **sections.get("method", {})}}
        for name, sections in METHODS.items()
    }
    strategies = {
        f"strategy/{name}": {**SUPERVISED, "federation": {"strategy": {"name": name, **settings}}}
        for name, settings in STRATEGIES.items()
    }
    return {**methods, **strategies, **{f"platform/{name}": {**SUPERVISED, **new} for name, new in PLATFORM.items()}}


def configuration(sections: Mapping[str, Any], folder: Path, seed: int) -> Config:
    """An entry as a whole configuration: two rounds, one evaluation at the end, in this process.

    Raises:
        ConfigErrors: a key or value is no longer what the configuration knows.
    """
    from fedlab.config import Config, parse

    own = {"folder": str(folder / "runs"), "cache": str(folder / "cache"), "console": "quiet", "tensorboard": False}
    federation = {"rounds": 2, **sections.get("federation", {})}
    whole = {
        **sections,
        "seed": seed,
        "federation": federation,
        "evaluation": {"every": federation["rounds"]},
        "engine": {"name": "inline", "device": "cpu", "threads": 1, **sections.get("engine", {})},
        "tracking": own,
    }
    return parse(Config, whole)


def measure(sections: Mapping[str, Any], folder: Path, seed: int = 0) -> dict[str, str]:
    """Train a run and say what came of it.

    Args:
        sections: of its configuration.
        folder: where it may write; results that an earlier run keeps there are used again.
        seed: of the run.

    Returns:
        ``weights``, SHA-256 over the network state's names, types, shapes and bytes, and ``metrics``, the last
        evaluation as Python writes it, which gives back every bit of a float.
    """
    import fedlab
    from fedlab.storage.checkpoint import load_checkpoint

    run = fedlab.run(configuration(sections, folder, seed))
    # what tables of before do not have, and what follows from the rest, is no part of the comparison
    metrics = {name: value for name, value in run.metrics.items() if name not in ("time", "per_class", "confusion")}
    return {"weights": digest(load_checkpoint(run.checkpoint)[0]), "metrics": repr(metrics)}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of the network state among a checkpoint's tensors.

    Raises:
        ValueError: there is no network state in it.
    """
    import torch

    state = {_as_once(name): value for name, value in tensors.items() if name.startswith(_NETWORK)}
    if not state:
        raise ValueError("the checkpoint has no network state")
    found = hashlib.sha256()
    for name, value in sorted(state.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _as_once(name: str) -> str:
    for now, once in _ONCE.items():
        if name.startswith(now):
            return once + name.removeprefix(now)
    return name


def machine() -> dict[str, str]:
    """What the last bits depend on beside the code."""
    import numpy as np
    import torch

    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def differences(before: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Names of runs whose results are not what they were → what differs; `now` may be a part of the table."""
    found = {}
    for name, measured in now.items():
        if name not in before:
            found[name] = "not in the table"
        elif measured != before[name]:
            found[name] = " and ".join(key for key in measured if measured[key] != before[name].get(key)) + " differ"
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the table; 1 where something differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hashes", description=__doc__)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--write", metavar="FILE", type=Path, help="train all and write the table")
    asked.add_argument("--check", metavar="FILE", type=Path, help="train all and compare with the table")
    parser.add_argument("--only", metavar="GLOB", default="*", help="runs to train, e.g. 'method/*'")
    options = parser.parse_args(arguments)
    chosen = {name: sections for name, sections in entries().items() if fnmatchcase(name, options.only)}
    if not chosen:
        parser.error(f"--only {options.only}: none of {', '.join(entries())}")
    table = None if options.check is None else json.loads(options.check.read_text(encoding="utf-8"))
    if table is not None and table["made_on"] != machine():
        print(f"this is another machine than the table's: {table['made_on']}, now {machine()}", file=sys.stderr)
    now = {}
    with tempfile.TemporaryDirectory(prefix="fedlab-hashes-") as folder:
        for name, sections in chosen.items():
            now[name] = measure(sections, Path(folder) / name)
            print(f"{name:28} {now[name]['weights'][:16]}", flush=True)
    if table is None:
        options.write.write_text(json.dumps({"made_on": machine(), "runs": now}, indent=1), encoding="utf-8")
        return 0
    wrong = differences(table["runs"], now)
    if options.only == "*":
        wrong |= {name: "no longer there" for name in table["runs"] if name not in now}
    for name, what in wrong.items():
        print(f"{name}: {what}", file=sys.stderr)
    print(f"{len(now) - len(wrong.keys() & now.keys())} of {len(now)} runs are what they were")
    return 1 if wrong else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
