"""The page for users of Flower: the study it shows runs both ways, and what it names exists."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import fedlab
from fedlab.config import Config
from fedlab.config.flowerapp import FlowerAppConfig
from fedlab.method import Method
from fedlab.report.record import RunRecord
from fedlab.server.strategies import STRATEGIES
from tests.forks import Forks

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "from-flower.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.programs
def test_the_study_runs_both_ways_and_learns_as_well(tmp_path: Path, forks: Forks) -> None:
    commands = []
    for kind, text in BLOCKS:
        if kind == "sh":
            commands += text.splitlines()
            continue
        name = re.match(r"# (\S+)\n", text)
        assert name is not None, text
        path = tmp_path / name[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    program = tmp_path / "program.py"
    program.write_text("from fedlab.cli.main import main\nmain()\n")
    (command,) = commands
    environment = {**os.environ, "FEDLAB_CACHE": str(tmp_path / "cache")}
    arguments = command.split()[1:]
    for words in ([program, *arguments], [tmp_path / "study.py"]):
        done = forks.run(words, cwd=tmp_path, env=environment, reports=False)
        assert done.returncode == 0, done.stderr
    app = RunRecord.open(tmp_path / "runs" / "as-flower-app").history
    study = fedlab.load(tmp_path / "runs" / "as-study").history
    found = [history.evaluations[-1]["mean"]["accuracy"] for history in (app, study)]
    assert [len(history.rounds) for history in (app, study)] == [3, 3]
    assert [len(history.evaluations[-1]["clients"]) for history in (app, study)] == [10, 10]
    assert min(found) > 0.7
    assert abs(found[0] - found[1]) < 0.1


def test_every_file_of_the_page_begins_with_its_name() -> None:
    names = [re.match(r"# (\S+)\n", text) for kind, text in BLOCKS if kind != "sh"]
    assert [name[1] for name in names if name] == [
        "digits-app/pyproject.toml",
        *(f"digits-app/digits_app/{name}.py" for name in ("task", "client_app", "server_app")),
        "study.py",
    ]
    assert len(BLOCKS) == PAGE.count("```") // 2


def test_the_pieces_that_the_page_names_exist() -> None:
    hooks = set(re.findall(r"`Method\.(\w+)`", PAGE))
    assert len(hooks) >= 5
    assert all(hasattr(Method, name) for name in hooks)
    keys = {"flower_app": FlowerAppConfig, "federation": Config, "data": Config, "engine": Config, "exchange": Config}
    for section, key in re.findall(r"`(federation|data|engine|exchange)\.(\w+)", PAGE):
        other = FlowerAppConfig.model_fields.get(section, Config.model_fields[section])
        known: dict[str, object] = {}
        for annotation in (keys[section].model_fields[section].annotation, other.annotation):
            known |= getattr(annotation, "model_fields", {})
        assert key in known, (section, key)
    for name in re.findall(r"`(flower\.[A-Z]\w+)`", PAGE):
        assert name in STRATEGIES.builtin
