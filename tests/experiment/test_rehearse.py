"""Rehearsals: what is estimated, measured and extrapolated, and what happens when memory does not suffice."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import fedlab.experiment.rehearse as rehearsing
from fedlab.config import Config, TrainingConfig
from fedlab.errors import ConfigError, DataError, FedLabError
from fedlab.experiment.configuration import configure
from fedlab.experiment.extrapolation import Size, extrapolated
from fedlab.experiment.footprint import Footprint
from fedlab.experiment.measuring import StageCost
from fedlab.experiment.rehearse import Reality, rehearse, trial
from fedlab.experiment.stand_ins import random_weights, without_missing_weights

WEIGHTS = 16 * 16 * 3 * 10 + 10  # of logistic regression on the shifted digits
TINY: dict[str, Any] = {
    "method": "supervised",
    "model": {"name": "logistic"},
    "data": {
        "source": {"name": "shifted_digits", "train_per_class": 4, "test_size": 20},
        "partition": [{"name": "domain"}],
    },
    "training": {"batch_size": 8, "local_epochs": 2},
    "federation": {"rounds": 6, "sampler": {"name": "uniform", "fraction": 0.5}},
    "evaluation": {"every": 4},
    "engine": {"name": "ray", "workers": 2},
}


def config(**changes: Any) -> Config:
    return configure(TINY, [f"{key.replace('__', '.')}={value}" for key, value in changes.items()])


def tried(limit: int | None = None, free: int | None = 10**12, reality: Reality | None = None, **changes: Any) -> Any:
    return trial(config(**changes), reality or Reality(), limit, free)


# what is measured


def test_a_rehearsal_measures_every_part_and_keeps_its_figures_apart() -> None:
    messages: list[tuple[str, Any]] = []
    report = trial(config(), Reality(), None, 10**12, messages.append)
    size = 4 * WEIGHTS
    assert (report["status"], report["replaced"], report["not_counted"]) == ("rehearsed", [], [])
    clients = report["clients"]
    assert (report["cohort"], report["rounds"], report["workers"]) == (clients // 2, 6, 2)
    assert report["estimated"]["parameters"] == {"model": WEIGHTS}
    assert report["estimated"]["weights"] == report["estimated"]["gradients"] == size
    (stage,) = report["measured"]["stages"]
    assert (stage["down"], stage["once"], stage["up"], stage["own_loop"]) == (size, 0, size, False)
    assert 0 <= stage["idle"] <= stage["step"]
    assert stage["aggregate"] > 0
    assert stage["evaluate"] > 0
    found = report["extrapolated"]
    # 40 samples of each client in batches of 8, twice
    assert list(found["steps"]) == [10]
    assert found["bytes_down"] == found["bytes_up"] == size * 6 * report["cohort"]
    assert found["samples"] == 40 * clients
    # every fourth of six rounds and the last one, on two workers, 20 samples of each client
    assert found["evaluation_seconds"] == pytest.approx(stage["evaluate"] * clients * 2 / 2)
    for who in ("worker", "server"):
        assert report["measured"][who]["bytes"] > 50e6
    assert found["memory"] == 2 * report["measured"]["worker"]["bytes"] + report["measured"]["server"]["bytes"]
    phases = [value for kind, value in messages if kind == "phase"]
    assert phases[:2] == ["data", "estimate"]
    assert {"worker: train, round 1", "server: aggregate, round 1", "worker: evaluate, round 1"} <= set(phases)
    assert [value["estimated"] for kind, value in messages if kind == "estimate"] == [report["estimated"]]


def test_what_an_algorithm_sends_beside_the_weights_is_counted() -> None:
    (stage,) = tried(federation__strategy="scaffold")["measured"]["stages"]
    assert stage["down"] == 2 * 4 * WEIGHTS
    assert stage["up"] == 2 * 4 * WEIGHTS


def test_compressed_uploads_are_counted_as_they_are_sent() -> None:
    (stage,) = tried(exchange__compression="[{name: topk, fraction: 0.1}]")["measured"]["stages"]
    assert 0 < stage["up"] < 0.3 * 4 * WEIGHTS


def test_a_strategy_of_flower_is_not_averaged_and_that_is_said() -> None:
    report = tried(federation__strategy="flower.FedMedian")
    assert report["measured"]["stages"][0]["aggregate"] is None
    assert any("not FedLab's own" in text for text in report["not_counted"])


def test_an_inline_run_is_one_process() -> None:
    report = tried(engine="{name: inline}")
    measured = report["measured"]
    assert report["workers"] == 1
    assert report["extrapolated"]["memory"] == max(measured[who]["bytes"] for who in ("worker", "server"))


def test_steps_on_synthetic_samples_do_not_depend_on_the_number_of_samples() -> None:
    overrides = [
        "data.source={name: shifted_digits, train_per_class: 4, test_size: 20}", "model={name: convnet, width: 4}",
        "training.batch_size=10", "method.ipc_local=2", "method.ipc_global=1", "federation.rounds=2",
        "method.updates=1", "engine={name: inline}",
    ]  # fmt: skip
    report = trial(configure("fedlgd", overrides), Reality(), None, None)
    stages = report["measured"]["stages"]
    assert all(stage["own_loop"] for stage in stages)
    # 20 own and 10 global virtual images in batches of 10
    assert {stage["other_steps"] for stage in stages} == set(report["extrapolated"]["steps"]) == {3}
    assert any("replaces the loop of steps" in text for text in report["not_counted"])
    # ten global images, with their classes, are sent beside the weights
    assert all(stage["once"] >= 10 * 3 * 16 * 16 * 4 for stage in stages)


# what is not here


def test_missing_data_is_replaced_and_its_size_is_only_believed_if_it_is_said() -> None:
    away = {"data__source": "{name: hub, path: nobody/nothing, size: 12, channels: 1}", "data__partition": "[iid]"}
    report = tried(**{**away, "data__partition": "[{name: iid, clients: 4}]"})
    assert "nobody/nothing" in report["replaced"][0]
    assert report["estimated"]["parameters"] == {"model": 12 * 12 * 10 + 10}
    assert report["extrapolated"]["run_seconds"] is None
    assert report["extrapolated"]["samples"] is None
    assert len(report["not_counted"]) == 2
    told = Reality(samples=800, tests=100, classes=7)
    report = tried(reality=told, **{**away, "data__partition": "[{name: iid, clients: 4}]"})
    assert report["estimated"]["parameters"] == {"model": 12 * 12 * 7 + 7}
    assert list(report["extrapolated"]["steps"]) == [2 * 25]  # 200 of each client in batches of 8, twice
    assert report["extrapolated"]["evaluation_seconds"] > 0
    assert report["not_counted"] == []


def test_a_small_draw_grows_until_a_client_can_fill_a_batch() -> None:
    source = "{name: hub, path: nobody/nothing, size: 4, channels: 1}"
    report = tried(data__source=source, data__partition="[{name: iid, clients: 40}]")
    drawn = int(report["replaced"][0].rpartition("): ")[2].split(" ")[0].replace(",", ""))
    assert drawn >= 40 * 8
    assert report["clients"] == 40


def test_data_that_nothing_describes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="npz has no stand_in") as caught:
        tried(data__source=f"{{name: npz, path: {tmp_path}/none.npz}}", data__partition="[{name: iid, clients: 2}]")
    assert "--set data.source" in caught.value.fix


def test_initial_weights_that_are_not_here_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "here.safetensors").touch()
    init = {
        "model": f"{tmp_path}/gone.safetensors",
        "other": f"{tmp_path}/here.safetensors",
        "third": "runs/none#model",
    }
    kept, told = without_missing_weights(config().model_copy(update={"init": init}))
    assert list(kept.init) == ["other"]
    assert [text.split(" (")[0] for text in told] == ["weights of model", "weights of third"]


def test_published_weights_that_are_not_here_are_random_ones_of_the_same_size(tmp_path: Path) -> None:
    from transformers import AutoModel, PreTrainedModel, ViTConfig, ViTModel

    vit = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16)
    names_one = configure("pat", ["method.pretrained=nobody/vit"])
    before = PreTrainedModel.__dict__["from_pretrained"]
    with random_weights(names_one) as replaced:
        model, loading = ViTModel.from_pretrained(
            "nobody/vit", config=vit, add_pooling_layer=False, output_loading_info=True
        )
        with torch.device("meta"):
            empty = ViTModel.from_pretrained("nobody/vit", config=vit)
        ViTModel(vit).save_pretrained(tmp_path / "mine")
        here = ViTModel.from_pretrained(str(tmp_path / "mine"))
        described = AutoModel.from_pretrained("facebook/dino-vitb8", dtype=torch.float32)
        sizes = [ViTConfig.from_pretrained(name).hidden_size for name in ("nobody/vit", str(tmp_path / "mine"))]
        (tmp_path / "broken").mkdir()
        with pytest.raises(OSError, match="broken"):
            ViTModel.from_pretrained(str(tmp_path / "broken"))
    assert replaced == [f"weights {name}: random ones of a ViTModel" for name in ("nobody/vit", "facebook/dino-vitb8")]
    assert described.config.patch_size == 8
    assert model.pooler is None
    assert loading["missing_keys"] == []
    assert empty.embeddings.cls_token.device.type == "meta"
    assert here.config.hidden_size == 8
    assert sizes == [ViTConfig().hidden_size, 8], "a description alone is replaced, too"
    assert PreTrainedModel.__dict__["from_pretrained"] is before
    with random_weights(config()) as replaced:  # nothing names a checkpoint
        assert PreTrainedModel.__dict__["from_pretrained"] is before
    assert replaced == []


# memory


def test_the_least_memory_is_the_sum_of_what_a_process_must_hold() -> None:
    sizes = Footprint({"model": 1}, weights=100, gradients=40, optimizer=80, down=30, up=20, process=1000)
    assert sizes.worker == 1000 + 100 + 30 + 40 + 80
    assert sizes.server == 1000 + 100 + 30 + 20 + 2 * 20
    assert sizes.rehearsal == sizes.worker + 30 + 20
    assert sizes.of_run(3, inline=False) == 3 * sizes.worker + sizes.server
    assert sizes.of_run(3, inline=True) == sizes.rehearsal


@pytest.mark.parametrize(
    ("training", "moments"),
    [({}, 0), ({"momentum": 0.9}, 1), ({"optimizer": "adam"}, 2), ({"optimizer": "adamw", "momentum": 0.9}, 2)],
)
def test_the_moments_are_those_of_the_optimizer(training: dict[str, Any], moments: int) -> None:
    changes = {f"training__{key}": value for key, value in training.items()}
    estimated = tried(limit=1, **changes)["estimated"]
    assert estimated["optimizer"] == moments * 4 * WEIGHTS


def test_a_teacher_takes_memory_but_no_gradients() -> None:
    overrides = ["method.width=12", "method.hidden=16", "engine={name: inline}"]
    estimated = trial(configure("dcglr", overrides), Reality(), 1, None)["estimated"]
    student = estimated["parameters"]["student"]
    assert estimated["parameters"]["teacher"] == student
    assert estimated["gradients"] == 4 * student
    assert estimated["weights"] >= 8 * student


def test_what_is_too_large_is_found_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []
    monkeypatch.setattr(rehearsing, "preflight", lambda *arguments: built.append(arguments))
    report = tried(limit=50_000_000, free=60_000_000)
    assert (report["status"], report["limit"]) == ("too large", 50_000_000)
    assert report["estimated"]["rehearsal"] > 50_000_000
    assert report["estimated"]["free"] == 60_000_000
    assert not built
    assert "measured" not in report


def test_a_network_of_a_trillion_parameters_is_only_estimated() -> None:
    report = tried(limit=10**10, model="{name: convnet, width: 400000}")
    assert report["status"] == "too large"
    assert sum(report["estimated"]["parameters"].values()) > 10**12
    assert report["estimated"]["worker"] > 8 * 10**12


def test_a_rehearsal_in_its_own_process_tells_the_same_as_one_in_this() -> None:
    phases: list[str] = []
    report = rehearse(config(), tell=phases.append)
    here = tried()
    assert report["status"] == "rehearsed"
    assert report["estimated"]["parameters"] == here["estimated"]["parameters"]
    assert report["extrapolated"]["bytes_up"] == here["extrapolated"]["bytes_up"]
    assert "worker: train, round 1" in phases


def test_a_rehearsal_that_takes_too_much_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsing, "resident_bytes", lambda pid: 10**11)
    report = rehearse(config(), limit=10**10)
    assert (report["status"], report["taken"], report["limit"], report["phase"]) == ("stopped", 10**11, 10**10, "start")


def test_what_is_wrong_is_raised_by_the_process_that_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FedLabError) as caught:
        rehearse(config().model_copy(update={"init": {"nobody": str(Path(__file__))}}))
    assert isinstance(caught.value, ConfigError)
    assert caught.value.key == "init.nobody"


@pytest.mark.programs
def test_a_rehearsal_does_not_outlive_who_asked_for_it(tmp_path: Path) -> None:
    program = tmp_path / "ask.py"
    program.write_text(
        "import multiprocessing, os\n"
        "from fedlab.experiment.configuration import configure\n"
        "from fedlab.experiment.rehearse import rehearse\n\n\n"
        "def told(phase):\n"
        "    print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n\n\n"
        "if __name__ == '__main__':\n"
        "    rehearse(configure('supervised'), tell=told)\n"
    )
    ended = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == -9, ended.stderr
    child = int(ended.stdout)
    for _ in range(600):
        if not is_running(child):
            return
        time.sleep(0.1)
    pytest.fail(f"process {child} is still there")


def is_running(pid: int) -> bool:
    """Whether a process does work; one that nobody has waited for does none."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


# what is extrapolated

COST = StageCost(1, step=3.0, idle=1.0, aggregate=0.5, update=4.0, evaluate=2.0, down=10, once=7, up=5)
SIZE = Size(
    rounds=[3], training=[TrainingConfig(batch_size=10, local_epochs=2)], cohort=5, workers=2, examples=25.0,
    tests=40, tested=8, evaluations=2,
)  # fmt: skip


def test_a_run_is_clients_times_steps_times_rounds_by_workers() -> None:
    found = extrapolated([COST], SIZE)
    assert found.steps == (6,)  # three batches of 25 samples, twice
    waves = 3  # of five clients on two workers
    a_round = waves * (1.0 + 6 * (3.0 - 1.0)) + 4.0 + waves * 0.5
    assert found.round == (a_round,)
    assert found.training == pytest.approx(3 * a_round)
    assert found.evaluation == pytest.approx(2.0 / 8 * 40 * 2 / 2)
    assert found.run == pytest.approx(3 * a_round + 10.0)
    assert (found.down, found.up) == (10 * 3 * 5 + 7 * 5, 5 * 3 * 5)
    assert found.missing == ()


def test_stages_add_up() -> None:
    other = replace(COST, round=4, step=2.0, down=1, once=0, up=2)
    size = replace(SIZE, rounds=[3, 4], training=[*SIZE.training, TrainingConfig(local_steps=1)])
    found = extrapolated([COST, other], size)
    assert found.steps == (6, 1)
    first, second = found.round
    assert first is not None
    assert second == 3 * (1.0 + 1.0) + 4.0 + 1.5
    assert found.training == 3 * first + 4 * second
    assert (found.down, found.up) == (5 * (3 * 10 + 4 * 1 + 7), 5 * (3 * 5 + 4 * 2))


def test_what_is_not_known_is_not_guessed() -> None:
    found = extrapolated([replace(COST, aggregate=None, own_loop=True)], replace(SIZE, examples=None, tests=None))
    assert (found.steps, found.round, found.run, found.evaluation) == ((None,), (None,), None, None)
    assert len(found.missing) == 4
    known = extrapolated([replace(COST, other_steps=9)], replace(SIZE, examples=None))
    assert known.steps == (9,)
    assert known.run is not None


def test_numbers_are_plain_for_json() -> None:
    report = tried()
    assert isinstance(report["measured"]["stages"][0], dict)
    assert not any(isinstance(value, np.generic) for value in report["extrapolated"].values())
    assert SimpleNamespace(**report).status == "rehearsed"
