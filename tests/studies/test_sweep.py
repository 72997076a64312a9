from __future__ import annotations

import csv
import os
import re
import signal
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import fedlab
import fedlab.experiment.start
import fedlab.studies.plan
from fedlab.config import parse
from fedlab.errors import CheckpointError, ConfigErrors, FedLabError, InputError
from fedlab.experiment.result import Run
from fedlab.studies.plan import folder_name
from fedlab.studies.spec import SweepSpec, load_spec
from fedlab.studies.sweep import sweep
from tests.forks import Forks

BASE: dict[str, Any] = {
    "method": "supervised",
    "model": "logistic",
    "data": {"source": {"name": "shifted_digits", "train_per_class": 4, "test_size": 20}, "partition": ["domain"]},
    "federation": {"rounds": 2},
    "engine": {"name": "inline"},
    "tracking": {"console": "quiet", "tensorboard": False},
}


def spec(**raw: Any) -> SweepSpec:
    return parse(SweepSpec, {"base": BASE, **raw})


def rates(*values: float) -> dict[str, Any]:
    return {"training.lr": [*values]}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Points and seeds that really ran."""
    names: list[str] = []

    def run(config: fedlab.Config, **more: Any) -> Run:
        names.append(f"{Path(config.tracking.folder).name} {config.seed}")
        return fedlab.experiment.start.run(config, **more)

    monkeypatch.setattr(fedlab.studies.plan, "run", run)
    return names


# what is swept


def test_the_grid_is_every_combination_with_every_entry_of_the_list() -> None:
    grid = {"training.lr": [0.1, 0.01], "data.partition": {"even": [{"name": "iid", "clients": 2}]}}
    found = spec(grid=grid, list={"plain": {}, "pulled": {"federation.strategy": {"name": "fedprox", "mu": 1}}})
    assert found.axes == ("training.lr", "data.partition", "configuration")
    assert [point.name for point in found.points] == [
        "training.lr=0.1, even, plain",
        "training.lr=0.1, even, pulled",
        "training.lr=0.01, even, plain",
        "training.lr=0.01, even, pulled",
    ]
    assert found.points[3].changes == {
        "training.lr": 0.01,
        "data.partition": [{"name": "iid", "clients": 2}],
        "federation.strategy": {"name": "fedprox", "mu": 1},
    }


def test_values_on_the_command_line_are_yaml() -> None:
    over = ["federation.strategy=fedavg,{name: fedprox, mu: 0.1}", "training.lr=1e-3, 2", "training.clip_norm=null,1"]
    found = load_spec("supervised", over, [3, 4])
    assert found.grid == {
        "federation.strategy": ("fedavg", {"name": "fedprox", "mu": 0.1}),
        "training.lr": (0.001, 2),
        "training.clip_norm": (None, 1),
    }
    assert found.seeds == (3, 4)
    assert found.points[-1].name == "federation.strategy=fedprox(mu=0.1), training.lr=2, training.clip_norm=1"


def test_a_sweep_file_names_its_base_beside_itself_and_its_axes_can_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    path = tmp_path / "sweep.yaml"
    path.write_text("base: base.yaml\ngrid: {training.lr: [0.1, 0.2]}\nlist: {a: {}}\nseeds: [5]\n")
    found = load_spec(str(path), ["training.lr=7"])
    assert found.base == str(tmp_path / "base.yaml")
    assert [point.name for point in found.points] == ["training.lr=7, a"]
    assert load_spec(str(tmp_path / "base.yaml"), seeds=[0, 1]).base == str(tmp_path / "base.yaml")


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({"grid": {"training.lr": []}}, "grid.training.lr = ()\n  expected: at least one value"),
        ({"grid": {"training.lr": 3}}, "grid.training.lr"),
        ({"grid": {"training.lr": [0.1, 1e-1]}}, "0.1 is there twice"),
        (
            {"grid": {"data": ["a"], "data.partition": ["b"]}},
            "grid.data = ('a',)\n  expected: this key or data.partition, not both",
        ),
        ({"grid": {"seed": [1, 2]}}, "use seeds"),
        ({"grid": {"tracking.folder": ["a"]}}, "each run has its own"),
        ({"lisst": {}}, "did you mean 'list'?"),
        ({"list": {"a": 3}}, "list.a"),
        ({"seeds": [1, 1]}, "seeds = (1, 1)\n  expected: each seed once"),
        ({"seeds": ["x"]}, "seeds.0"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(raw: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        spec(**raw)
    assert told in str(caught.value)


@pytest.mark.parametrize("text", ["training.lr", "training.lr=", "=1", "training.lr=1,[", "training.lr=a: b: c"])
def test_values_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--over"):
        load_spec("supervised", [text])


def test_nothing_to_vary_and_a_key_given_twice_are_refused() -> None:
    with pytest.raises(InputError, match="a key to vary"):
        load_spec("supervised")
    with pytest.raises(InputError, match="each key once"):
        load_spec("supervised", ["seed=1", "seed=2"])


def test_folders_of_different_points_differ_and_lie_inside() -> None:
    names = [
        "lr=1, mu=2", "lr=1,mu=2", "lr=1,mu=2 ", "../x", ".", "a/b", "a b", "a-b", "", "x" * 300, "x" * 301, "größe=1",
        "gr=1",
    ]  # fmt: skip
    found = [folder_name(name) for name in names]
    assert len(set(found)) == len(names)
    assert found[0] == "lr=1,mu=2"
    assert all(name and not name.startswith(".") and "/" not in name and len(name) < 100 for name in found)


# before anything runs


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"training.lrr": 1}, "point wrong: training.lrr"),
        ({"federation.strategy": "fedavgg"}, "point wrong: federation.strategy.name"),
        ({"data.partition": [{"name": "iid", "clients": 10**6}]}, "point wrong: data.partition.0"),
        ({"federation.strategy": {"name": "flower.Krum", "min_available_nodes": 99}}, "point wrong: "),
        ({"training.optimizer": "adam", "federation.strategy": "scaffold"}, "point wrong: training.optimizer"),
        ({"training.lr.deep": 1}, "point wrong: training.lr"),
    ],
)
def test_what_is_wrong_with_the_last_point_is_told_before_the_first_runs(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigErrors) as caught:
        sweep(spec(list={"good": {}, "wrong": changes}, seeds=[0, 1]), tmp_path / "out")
    assert str(caught.value).startswith(told)
    assert len(caught.value.errors) == 1
    assert not (tmp_path / "out").exists()


def test_an_error_of_several_points_is_told_once() -> None:
    wrong = spec(list={"good": {}, "a": {"training.lrr": 1}, "b": {"training.lrr": 1}})
    with pytest.raises(ConfigErrors, match=r"point a and 1 more: training\.lrr") as caught:
        sweep(wrong, Path("nowhere"))
    assert len(caught.value.errors) == 1
    with pytest.raises(ConfigErrors, match=r"^modell"):
        sweep(parse(SweepSpec, {"base": {**BASE, "modell": 1}, "grid": rates(1, 2)}), Path("nowhere"))


@pytest.mark.parametrize("override", ["training.lr=3", "tracking.name=x", "tracking.folder=x", "seed=1"])
def test_a_change_that_the_sweep_would_undo_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(InputError, match="--set"):
        sweep(spec(grid=rates(1), seeds=[0]), tmp_path / "out", overrides=[override])
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, ran: list[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--folder"):
        sweep(spec(grid=rates(1), seeds=[0]), tmp_path / "file" / "out")
    assert not ran


# running


def test_all_points_run_once_and_the_tables_hold_what_the_runs_came_to(tmp_path: Path, ran: list[str]) -> None:
    told: list[str] = []
    asked = spec(grid=rates(0.001, 0.1), seeds=[0, 1])
    done = sweep(asked, tmp_path, overrides=["federation.rounds=1"], announce=told.append)
    assert ran == ["training.lr=0.001 0", "training.lr=0.1 0", "training.lr=0.001 1", "training.lr=0.1 1"]
    assert told[0] == "training.lr=0.001, seed 0 (1 of 4)"
    assert all(" left" in line for line in told[2::2])

    values = [done.batch.results["training.lr=0.1"][s].metrics for s in (0, 1)]
    table = {row["training.lr"]: row for row in rows(tmp_path / "sweep.csv")}
    means = [value["mean"]["accuracy"] for value in values]
    assert table["0.1"]["n"] == "2"
    assert float(table["0.1"]["accuracy_clients_mean"]) == pytest.approx(statistics.fmean(means))
    assert float(table["0.1"]["accuracy_clients_std"]) == pytest.approx(abs(means[0] - means[1]) / 2**0.5)
    worst = [min(client["accuracy"] for client in value["clients"].values()) for value in values]
    assert float(table["0.1"]["accuracy_worst_mean"]) == pytest.approx(statistics.fmean(worst))
    assert float(table["0.1"]["bytes_mean"]) == sum(done.batch.results["training.lr=0.1"][0].history.bytes_total())

    single = rows(tmp_path / "runs.csv")
    assert all(re.search(r"\d+ test samples", row["measured_on"]) for row in [*table.values(), *single])
    assert [(row["training.lr"], row["seed"]) for row in single] == [
        ("0.001", "0"),
        ("0.001", "1"),
        ("0.1", "0"),
        ("0.1", "1"),
    ]
    assert {row["status"] for row in single} == {"completed"}
    assert fedlab.load(single[3]["run"]).config.training.lr == 0.1

    text = (tmp_path / "sweep.md").read_text()
    assert f"| 0.1 | 2 | {100 * statistics.fmean(means):.1f} ± {100 * statistics.stdev(means):.1f} |" in text
    assert "seeds 0, 1" in text
    assert (tmp_path / "sweep-accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_finished_runs_are_not_repeated_and_more_seeds_and_values_are_added(tmp_path: Path, ran: list[str]) -> None:
    sweep(spec(grid=rates(0.1), seeds=[0]), tmp_path)
    told: list[str] = []
    done = sweep(spec(grid=rates(0.1, 0.2), seeds=[0, 1]), tmp_path, announce=told.append)
    assert ran == ["training.lr=0.1 0", "training.lr=0.2 0", "training.lr=0.1 1", "training.lr=0.2 1"]
    assert told[1].startswith("already done")
    assert [row["n"] for row in rows(done.files["sweep.csv"])] == ["2", "2"]


def test_a_run_that_crashed_or_stopped_early_is_made_again(tmp_path: Path, ran: list[str]) -> None:
    asked = spec(grid=rates(0.1), seeds=[0])
    (first,) = sweep(asked, tmp_path).batch.results["training.lr=0.1"].values()
    lines = first.folder.events.read_text().splitlines()
    first.folder.events.write_text("\n".join(lines[:-1]))  # killed before its end
    (second,) = sweep(asked, tmp_path).batch.results["training.lr=0.1"].values()
    assert second.path != first.path
    fedlab.run(second.config, until=1)  # newest, and completed as far as it was to go
    (third,) = sweep(asked, tmp_path).batch.results["training.lr=0.1"].values()
    assert third.path == second.path
    assert len(ran) == 2


SWEEP = """
import signal
import sys
from pathlib import Path
from fedlab.server.records import RunWriter
from fedlab.studies.spec import load_spec
from fedlab.studies.sweep import sweep

write = RunWriter.checkpoint

def and_wait(self, round, *rest, **options):
    # however slowly this program is watched, it is not through before it is killed
    write(self, round, *rest, **options)
    if round == 8:
        signal.pause()

RunWriter.checkpoint = and_wait
sweep(load_spec(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.programs
def test_a_run_that_was_killed_goes_on_from_its_checkpoint_with_the_same_result(
    tmp_path: Path, ran: list[str], forks: Forks
) -> None:
    changes = {"federation": {"rounds": 10}, "tracking": {**BASE["tracking"], "checkpoint_every": 2}}
    raw = {"base": {**BASE, **changes}, "grid": rates(0.1), "seeds": [0]}
    file, folder = tmp_path / "sweep.yaml", tmp_path / "swept"
    file.write_text(yaml.safe_dump(raw), encoding="utf-8")
    script = tmp_path / "program.py"
    script.write_text(SWEEP)
    program = forks.start([script, file, folder], cwd=tmp_path)
    while not list(folder.glob("runs/*/*/checkpoints/round_000004/checkpoint.json")):
        assert program.lives(), "it ended before it could be killed"
        time.sleep(0.01)
    os.killpg(program.pid, signal.SIGKILL)
    assert program.wait() == -signal.SIGKILL
    (killed,) = folder.glob("runs/*/*/config.yaml")
    told: list[str] = []
    (run,) = sweep(load_spec(str(file)), folder, announce=told.append).batch.results["training.lr=0.1"].values()
    assert (run.path, ran) == (killed.parent, [])
    assert 4 <= run.history.start["resumed"] < 10
    assert told[1].startswith("continuing after round")
    whole = fedlab.experiment.start.run(run.config, overrides=[f"tracking.folder={tmp_path / 'whole'}"])
    assert weights(run) == weights(whole)


def weights(run: Run) -> bytes:
    return (run.checkpoint / "tensors.safetensors").read_bytes()


def test_a_run_that_another_process_is_at_is_left_alone(tmp_path: Path, ran: list[str]) -> None:
    asked = spec(grid=rates(0.1), seeds=[0])
    config = asked_config(asked, tmp_path)
    begun = fedlab.experiment.start.run(config, until=1)
    with begun.folder.writing():
        told: list[str] = []
        (other,) = sweep(asked, tmp_path, announce=told.append).batch.results["training.lr=0.1"].values()
        with pytest.raises(CheckpointError, match="no other process"):
            fedlab.resume(begun.path)
    assert other.path != begun.path
    assert any(text.startswith("begun anew") for text in told)
    assert fedlab.resume(begun.path).path == begun.path


def asked_config(asked: SweepSpec, folder: Path) -> fedlab.Config:
    """The configuration of a sweep's only run."""
    raw = {**BASE, "seed": 0, "training": {"lr": 0.1}}
    place = {"folder": str(folder / "runs" / folder_name(asked.points[0].name)), "cache": str(folder / "cache")}
    return parse(fedlab.Config, {**raw, "tracking": {**BASE["tracking"], **place}})


def test_an_axis_below_engine_or_tracking_makes_runs_of_its_own(tmp_path: Path, ran: list[str]) -> None:
    sweep(spec(grid={"tracking.checkpoint_every": [1, 2]}, seeds=[0]), tmp_path)
    assert ran == ["tracking.checkpoint_every=1 0", "tracking.checkpoint_every=2 0"]


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(config: fedlab.Config, **more: Any) -> Run:
        if config.training.lr == 0.2:
            raise error
        return fedlab.experiment.start.run(config, **more)

    monkeypatch.setattr(fedlab.studies.plan, "run", run)


@pytest.mark.parametrize("error", [FedLabError("out of order\nat length"), RuntimeError("a bug")])
def test_a_run_that_fails_ends_the_sweep_but_leaves_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failing(monkeypatch, error)
    with pytest.raises(type(error)) as caught:
        sweep(spec(grid=rates(0.1, 0.2, 0.3), seeds=[0]), tmp_path)
    assert "1 of 3 runs are done and kept" in "".join(caught.value.__notes__)
    assert [row["n"] for row in rows(tmp_path / "sweep.csv")] == ["1", "0", "0"]


@pytest.mark.parametrize("error", [FedLabError("out of order\nat length"), RuntimeError("a bug")])
def test_the_others_go_on_when_they_are_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    failing(monkeypatch, error)
    done = sweep(spec(grid=rates(0.1, 0.2, 0.3), seeds=[0]), tmp_path, keep_going=True)
    assert [row["n"] for row in rows(tmp_path / "sweep.csv")] == ["1", "0", "1"]
    assert [row["status"] for row in rows(tmp_path / "runs.csv")] == ["completed", "failed", "completed"]
    assert [*done.batch.failures] == [("training.lr=0.2", 0)]
    text = done.files["sweep.md"].read_text()
    assert "training.lr=0.2, seed 0 failed" in text
    assert str(error).splitlines()[0] in text


def test_ctrl_c_leaves_tables_of_what_is_done_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt) as caught:
        sweep(spec(grid=rates(0.1, 0.2, 0.3), seeds=[0]), tmp_path, keep_going=True)
    assert "1 of 3 runs are done and kept; give the same command" in "".join(caught.value.__notes__)
    assert [row["n"] for row in rows(tmp_path / "sweep.csv")] == ["1", "0", "0"]


def test_a_metric_that_the_first_run_does_not_have_ends_the_sweep_there(tmp_path: Path, ran: list[str]) -> None:
    with pytest.raises(InputError, match="did you mean 'accuracy'"):
        sweep(spec(grid=rates(0.1, 0.2), seeds=[0]), tmp_path, metrics=["acuracy"])
    assert len(ran) == 1
    sweep(spec(grid=rates(0.1), seeds=[0]), tmp_path, metrics=["loss", "accuracy"])
    assert len(ran) == 1
    assert (tmp_path / "sweep-loss.png").is_file()


# the example


def test_the_example_compares_every_algorithm_on_both_kinds_of_heterogeneity() -> None:
    found = load_spec(str(Path(__file__).parents[2] / "examples" / "sweep_algorithms.yaml"))
    names = {point.choices[1].label.lower() for point in found.points}
    published = "fedavg fedprox fednova scaffold feddyn fedavgm fedadagrad fedadam fedyogi moon vhl"
    assert names == set(published.split())
    assert len(found.points) == 2 * len(names)
    assert len(found.seeds) == 3
