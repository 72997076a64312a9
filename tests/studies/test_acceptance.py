from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.testing
import yaml

import fedlab.experiment.start
import fedlab.studies.plan
from fedlab.cli.main import app
from fedlab.config import parse
from fedlab.errors import ConfigErrors, FedLabError, InputError
from fedlab.experiment.result import Run
from fedlab.storage.runfolder import RunFolder
from fedlab.studies.acceptance import Acceptance, load_acceptance
from fedlab.studies.gates import last_value
from fedlab.studies.outcome import Outcome
from fedlab.studies.reproduce import reproduce
from fedlab.tracking import History

BASE: dict[str, Any] = {
    "method": "supervised",
    "model": "logistic",
    "data": {"source": {"name": "shifted_digits", "train_per_class": 10, "test_size": 40}, "partition": ["domain"]},
    "federation": {"rounds": 3},
    "training": {"optimizer": "adam"},
    "engine": {"name": "inline"},
    "tracking": {"console": "quiet", "tensorboard": False},
}
ARMS: dict[str, dict[str, Any]] = {"slow": {"training.lr": 1e-6}, "quick": {"training.lr": 0.005}}


def difference(at_least: float, left: str = "quick", minus: str = "slow", **more: Any) -> dict[str, Any]:
    return {"kind": "difference", "name": "gain", "left": left, "minus": minus, "at_least": at_least, **more}


def spec(*gates: Mapping[str, Any], **changes: Any) -> Acceptance:
    raw = {"source": "a test", "base": BASE, "seeds": [0, 1], "arms": ARMS, "gates": list(gates) or [difference(1)]}
    return parse(Acceptance, raw | changes)


def finished(path: Path, accuracies: list[float], logged: list[dict[str, float]] | None = None) -> Run:
    """A run on disk of which only the events matter."""
    path.mkdir(parents=True)
    rounds = [
        {"event": "round", "round": i, "train": {}, "server": values} for i, values in enumerate(logged or (), start=1)
    ]
    evaluations = [
        {"event": "evaluation", "round": i, "clients": {}, "mean": {"accuracy": value}, "pooled": {}}
        for i, value in enumerate(accuracies, start=1)
    ]
    (path / "events.jsonl").write_text("\n".join(map(json.dumps, [*rounds, *evaluations])))
    return Run(RunFolder(path), spec().config("slow", 0))


# the gates


def test_a_difference_is_that_of_the_last_evaluations_in_points_averaged_over_seeds(tmp_path: Path) -> None:
    results = {
        "slow": {0: finished(tmp_path / "a", [0.9, 0.5]), 1: finished(tmp_path / "b", [0.9, 0.5])},
        "quick": {0: finished(tmp_path / "c", [0.1, 0.5625]), 1: finished(tmp_path / "d", [0.1, 0.53125])},
    }
    gate, stricter = spec(difference(4.6875), difference(4.6876)).gates
    seen = gate.seen(results)
    assert seen == {0: 6.25, 1: 3.125}
    assert gate.judge(seen) == (4.6875, True)
    assert stricter.judge(seen) == (4.6875, False)


def test_a_ratio_is_the_worst_of_all_rounds_that_logged_both_and_of_all_seeds(tmp_path: Path) -> None:
    ratio = {"kind": "ratio", "name": "falls", "arm": "quick", "server": ["last", "first"], "at_most": 0.4}
    (gate,) = spec(ratio).gates
    logged = [{"first": 10.0, "last": 2.0}, {}, {"first": 10.0}, {"first": 20.0, "last": 8.0}]
    results = {"quick": {0: finished(tmp_path / "a", [], logged), 1: finished(tmp_path / "b", [], logged[:1])}}
    seen = gate.seen(results)
    assert seen == pytest.approx({0: 0.4, 1: 0.2})
    assert gate.judge({0: 0.4, 1: 0.2}) == (0.4, True)
    assert gate.judge({0: 0.2, 1: 0.41}) == (0.41, False)
    assert gate.seen({"quick": {0: finished(tmp_path / "c", [], [{"first": 0.0, "last": 1.0}])}}) == {0: math.inf}


# the file


def test_fedlgds_experiment_is_that_of_its_specification() -> None:
    acceptance = load_acceptance("fedlgd")
    config = acceptance.config("fedlgd", 1)
    method = config.method.settings
    assert acceptance.seeds == (0, 1, 2, 3, 4)
    assert config.seed == 1
    assert (config.model.name, config.model.settings) == ("convnet", {"width": 24, "depth": 3})
    assert [method[key] for key in ("ipc_local", "ipc_global", "warmup_steps", "dm_steps", "gm_steps")] == [
        5,
        5,
        300,
        40,
        40,
    ]
    assert (method["spacing"], method["updates"], method["lambda_reg"]) == (5, 9, 1.0)
    assert (config.federation.rounds, config.training.lr, config.training.batch_size) == (80, 0.05, 32)
    assert config.data.source.name == "shifted_digits"
    assert config.data.source.settings == {}
    compared = [(*gate.left, *gate.minus) for gate in acceptance.gates if gate.kind == "difference"]
    assert compared == [
        ("fedlgd", "fedavg_virtual_matched"),
        ("fedlgd", "refreshed_noise_anchors"),
        ("refreshed_noise_anchors", "frozen_anchors"),
    ]
    assert [gate.at_most for gate in acceptance.gates if gate.kind == "ratio"] == [0.4]
    virtual = acceptance.config("fedavg_virtual", 0).method.settings
    assert (virtual["updates"], virtual["lambda_reg"], virtual["train_on_global"]) == (0, 0, False)
    assert acceptance.config("frozen_anchors", 0).method.settings["gm_enabled"] is False


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"gates": [difference(1, left="quik")]},
            "gates.0 = 'quik'\n  expected: the name of an arm\n  to do:    did you mean 'quick'?",
        ),
        ({"gates": [{"kind": "sum", "name": "x"}]}, "gates.0"),
        ({"gates": []}, "gates"),
        ({"seeds": []}, "seeds"),
        ({"armss": {}}, "did you mean 'arms'?"),
    ],
)
def test_an_experiment_that_makes_no_sense_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        spec(**changes)
    assert told in str(caught.value)


def test_what_has_no_experiment_is_refused() -> None:
    with pytest.raises(InputError, match="an acceptance"):
        load_acceptance("supervised")
    with pytest.raises(InputError, match="did you mean 'fedlgd'"):
        load_acceptance("fedlg")


def test_a_wrong_arm_configuration_is_refused_before_anything_runs(tmp_path: Path) -> None:
    wrong = spec(arms={**ARMS, "slow": {"training.lrr": 1}})
    with pytest.raises(ConfigErrors, match="arm slow: training"):
        reproduce(wrong, tmp_path / "out")
    with pytest.raises(InputError, match="did you mean 'quick'"):
        reproduce(spec(), tmp_path / "out", arms=["quik"])
    assert not (tmp_path / "out").exists()


# the experiment


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that really ran."""
    ran: list[str] = []

    def run(config: fedlab.Config, **more: Any) -> Run:
        ran.append(f"{Path(config.tracking.folder).name} {config.seed}")
        return fedlab.experiment.start.run(config, **more)

    monkeypatch.setattr(fedlab.studies.plan, "run", run)
    return ran


def test_all_arms_and_seeds_run_once_and_the_outcome_is_written(tmp_path: Path, counted: list[str]) -> None:
    told: list[str] = []
    outcome = reproduce(spec(difference(1), difference(99)), tmp_path, announce=told.append)
    assert counted == ["slow 0", "quick 0", "slow 1", "quick 1"]
    assert [verdict.met for verdict in outcome.verdicts] == [True, False]
    assert not outcome.met
    assert told[0] == "slow, seed 0 (1 of 4)"

    written = json.loads((tmp_path / "acceptance.json").read_text())
    assert written["met"] is False
    assert [gate["met"] for gate in written["gates"]] == [True, False]
    quick = written["arms"]["quick"]["metrics"]["accuracy"]
    run = fedlab.load(written["arms"]["quick"]["runs"]["1"])
    assert quick["seeds"]["1"] == run.metrics["mean"]["accuracy"]
    assert quick["mean"] == pytest.approx(sum(quick["seeds"].values()) / 2)
    assert quick["std"] == pytest.approx(abs(quick["seeds"]["0"] - quick["seeds"]["1"]) / math.sqrt(2))

    table = (tmp_path / "acceptance.md").read_text()
    assert "| gain | ≥ 99 points |" in table
    assert "| missed |" in table
    assert f"{100 * quick['mean']:.2f}" in table

    again = reproduce(spec(difference(1)), tmp_path, seeds=[1, 2], arms=["quick"])
    assert counted[4:] == ["quick 2"]
    assert again.results["quick"][1].path == run.path


def test_an_outcome_keeps_the_arms_and_seeds_of_earlier_calls(tmp_path: Path, counted: list[str]) -> None:
    first = reproduce(spec(), tmp_path, arms=["slow"])
    assert [verdict.word for verdict in first.verdicts] == ["not judged"]
    assert (first.failed, first.undecided) == (False, ["gain (lacks runs of quick)"])
    second = reproduce(spec(), tmp_path, arms=["quick"], seeds=[1, 5])
    assert counted == ["slow 0", "slow 1", "quick 1", "quick 5"]
    assert second.seeds == (0, 1, 5)
    assert {arm: sorted(runs) for arm, runs in second.results.items()} == {"slow": [0, 1], "quick": [1, 5]}
    assert second.kept == {"slow": [0, 1]}
    assert (second.met, second.undecided) == (True, [])
    assert list(second.verdicts[0].by_seed) == [1]
    written = json.loads((tmp_path / "acceptance.json").read_text())
    assert written["arms"]["slow"]["made_by_an_earlier_call"] == [0, 1]
    assert written["arms"]["slow"]["ended"]["0"].endswith("UTC")
    assert "- slow: seed 0 of 20" in (tmp_path / "acceptance.md").read_text()
    changed = reproduce(spec(base={**BASE, "federation": {"rounds": 2}}), tmp_path, arms=["quick"], seeds=[0])
    assert changed.kept == {}, "runs of another configuration are of another experiment"


def test_runs_on_data_that_has_changed_since_are_not_kept(tmp_path: Path) -> None:
    def write(seed: int) -> None:
        x = np.random.default_rng(seed).random((12, 8, 8)).astype(np.float32)
        np.savez(tmp_path / "mine.npz", x_train=x, y_train=np.arange(12) % 2, x_test=x, y_test=np.arange(12) % 2)

    source = {"name": "npz", "path": str(tmp_path / "mine.npz")}
    base = {**BASE, "data": {"source": source, "partition": [{"name": "iid", "clients": 2}]}}
    write(0)
    reproduce(spec(base=base, seeds=[0]), tmp_path / "out", arms=["slow"])
    assert reproduce(spec(base=base, seeds=[0]), tmp_path / "out", arms=["quick"]).kept == {"slow": [0]}
    write(1)
    assert reproduce(spec(base=base, seeds=[0]), tmp_path / "out", arms=["quick"]).kept == {}


def test_all_runs_share_one_cache_in_the_folder(tmp_path: Path) -> None:
    outcome = reproduce(spec(), tmp_path, seeds=[0])
    caches = {run.config.tracking.cache for runs in outcome.results.values() for run in runs.values()}
    assert caches == {str(tmp_path / "cache")}


def test_a_cache_that_the_experiment_names_is_left_alone(tmp_path: Path) -> None:
    mine = {**BASE, "tracking": {**BASE["tracking"], "cache": str(tmp_path / "mine")}}
    outcome = reproduce(spec(base=mine), tmp_path / "out", seeds=[0], arms=["quick"])
    assert outcome.results["quick"][0].config.tracking.cache == str(tmp_path / "mine")


@pytest.mark.parametrize("damage", ["unfinished", "other configuration", "spoilt"])
def test_a_run_that_did_not_finish_or_was_of_another_configuration_is_run_again(
    tmp_path: Path, counted: list[str], damage: str
) -> None:
    first = reproduce(spec(), tmp_path, seeds=[0], arms=["quick"]).results["quick"][0]
    if damage == "unfinished":
        lines = first.folder.events.read_text().splitlines()
        first.folder.events.write_text("\n".join(lines[:-1]))
    elif damage == "spoilt":
        first.folder.config.write_text("seed: [")
    rounds = {"federation": {"rounds": 2}} if damage == "other configuration" else {}
    second = reproduce(spec(base={**BASE, **rounds}), tmp_path, seeds=[0], arms=["quick"]).results["quick"][0]
    assert counted == ["quick 0", "quick 0"]
    assert second.path != first.path
    assert first.folder.events.is_file()


def test_where_the_work_ran_makes_no_other_experiment(tmp_path: Path, counted: list[str]) -> None:
    reproduce(spec(), tmp_path, seeds=[0])
    reproduce(spec(), tmp_path, seeds=[0], overrides=["engine.name=ray", "engine.workers=2", "tracking.console=plain"])
    assert counted == ["slow 0", "quick 0"]


def test_each_client_also_trains_alone_and_one_name_stands_for_all_of_these_arms(
    tmp_path: Path, counted: list[str]
) -> None:
    gate = difference(1, minus="local_only")
    alone = spec(gate, local_only="quick", seeds_of={"local_only": [1]})
    outcome = reproduce(alone, tmp_path, arms=["local_only"])
    assert counted == [f"local_{client} 1" for client in range(5)]
    for client in range(5):
        config = outcome.results[f"local_{client}"][1].config
        assert (config.federation.sampler.settings["clients"], config.training.lr) == ([client], 0.005)
    outcome = reproduce(alone, tmp_path, arms=["quick"])
    assert counted[5:] == ["quick 0", "quick 1"]
    quick, *rest = (
        last_value(outcome.results[arm][1].history, "accuracy") for arm in ["quick", *map("local_{}".format, range(5))]
    )
    assert outcome.verdicts[0].by_seed == {1: pytest.approx(100 * (quick - sum(rest) / 5))}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gates": [difference(1, minus="local_only")]}, "gates.0 = 'local_only'"),
        ({"local_only": "quik"}, "did you mean 'quick'"),
        (
            {"local_only": "quick", "gates": [{"kind": "trend", "name": "x", "arm": "local_only", "at_most": 1}]},
            "stands for several",
        ),
    ],
)
def test_local_arms_that_make_no_sense_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigErrors, match=told):
        spec(**changes)
    with pytest.raises(InputError, match="rename it"):
        spec(arms={**ARMS, "local_1": {}}, local_only="quick").with_local_arms([0, 1])


def test_the_base_may_be_another_file_with_changes(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(BASE))
    path = tmp_path / "acceptance.yaml"
    raw = {"source": "a test", "seeds": [0], "arms": ARMS, "gates": [difference(1)], "base": "config.yaml"}
    path.write_text(yaml.safe_dump({**raw, "changes": {"federation.rounds": 7}}))
    config = load_acceptance(str(path)).config("quick", 0)
    assert (config.federation.rounds, config.training.lr, config.model.name) == (7, 0.005, "logistic")
    path.write_text(yaml.safe_dump({**raw, "changes": [1]}))
    with pytest.raises(InputError, match="dotted keys"):
        load_acceptance(str(path))
    path.write_text(yaml.safe_dump({**raw, "base": BASE, "changes": {"federation.rounds": 7}}))
    with pytest.raises(ConfigErrors, match="changes"):
        load_acceptance(str(path))


def test_a_run_that_fails_ends_it_unless_it_is_to_keep_going(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(config: fedlab.Config, **more: Any) -> Run:
        if config.training.lr == 0.005:
            raise FedLabError("out of order\nat length")
        return fedlab.experiment.start.run(config, **more)

    monkeypatch.setattr(fedlab.studies.plan, "run", run)
    with pytest.raises(FedLabError, match="out of order"):
        reproduce(spec(), tmp_path, seeds=[0])
    outcome = reproduce(spec(), tmp_path, seeds=[0], keep_going=True)
    assert outcome.failures == {"quick, seed 0": "out of order\nat length"}
    assert not outcome.met
    assert "- quick, seed 0 failed: out of order" in (tmp_path / "acceptance.md").read_text()


# the command


def command(path: Path, *words: str) -> Any:
    return typer.testing.CliRunner().invoke(app, ["reproduce", str(path), *words])


@pytest.mark.parametrize(("at_least", "code", "told"), [(1.0, 0, "every gate is met"), (99.0, 1, "missed")])
def test_the_exit_code_tells_whether_the_gates_are_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_least: float, code: int, told: str
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    path = tmp_path / "acceptance.yaml"
    path.write_text(yaml.safe_dump(spec(difference(at_least), seeds=[0]).model_dump(mode="json")))
    done = command(path, "--folder", str(tmp_path / "out"), "--engine", "inline", "--quiet")
    assert done.exit_code == code, done.output
    assert told in done.output
    assert f"≥ {at_least:g} points" in done.stdout
    recorded = next((tmp_path / "out").glob("runs/quick/*/environment.json")).read_text()
    assert json.loads(recorded)["command"].startswith("fedlab reproduce")


def test_gates_that_could_not_be_judged_are_neither_success_nor_failure(tmp_path: Path) -> None:
    path = tmp_path / "acceptance.yaml"
    path.write_text(yaml.safe_dump(spec(seeds=[0]).model_dump(mode="json")))
    done = command(path, "--folder", str(tmp_path / "out"), "--arms", "slow")
    assert done.exit_code == 3
    assert "not judged: gain (lacks runs of quick)" in done.stderr
    assert "some could not be judged" in done.stderr
    rest = command(path, "--folder", str(tmp_path / "out"), "--arms", "quick")
    assert rest.exit_code == 0
    assert "from an earlier call: slow: seed 0" in rest.stdout


@pytest.mark.parametrize("words", [("--seeds", "a"), ("--seeds", "-1"), ("--arms", "none")])
def test_wrong_seeds_and_arms_are_refused(tmp_path: Path, words: tuple[str, str]) -> None:
    done = command(Path("fedlgd"), "--folder", str(tmp_path / "out"), *words)
    assert done.exit_code == 2
    assert words[0] in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fedlgd_meets_its_gates(tmp_path: Path) -> None:
    outcome: Outcome = reproduce(load_acceptance("fedlgd"), tmp_path, overrides=["tracking.console=quiet"])
    assert outcome.met, outcome.to_markdown()


def test_the_last_evaluation_counts() -> None:
    events = [{"event": "evaluation", "round": r, "mean": {"accuracy": r / 10}, "clients": {}} for r in (1, 2)]
    assert last_value(History(tuple(events)), "accuracy") == 0.2
    assert last_value(History(), "accuracy") is None
