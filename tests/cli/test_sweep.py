from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedlab

Cli = Callable[..., Any]


def test_a_sweep_prints_its_table_and_names_its_files_and_goes_on_from_them(
    cli: Cli, tiny: Path, tmp_path: Path
) -> None:
    words = ["sweep", tiny, "--over", "training.lr=0.01,0.1", "--seeds", "0,1", "--set", "federation.rounds=1"]
    done = cli(*words)
    assert done.exit_code == 0, done.output
    assert "training.lr=0.1, seed 1 (4 of 4), about" in done.stdout
    assert "accuracy, worst client (%)" in done.stdout
    for name in ("sweep.csv", "sweep.md", "runs.csv", "sweep-accuracy.png"):
        assert f"written: runs/sweep-tiny/{name}" in done.stdout
        assert (tmp_path / "runs" / "sweep-tiny" / name).is_file()
    assert cli(*words).stdout.count("already done") == 4


def test_a_sweep_file_is_run_with_mappings_as_values(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "base: tiny.yaml\n"
        "grid: {federation.strategy: {plain: fedavg, pulled: {name: fedprox, mu: 0.1}}}\n"
        "list: {a: {}, b: {training.lr: 0.1}}\n"
    )
    done = cli("sweep", path, "--folder", tmp_path / "out", "--metric", "loss", "--metric", "accuracy")
    assert done.exit_code == 0, done.output
    assert "pulled, b, seed 0 (4 of 4)" in done.stdout
    (run,) = (tmp_path / "out" / "runs").glob("pulled,b/*")
    config = fedlab.load(run).config
    assert (config.federation.strategy.settings, config.training.lr) == ({"mu": 0.1}, 0.1)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "a key to vary"),
        (["--over", "training.lrr=1,2"], "did you mean 'lr'"),
        (["--over", "training.lr=0.1,-1"], "point training.lr=-1: training.lr"),
        (["--over", "training.lr=0.1", "--seeds", "a"], "whole numbers"),
        (["--over", "training.lr=0.1", "--set", "training.lr=1"], "does not vary itself"),
        (["--over", "training.lr=[1"], "separated by commas"),
        (["--over", "training.lr=log(1e-3,1)"], "needs trials (--optuna N)"),
        (["--over", "training.lr=log(1,1e-3)", "--optuna", "2"], "a lower bound below the upper one"),
        (["--over", "training.lr=log(1e-3,1)", "--optuna", "2"], "add --set data.validation=0.2"),
        (["--optuna", "2", "--seeds", "0,1"], "a key to vary"),
        (["--over", "training.lr=1,2", "--objective", "loss"], "add --optuna N"),
        (["--over", "training.lr=1,2", "--optuna", "2", "--metric", "loss"], "--objective names the metric"),
        (["--over", "training.lr=1,2", "--jobs", "0"], "--jobs"),
    ],
)
def test_wrong_words_are_explained_before_anything_runs(
    cli: Cli, tiny: Path, tmp_path: Path, words: list[str], told: str
) -> None:
    done = cli("sweep", tiny, *words)
    assert done.exit_code == 2
    assert told in " ".join(done.stderr.split())
    assert not (tmp_path / "runs").exists()


def test_failed_runs_are_reported_and_make_the_exit_code(
    cli: Cli, tiny: Path, user_method: Callable[[str], str]
) -> None:
    method = user_method("assert step.round < 2, 'too much'")
    words = ["sweep", tiny, "--over", f"method=supervised,{{name: '{method}'}}", "--keep-going"]
    done = cli(*words)
    assert done.exit_code == 1
    assert "1 run failed" in done.stderr
    assert "AssertionError: too much" in done.stdout
    stopped = cli(*words[:-1])
    assert stopped.exit_code == 1
    assert "1 of 2 runs are done and kept; give the same command again to continue" in stopped.stderr


def test_ctrl_c_says_how_to_go_on(cli: Cli, tiny: Path, user_method: Callable[[str], str]) -> None:
    method = user_method("if step.round == 2: raise KeyboardInterrupt")
    done = cli("sweep", tiny, "--over", f"method=supervised,{{name: '{method}'}}")
    assert done.exit_code == 130
    assert "1 of 2 runs are done and kept; give the same command again to continue" in done.stderr


def test_compare_prints_what_differs_and_whether_weights_are_equal(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    for name, rate in (("one", 0.01), ("two", 0.1), ("three", 0.1)):
        assert cli("run", tiny, "--name", name, "--set", f"training.lr={rate}").exit_code == 0
    runs = [tmp_path / "runs" / name for name in ("one", "two", "three")]
    done = cli("compare", *runs, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "training.lr" in done.stdout
    assert "bitwise equal are B seed 0 = C seed 0" in done.stdout
    assert (tmp_path / "out" / "compare-accuracy.png").is_file()
    same = cli("compare", *runs[1:])
    assert "the configurations do not differ" in same.stdout
    assert cli("compare", runs[0]).exit_code == 2
    (tmp_path / "file").write_text("")
    assert cli("compare", *runs, "--out", tmp_path / "file").exit_code == 2
    page = cli("compare", *runs, "--html", tmp_path / "page.html")
    assert f"written: {tmp_path / 'page.html'}" in page.stdout.replace("\n", "")
    assert "3 runs compared" in (tmp_path / "page.html").read_text()
    refused = cli("compare", *runs, "--html", tmp_path)
    assert refused.exit_code == 2
    assert "a file that can be written" in refused.stderr


def test_a_search_without_optuna_says_how_to_install_it(cli: Cli, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = cli("sweep", tiny, "--over", "training.lr=log(0.01,1)", "--optuna", "2")
    assert done.exit_code == 2
    assert "pip install 'fedlab-sim[optuna]'" in done.stderr
