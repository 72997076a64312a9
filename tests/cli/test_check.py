"""`fedlab config check --data` refuses what `fedlab run` refuses, in the same words, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

Cli = Callable[..., Any]

TRANSKD = {
    "name": "transkd",
    "student": {"widths": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "heads": (1, 1, 2, 2), "decoder": 8},
    "teacher": {"widths": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "heads": (1, 1, 2, 2), "decoder": 8},
    "teacher_steps": 2,
}
PAT = {"name": "pat", "patch": 6, "width": 12, "depth": 1, "heads": 3, "mlp_ratio": 2}
ASIT = {
    "name": "asit", "rate": 8000, "view_seconds": 0.3, "bins": 16, "patch": 8, "width": 16, "depth": 1, "heads": 2,
    "hidden": 16, "bottleneck": 8, "reconstruction_width": 8, "class_prototypes": 12, "patch_prototypes": 8,
}  # fmt: skip
PEOPLE = {"name": "pedestrians", "sites": 2, "identities": 6, "target_identities": 4, "images": 4}


def masks(folder: Path, teacher: bool) -> dict[str, Any]:
    """Images with masks of two classes; the server's own set of them only where it is to be trained on."""
    rng = np.random.default_rng(0)
    for part in ("train", "test", *(["server/teacher"] if teacher else [])):
        for index in range(4):
            mask = np.zeros((36, 36), np.uint8)
            mask[:, 18:] = 1
            for kind, values in (("images", rng.integers(0, 256, (36, 36, 3), np.uint8)), ("masks", mask)):
                path = folder / part / kind / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(path)
    return {"name": "masks", "path": str(folder), "size": [36, 36]}


def sounds(folder: Path) -> dict[str, Any]:
    """Ten clips that nobody has labeled."""
    folder.mkdir()
    tone = (np.sin(np.arange(4000) / 5) * 16000).astype(np.int16)
    for index in range(10):
        wavfile.write(folder / f"{index}.wav", 8000, tone)
    rows = [f"{index}.wav,{'test' if index > 6 else 'train'}\n" for index in range(10)]
    (folder / "labels.csv").write_text("file,split\n" + "".join(rows))
    return {"name": "audio_folder", "path": str(folder), "rate": 8000, "seconds": 0.5}


def no_teacher(path: Path) -> dict[str, Any]:
    return {
        "method": TRANSKD,
        "data.source": masks(path / "m", teacher=False),
        "data.partition": [{"name": "iid", "clients": 2}],
    }


def class_weights(path: Path) -> dict[str, Any]:
    return {
        "method": {**TRANSKD, "class_weights": [1, 1, 1, 1, 1]},
        "data.source": masks(path / "m", teacher=True),
        "data.partition": [{"name": "iid", "clients": 2}],
    }


def unlabeled(path: Path) -> dict[str, Any]:
    return {
        "method": {**ASIT, "finetune_rounds": 1},
        "data.source": sounds(path / "s"),
        "data.partition": [{"name": "iid", "clients": 2}],
    }


def torn_weights(path: Path) -> dict[str, Any]:
    (path / "torn.safetensors").write_bytes(b"no weights")
    return {"init": {"model": str(path / "torn.safetensors")}}


def other_weights(path: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(3)}, path / "other.safetensors")
    return {"init": {"model": str(path / "other.safetensors")}}


def folder_of_a_file(path: Path) -> dict[str, Any]:
    (path / "file").write_text("not a folder")
    # the folder of a run without a name is called after the second in which it is made
    return {"tracking.folder": str(path / "file" / "runs"), "tracking.name": "mine"}


def taken(path: Path) -> dict[str, Any]:
    (path / "runs" / "mine").mkdir(parents=True)
    return {"tracking.name": "mine"}


# by name: what is changed in a configuration that runs, and a part of the refusal; None where there is none
BROKEN: dict[str, tuple[dict[str, Any] | Callable[[Path], dict[str, Any]], str | None]] = {
    "nothing": ({}, None),
    "weights of no run": ({"init": {"model": "nowhere"}}, "nowhere' expected: a .safetensors file"),
    "weights for no network": (lambda p: {"init": {"modell": other_weights(p)["init"]["model"]}}, "init.modell"),
    "torn weights": (torn_weights, "init.model"),
    "weights of another network": (other_weights, "the state of this network"),
    "too deep": ({"model": {"name": "convnet", "depth": 9}}, "model.depth"),
    "too many clients": ({"data.partition": [{"name": "iid", "clients": 1000}]}, "at most 100"),
    "statistics": ({"data.mean": [0.5, 0.5]}, "data.mean"),
    "no data": ({"data.source": {"name": "npz", "path": "none.npz"}}, "data.source.path"),
    "nobody": ({"federation.sampler": {"name": "fixed", "clients": [9]}}, "federation.sampler"),
    "a patch": (
        {"method": {**PAT, "patch": 7}, "data.source": PEOPLE, "training.batch_size": 16},
        "method.patch = 7",
    ),
    "no teacher": (no_teacher, "server sample set 'teacher'"),
    "class weights": (class_weights, "method.class_weights = '5 numbers'"),
    "no labels": (unlabeled, "labeled clips to fine-tune on"),
    "batch statistics": (
        {
            "model": {"name": "convnet", "width": 4, "depth": 1, "norm": "batch"},
            "privacy": {"name": "dp_sgd", "clip": 1.0, "noise_multiplier": 1.0, "delta": 0.01},
        },
        "layers that treat every example alone",
    ),
    "a taken name": (taken, "tracking.name = 'mine'"),
    "no folder": (folder_of_a_file, "tracking.folder"),
}
NEEDS_DATA = set(BROKEN) - {"nothing", "weights of no run", "torn weights", "a taken name", "no folder"}


def words(changes: dict[str, Any]) -> list[str]:
    return [word for key, value in changes.items() for word in ("--set", f"{key}={json.dumps(value)}")]


@pytest.mark.parametrize("name", BROKEN)
def test_the_check_with_data_refuses_what_the_run_refuses(cli: Cli, tiny: Path, tmp_path: Path, name: str) -> None:
    changes, told = BROKEN[name]
    options = words(changes(tmp_path) if callable(changes) else changes)
    before = sorted(tmp_path.rglob("*"))
    checked = cli("config", "check", tiny, "--data", *options)
    assert sorted(tmp_path.rglob("*")) == before, "the check leaves nothing behind"
    run = cli("run", tiny, *options)
    assert (checked.exit_code, run.exit_code) == ((2, 2) if told else (0, 0)), checked.output + run.output
    assert checked.stderr == run.stderr
    assert told is None or told in " ".join(checked.stderr.split())
    assert ("the configuration is valid" in checked.stdout) is (told is None)
    assert not list(tmp_path.glob("runs/*/events.jsonl")) or told is None


@pytest.mark.parametrize("name", sorted(set(BROKEN) - NEEDS_DATA))
def test_what_needs_no_data_is_refused_without(cli: Cli, tiny: Path, tmp_path: Path, name: str) -> None:
    changes, told = BROKEN[name]
    options = words(changes(tmp_path) if callable(changes) else changes)
    with_data, without = (cli("config", "check", tiny, *options, *more) for more in (["--data"], []))
    assert without.exit_code == with_data.exit_code == (2 if told else 0)
    assert without.stderr == with_data.stderr


def test_without_data_the_check_says_what_it_leaves_open(cli: Cli, tiny: Path) -> None:
    too_deep = words({"model": {"name": "convnet", "depth": 9}})
    done = cli("config", "check", tiny, *too_deep)
    assert done.exit_code == 0
    assert "not checked: the data, its division among the clients, whether the networks fit it" in done.stdout
    assert "not checked" not in cli("config", "check", tiny, "--data").stdout
