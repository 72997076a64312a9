"""Each method's README says how to bring data of one's own, and what it says works."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import fedlab
from fedlab.assembly import METHODS
from fedlab.data.regions import template
from fedlab.data.sources import SOURCES
from fedlab.experiment.checks import resolve
from fedlab.experiment.start import configure, method_folder

ROOT = Path(__file__).resolve().parents[2]
READMES = {name: (method_folder(name, "METHOD") / "README.md").read_text("utf-8") for name in METHODS.builtin}
FENCES = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fences(markdown: str) -> list[tuple[str, str]]:
    return FENCES.findall(markdown)


FILES = {
    f"{method} {name[1]}": text
    for method, readme in READMES.items()
    for language, text in fences(readme)
    if language == "yaml" and (name := re.match(r"# (\S+\.yaml)\n", text))
}
COMMANDS = [
    (method, line)
    for method, readme in READMES.items()
    for language, text in fences(readme)
    if language in ("", "sh")
    for line in text.replace("\\\n", " ").splitlines()
    if line.startswith("fedlab run ")
]
# one round is enough, and as little work of the method's own as there can be
CHEAP = {
    "fedlgd": ["method.warmup_steps=2", "method.dm_steps=1", "method.gm_steps=1", "method.ipc_local=2"],
    "lgvit": ["method.joint_rounds=1", "training.local_steps=2"],
    "hybrid_distill": ["method.feature_teacher.steps=1", "method.relation_teacher.steps=1"],
    "gpfm": ["method.experts.nuclei.steps=1"],
    "vhl": ["method.images_per_class=4"],
    "transkd": [
        "method.teacher_steps=1",
        "method.student={widths: [8, 16, 24, 32], depths: [1, 1, 1, 1], heads: [1, 2, 3, 4], decoder: 32}",
        "method.teacher={widths: [8, 16, 24, 32], depths: [1, 1, 1, 1], heads: [1, 2, 3, 4], decoder: 32}",
    ],
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds the data which the READMEs' files name."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)

    def arrays(n: int, *shape: int) -> dict[str, Any]:
        return {
            "x": rng.integers(0, 256, (n, *shape), dtype=np.uint8),
            "y": np.arange(n) % 3,
            "domain": np.arange(n) % 2,
        }

    for name, shape in (("mine", (16, 16)), ("gray", (32, 32))):
        parts = {part: arrays(n, *shape) for part, n in (("train", 48), ("test", 24))}
        if name == "gray":
            parts = {part: {k: v for k, v in held.items() if k != "domain"} for part, held in parts.items()}
        np.savez(f"{name}.npz", **{f"{key}_{part}": v for part, held in parts.items() for key, v in held.items()})
    shapes = {"train": rng.normal(size=(48, 150, 3)), "test": rng.normal(size=(24, 150, 3))}
    labels = {f"y_{part}": np.arange(len(clouds)) % 3 for part, clouds in shapes.items()}
    np.savez("shapes.npz", **{f"x_{part}": clouds for part, clouds in shapes.items()}, **labels)
    for part in ("train", "test"):
        for index in range(24):
            save(tmp_path / "pictures" / part / "abc"[index % 3] / f"{index}.png", rng.integers(0, 256, (32, 32, 3)))
    for site, kind, index in itertools.product(("berlin", "lyon"), ("normal", "lesion"), range(5)):
        save(tmp_path / "data" / "scans" / site / kind / f"{index}.png", rng.integers(0, 256, (40, 32, 3)))
    for slide in ("lyon/slide-001", "lyon/slide-002", "bonn/slide-007", "bonn/slide-008"):
        for index in range(36):
            path = tmp_path / "data" / slide / ("tumor", "stroma")[index % 2] / f"{index}.png"
            save(path, rng.integers(0, 256, (32, 32, 3)))
    for name, part in (("pairs", "train"), ("public", "test")):
        lines = [
            {"image": f"pictures/{part}/{'abc'[i % 3]}/{i}.png", "caption": f"a {('red', 'blue', 'gray')[i % 3]} thing"}
            for i in range(24)
        ]
        owned = [{**line, "client": "ab"[i % 2]} if name == "pairs" else line for i, line in enumerate(lines)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, owned)), encoding="utf-8")
    queries = [
        {"reference": f"pictures/test/{'abc'[i % 3]}/{i}.png", "caption": "but red",
         "target": f"pictures/test/{'abc'[(i + 1) % 3]}/{i + 1}.png"}
        for i in range(12)
    ]  # fmt: skip
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)), encoding="utf-8")
    for folder in ("train", "test", "server/teacher", "server/test"):
        for domain in ("fog", "sun") if folder in ("train", "test") else ("all",):
            for index in range(3):
                mask = np.zeros((128, 256))
                mask[:, 128:] = 1
                root = tmp_path / "data" / "streets" / folder
                save(root / "images" / domain / f"{index}.png", rng.integers(0, 256, (128, 256, 3)))
                save(root / "masks" / domain / f"{index}.png", mask)
    for part in ("train", "test"):
        for place in ("north", "south"):
            for kind in ("real", "fake"):
                for video in range(6):
                    path = tmp_path / "data" / "faces" / part / place / kind / f"v{video}" / "1.png"
                    save(path, rng.integers(0, 256, (40, 40, 3)))
                    np.save(path.with_suffix(".npy"), template(40, 40))
    return tmp_path


def save(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


@pytest.mark.parametrize("name", METHODS.builtin)
def test_every_methods_readme_says_how_to_bring_own_data(name: str) -> None:
    assert re.search(r"^## Your own", READMES[name], re.MULTILINE)


def test_every_source_for_own_data_is_documented() -> None:
    """Sources with a path, and the one that joins others, are of no use to who does not know of them."""
    prose = "\n".join([*READMES.values(), (ROOT / "README.md").read_text("utf-8")])
    settings = {name: SOURCES.find(name).Settings.model_fields for name in SOURCES.names()}
    own = {name for name, fields in settings.items() if {"path", "sources", "query"} & set(fields)}
    assert {"npz", "folder", "union", "masks"} <= own
    assert not {name for name in own if f"`{name}`" not in prose and f"name: {name}" not in prose}


@pytest.mark.parametrize(("method", "command"), COMMANDS)
def test_every_command_of_a_readme_is_a_configuration(
    method: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    _, _, source, *options = shlex.split(command, comments=True)
    sets = [options[index + 1] for index, option in enumerate(options) if option == "--set"]
    assert {option for option in options if option.startswith("-")} <= {"--set", "--engine", "--rounds", "--seed"}
    resolve(configure(source, [*sets, "engine.name=inline", "engine.device=cpu"]))


@pytest.mark.parametrize("name", FILES)
def test_every_configuration_of_a_readme_runs(name: str, here: Path) -> None:
    method, file = name.split()
    assert yaml.safe_load(FILES[name])
    (here / file).write_text(FILES[name], encoding="utf-8")
    run = fedlab.run(
        here / file,
        overrides=[
            *CHEAP.get(method, ()), "federation.rounds=1", "engine.name=inline", "tracking.console=quiet",
            "tracking.tensorboard=false", f"tracking.folder={here / 'runs'}",
        ],
    )  # fmt: skip
    assert run.history.end["status"] == "completed"
    assert run.metrics["mean"]
