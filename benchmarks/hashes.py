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

if TYPE_CHECKING:
    from torch import Tensor

    from fedlab.config import Config

# keys of the configuration whose spelling may change: stated once
OPTIMIZER, VECTORIZE, QUANTIZE = "optimizer", "vectorize", "quantize"

_NETWORK = "network/"
# roles that were called otherwise when tables were first written; names count in a hash
_ONCE = {"network/normalizer.": "network/normaliser."}
_MODEL = {"name": "convnet", "width": 8, "depth": 2}
_DIGITS = {
    "source": {"name": "shifted_digits", "train_per_class": 5, "test_size": 60},
    "partition": ["domain"],
}
_TRAINING = {"lr": 0.05, "batch_size": 32}
_SUPERVISED: dict[str, Any] = {"method": "supervised", "model": _MODEL, "data": _DIGITS, "training": _TRAINING}
_TOWER = {"width": 16, "layers": 1, "heads": 2}

METHODS: dict[str, dict[str, Any]] = {
    "arra": {
        "method": {
            "llm": {"width": 16, "hidden": 24, "blocks": 2, "heads": 2, "dropout": 0.1},
            "tokenizer": {"codes": 8, "patch": 8, "images": 24},
            "encoder": {"width": 8, "steps": 2, "batch_size": 16}, "judge": {"width": 8, "steps": 2, "batch_size": 16},
            "generation": {"guidance": 2.0, "samples": 8, "gallery": 2},
        },
        "data": {
            "source": {
                "name": "shapecap", "objects": 1, "natural": "color", "unseen_colors": ["cyan", "magenta", "yellow"],
                "train": 48, "test": 12, "composition": 12, "pretrain": 32, "zeroshot": 8,
            },
            "partition": ["natural"],
        },
        "training": {OPTIMIZER: "adamw", "lr": 0.003, "batch_size": 8, "local_steps": 2, "clip_norm": 4.0},
    },
    "asit": {
        "method": {
            "rate": 8000, "view_seconds": 0.3, "bins": 16, "patch": 8, "width": 16, "depth": 2, "heads": 2,
            "hidden": 16, "bottleneck": 8, "reconstruction_width": 8, "class_prototypes": 12, "patch_prototypes": 8,
            "momentum": 0.9, "epochs": 6, "warmup_epochs": 1, "temperature_epochs": 2,
        },
        "data": {
            "source": {"name": "sounds", "train": 48, "test": 24, "probe": 24, "seconds": 0.5},
            "partition": [{"name": "iid", "clients": 2}],
        },
        "training": {
            OPTIMIZER: "adamw", "lr": 0.002, "batch_size": 8, "local_steps": 2, "clip": "tensor", "clip_norm": 3.0,
        },
    },
    # a round in which the teacher is trained, then images are recovered and students trained on them
    "cda": {
        "method": {
            "squeeze": {"rounds": 1, "flip": False},
            "recover": {"ipc": 2, "iterations": 3, "chunk": 10, "flip": False},
            "post": {"epochs": 4, "batch_size": 10, "flip": False},
        },
        "model": {**_MODEL, "norm": "batch"},
        "data": _DIGITS,
        "training": _TRAINING,
        "federation": {"rounds": 3},
    },
    "dcglr": {
        "method": {
            "local_views": 2, "resolutions": [16], "rotation": "any", "width": 8, "pointnet_widths": [8], "hidden": 16,
            "bottleneck": 8, "prototypes": 12, "momentum": 0.9, "epochs": 4, "warmup_epochs": 1,
        },
        "data": {
            "source": {"name": "shapes", "train": 48, "test": 24, "probe": 30, "points": 32},
            "partition": [{"name": "iid", "clients": 2}],
        },
        "training": {
            OPTIMIZER: "adamw", "lr": 0.002, "batch_size": 8, "local_steps": 2, "clip": "tensor", "clip_norm": 3.0,
        },
    },
    "degla": {
        "method": {
            "alpha": 0.9, "held_out": ["replace_relation", "order"], "merge": [["reshuffle", "swap_noun"]],
            "network": {"vision": _TOWER, "text": _TOWER, "projection": 8}, "pretrain": {"steps": 3, "batch_size": 16},
        },
        "data": {
            "source": {
                "name": "shapecap", "train": 64, "test": 24, "composition": 12, "pretrain": 40, "zeroshot": 16,
            },
            "partition": ["natural"],
        },
        "training": {OPTIMIZER: "adamw", "lr": 0.003, "batch_size": 8, "local_steps": 2, "schedule": "cosine"},
    },
    "fedlgd": {
        "method": {
            "ipc_local": 3, "ipc_global": 2, "warmup_steps": 2, "dm_steps": 2, "gm_steps": 2, "real_batch": 4,
            "spacing": 1, "updates": 1, "lambda_reg": 1.0,
        },
        "model": _MODEL,
        "data": _DIGITS,
        "training": _TRAINING,
    },
    "mmc": {
        "method": {
            "views": {
                "size": 24, "crop": "window", "flip": False, "color": False, "gain": [0.7, 1.3], "noise": 0.1,
                "mean": [0.5], "std": [0.1],
            },
            "drop": 0.7, "align": 4, "patch": 4, "width": 16, "depth": 1, "heads": 2, "drop_path": 0.0,
            "patch_widths": [16, 8], "prototypes": 12, "contrast_widths": [16, 8], "epochs": 4, "warmup_epochs": 1,
            "temperature_epochs": 2, "momentum": 0.9,
        },
        "data": {
            "source": {"name": "materials", "train": 48, "test": 16, "validation": 8, "server_test": 8},
            "mean": [0.0], "std": [1.0], "partition": [{"name": "iid", "clients": 2}],
        },
        "training": {
            OPTIMIZER: "adamw", "lr": 0.002, "batch_size": 8, "local_steps": 2, "clip": "tensor", "clip_norm": 3.0,
        },
    },
    "moon": {"method": {"mu": 1.0, "projection_dim": 8}, "model": _MODEL, "data": _DIGITS, "training": _TRAINING},
    "pat": {
        "method": {
            "patch": 6, "width": 12, "depth": 2, "heads": 3, "mlp_ratio": 2, "neighbors": 2, "pad": 1,
            "warmup_rounds": 1,
        },
        "data": {
            "source": {
                "name": "pedestrians", "sites": 3, "identities": 6, "test_identities": 2, "target_identities": 4,
                "images": 4,
            },
            "partition": ["domain"],
        },
        "training": {OPTIMIZER: "adamw", "lr": 0.002, "batch_size": 16},
    },
    "supervised": {"model": _MODEL, "data": _DIGITS, "training": {**_TRAINING, OPTIMIZER: "adam", "lr": 0.002}},
    "transkd": {
        "method": {
            "student": {"widths": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "heads": [1, 1, 2, 2], "decoder": 8},
            "teacher": {"widths": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "heads": [1, 1, 2, 2], "decoder": 8},
            "csf_width": 8, "csf_squeeze": 4, "teacher_steps": 3, "teacher_batch": 4,
        },
        "data": {
            "source": {
                "name": "scenes", "train": 13, "test": 6, "teacher": 8, "server_test": 4, "size": 36,
                "conditions": ["fog", "night"],
            },
            "partition": ["domain"],
        },
        "training": {OPTIMIZER: "adamw", "lr": 0.002, "weight_decay": 0.01, "batch_size": 3},
    },
    "vhl": {"method": {"images_per_class": 6}, "model": _MODEL, "data": _DIGITS, "training": _TRAINING},
}  # fmt: skip

STRATEGIES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedprox": {"mu": 0.1},
    "fednova": {"mu": 0.1, "server_momentum": 0.5},
    "scaffold": {},
    "feddyn": {"alpha": 0.1},
    "fedavgm": {},
    "fedadagrad": {},
    "fedadam": {},
    "fedyogi": {},
    "flower.FedAdagrad": {},
    "flower.FedAdam": {},
    "flower.FedAvg": {},
    "flower.FedAvgM": {"server_momentum": 0.9},
    "flower.FedMedian": {},
    "flower.FedProx": {"proximal_mu": 0.1},
    "flower.FedTrimmedAvg": {},
    "flower.FedYogi": {},
    "flower.Krum": {},
    "flower.MultiKrum": {"num_nodes_to_select": 2},
    "flower.Bulyan": {},
    "flower.QFedAvg": {"client_learning_rate": 0.1, "train_loss_key": "ce"},
}

# what else has a say in the weights of the supervised run
_HALF = {"name": "uniform", "fraction": 0.5}
_GROUP_NORM = {**_MODEL, "norm": "group"}
_SKEWED = {"source": _DIGITS["source"], "partition": [{"name": "dirichlet", "clients": 4, "alpha": 0.3}]}
_DEVICES = {"speed": 200, "speed_spread": 1.0}
PLATFORM: dict[str, dict[str, Any]] = {
    "fedbuff": {
        "federation": {
            "mode": "asynchronous", "asynchronous": {"concurrency": 3, "buffer": 2}, "devices": _DEVICES, "rounds": 4,
        },
    },
    "central": {
        "model": _GROUP_NORM,
        "federation": {"sampler": {"name": "poisson", "probability": 0.8}},
        "privacy": {"name": "central", "clip": 0.5, "adaptive": {}},
    },
    "dp_sgd": {"model": _GROUP_NORM, "privacy": {"name": "dp_sgd", "clip": 0.5, "noise_multiplier": 1.0}},
    "topk": {"exchange": {"compression": [{"name": "topk", "fraction": 0.1}, {"name": QUANTIZE, "bits": 4}]}},
    "fp16": {"exchange": {"compression": ["fp16"]}},
    "vectorized": {"model": {"name": "simple_cnn"}, "engine": {VECTORIZE: 3}},
    "vectorized_moon": {
        "method": {"name": "moon", "projection_dim": 8}, "model": {"name": "simple_cnn"}, "engine": {VECTORIZE: 3},
    },
    "local_norm": {"model": {**_MODEL, "norm": "batch"}, "exchange": {"local": ["norm"]}},
    "weighted": {"data": _SKEWED, "federation": {"sampler": {"name": "weighted", "fraction": 0.5}}},
    "power_of_choice": {"data": _SKEWED, "federation": {"sampler": {"name": "power_of_choice", "fraction": 0.5}}},
    "unseen": {"data": {**_DIGITS, "unseen": 0.2}, "federation": {"sampler": _HALF}},
    "deadline": {
        "federation": {
            "sampler": _HALF, "devices": _DEVICES, "dropout": 0.1, "over_selection": 1.5, "deadline": 1.0,
        },
    },
    "days": {"federation": {"availability": {"period": 4}}},
}  # fmt: skip


def entries() -> dict[str, dict[str, Any]]:
    """Every run of the table: name → sections of its configuration."""
    methods = {
        f"method/{name}": {**sections, "method": {"name": name, **sections.get("method", {})}}
        for name, sections in METHODS.items()
    }
    strategies = {
        f"strategy/{name}": {**_SUPERVISED, "federation": {"strategy": {"name": name, **settings}}}
        for name, settings in STRATEGIES.items()
    }
    return {**methods, **strategies, **{f"platform/{name}": {**_SUPERVISED, **new} for name, new in PLATFORM.items()}}


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
    metrics = {name: value for name, value in run.metrics.items() if name != "time"}
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
