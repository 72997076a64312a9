from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedlab.cli.catalogue import WORDS, rows
from fedlab.experiment.components import REGISTRIES

Cli = Callable[..., Any]


@pytest.mark.parametrize("kind", WORDS)
def test_every_component_says_what_it_is(kind: str) -> None:
    listed = list(rows(kind))
    assert listed
    for name, about, origin in listed:
        assert name
        assert about
        assert "cannot be imported" not in about
        assert origin == "built-in"


def test_without_a_kind_all_are_listed(cli: Cli) -> None:
    done = cli("list")
    assert done.exit_code == 0
    for name in ("fedlgd", "shifted_digits", "convnet", "flower.FedYogi", "inline", "dirichlet", "uniform"):
        assert name in done.stdout


def test_methods_show_paper_and_modality(cli: Cli) -> None:
    text = cli("list", "methods").stdout
    assert "arXiv 2303.02278" in text
    assert "image" in text
    assert "convnet" not in text


def test_a_plug_in_is_listed_with_its_package_and_a_broken_one_with_its_error(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "site" / "my_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[fedlab.models]\nlinear = fedlab.models.logistic:Logistic\nburst = broken_plugin_module:Model\n"
    )
    (tmp_path / "site" / "broken_plugin_module.py").write_text("raise RuntimeError('out of order')\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    done = cli("list", "models")
    assert done.exit_code == 0
    assert "entry point of my-plugin" in done.stdout
    assert "cannot be imported" in done.stdout
    assert "out of order" in done.stdout
    assert "convnet" in done.stdout


def test_an_unknown_kind_is_refused(cli: Cli) -> None:
    done = cli("list", "planets")
    assert done.exit_code == 2
    assert "methods" in done.stderr


@pytest.mark.parametrize("key", [*REGISTRIES, "engine"])
def test_every_kind_is_listed_under_the_word_of_the_configuration(cli: Cli, key: str) -> None:
    word = key.rpartition(".")[2]
    same = {name: name for name in ("privacy", "probes", "callbacks", "trackers")}
    plural = {**same, "strategy": "strategies", "augment": "augmentations"}.get(word, f"{word}s")
    listed = [cli("list", name).stdout for name in (word, plural, key)]
    assert len(set(listed)) == 1
    assert listed[0].split()[0] == plural


@pytest.mark.parametrize(("word", "kind"), [("datasets", "sources"), ("compressors", "compressions")])
def test_earlier_words_still_work(cli: Cli, word: str, kind: str) -> None:
    assert cli("list", word).stdout == cli("list", kind).stdout != ""
