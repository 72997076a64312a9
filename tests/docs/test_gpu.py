"""The page on GPUs: its example runs and does what the page says, and it names every setting."""

from __future__ import annotations

import re
from pathlib import Path

import fedlab
from fedlab.config import EngineConfig, TrainingConfig

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "gpu.md").read_text(encoding="utf-8")


def test_the_example_runs_vectorized(tmp_path: Path) -> None:
    (found,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    file = tmp_path / "together.yaml"
    file.write_text(found, encoding="utf-8")
    quiet = ["tracking.console=quiet", "tracking.tensorboard=false", f"tracking.folder={tmp_path / 'runs'}"]
    run = fedlab.run(file, overrides=[*quiet, "federation.rounds=1"])
    assert run.history.warnings == []
    assert run.config.engine.vectorize == 5


def test_the_page_names_every_setting() -> None:
    named = set(re.findall(r"`(engine|training)\.(\w+)", PAGE))
    asked = {("engine", "vectorize"), ("engine", "resident"), ("engine", "gpus_per_worker"), ("engine", "workers")}
    asked |= {("training", name) for name in ("precision", "channels_last", "compile")}
    assert asked <= named
    sections = {"engine": EngineConfig, "training": TrainingConfig}
    assert all(name in sections[section].model_fields for section, name in named)
