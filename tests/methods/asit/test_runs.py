"""Whole runs of ASiT: what travels in every way to keep a teacher, stages, fine-tuning."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fedlab
from fedlab.assembly import make_method
from fedlab.config import Config, parse
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources.sounds import Sounds, SoundsSettings
from fedlab.errors import ConfigError, ConfigErrors, DataError
from fedlab.methods.asit import evaluation
from fedlab.methods.asit.method import ASiT
from tests.methods.states import same, weights

Start = Callable[..., fedlab.Run]
RUN: dict[str, Any] = {
    "method": {
        "name": "asit", "rate": 8000, "view_seconds": 0.3, "bins": 16, "patch": 8, "width": 16, "depth": 2, "heads": 2,
        "hidden": 16, "bottleneck": 8, "reconstruction_width": 8, "class_prototypes": 12, "patch_prototypes": 8,
        "momentum": 0.9, "epochs": 6, "warmup_epochs": 1, "temperature_epochs": 2,
    },
    "data": {
        "source": {"name": "sounds", "train": 48, "test": 24, "probe": 24, "seconds": 0.5},
        "partition": [{"name": "iid", "clients": 2}],
    },
    "training": {
        "optimizer": "adamw", "lr": 0.002, "batch_size": 8, "local_steps": 2, "clip": "tensor", "clip_norm": 3.0
    },
    "federation": {"rounds": 3},
    "evaluation": {"every": 3},
    "engine": {"name": "inline", "device": "cpu"},
}  # fmt: skip


@pytest.fixture(scope="module")
def asit(runner: Callable[..., Start]) -> Start:
    return runner("asit", RUN)


@pytest.fixture(scope="module")
def reference(asit: Start) -> fedlab.Run:
    return asit()


@pytest.fixture(scope="module")
def local(asit: Start) -> fedlab.Run:
    """Teachers are the clients' own."""
    return asit("method.teacher_sync=local")


def nbytes(run: fedlab.Run, prefix: str) -> int:
    return sum(v.numel() * v.element_size() for v in weights(run, prefix).values())


def results_sent(run: fedlab.Run) -> list[int]:
    """Bytes both clients send beside the weights, beforehand and in each of the three rounds."""
    sent = [0] * 4
    with (run.path / "ledger.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            sent[int(row["round"])] += int(row["up"]) if row["group"] == "results" else 0
    return sent


# what travels (§6)


def test_student_teacher_and_centers_travel_both_ways_every_round(reference: fedlab.Run) -> None:
    expected = {role: 2 * nbytes(reference, f"{role}.") for role in ("student", "teacher", "centers")}
    assert expected["centers"] == 2 * 4 * (12 + 8)
    for round in reference.history.rounds:
        for role, size in expected.items():
            assert round["bytes"][role] == {"down": size, "up": size}
    statistics = [round["bytes"].get("statistics") for round in reference.history.rounds]
    assert statistics == [{"down": 2 * 8, "up": 0}, None, None]  # mean and std, once
    assert results_sent(reference) == [2 * 3 * 8, 0, 0, 0]  # three sums, beforehand
    # a teacher's reconstruction head would be dead weight
    assert not any("reconstruction" in name for name in weights(reference, "teacher."))


def test_three_sums_are_all_a_client_sends_beforehand(reference: fedlab.Run) -> None:
    (prepared,) = [event for event in reference.history.events if event["event"] == "prepared"]
    assert prepared["bytes_up"] == 2 * 3 * 8
    normalizer = weights(reference, "normalizer.")
    assert -8 < float(normalizer["network/normalizer.mean"]) < 0
    assert 1 < float(normalizer["network/normalizer.std"]) < 8


@pytest.mark.parametrize(
    ("sync", "down", "up"), [("server_ema", True, False), ("reset", False, False), ("local", False, False)]
)
def test_other_ways_to_keep_a_teacher(
    asit: Start, reference: fedlab.Run, local: fedlab.Run, sync: str, down: bool, up: bool
) -> None:
    done = local if sync == "local" else asit(f"method.teacher_sync={sync}")
    size = 2 * nbytes(done, "teacher.")
    for round in done.history.rounds:
        sent = round["bytes"].get("teacher", {"down": 0, "up": 0})
        assert sent == {"down": down * size, "up": up * size}
        assert ("centers" in round["bytes"]) == (sync != "local")
    # how often the student was moved, which a server that moves the teacher must know
    assert results_sent(done)[1:] == [0 if sync == "reset" else 2 * 4] * 3
    student = weights(done, "student.")
    equal = all(
        torch.equal(value, student[name.replace("teacher", "student")])
        for name, value in weights(done, "teacher.").items()
    )
    assert equal == (sync == "reset")
    assert not same(weights(done, "teacher."), weights(reference, "teacher."))
    assert done.metrics["server"].keys() == reference.metrics["server"].keys()


def test_a_local_teacher_is_each_clients_own(local: fedlab.Run) -> None:
    states = client_states(local)
    assert len({float(state["network/teacher.backbone.class_token"].sum()) for state in states}) == 2
    assert len({float(state["network/centers.classes.value"].sum()) for state in states}) == 2


def client_states(run: fedlab.Run) -> list[dict[str, Tensor]]:
    """What each client kept last, read from its disk."""
    states = [latest_state(run, client) for client in range(2)]
    assert all(states)
    return states


def latest_state(run: fedlab.Run, client: int) -> dict[str, Tensor]:
    from fedlab.clients.state import StateStore

    return dict(StateStore(run.path / "clients").latest(client) or {})


def test_local_and_fixed_statistics_do_not_travel(asit: Start, reference: fedlab.Run) -> None:
    local, fixed = asit("method.statistics=local"), asit("method.statistics=fixed", "method.mean=-4", "method.std=3")
    for done in (local, fixed):
        assert not any("statistics" in round["bytes"] for round in done.history.rounds)
    assert float(weights(fixed, "normalizer.")["network/normalizer.mean"]) == -4
    means = {float(state["network/normalizer.mean"]) for state in client_states(local)}
    assert len(means) == 2  # each client's own
    assert not same(weights(local, "student."), weights(reference, "student."))


# other data


def test_clients_with_fewer_clips_than_a_batch_still_train(asit: Start) -> None:
    done = asit("training.batch_size=64", "federation.rounds=1", "evaluation.every=1")
    assert done.history.rounds[0]["train"]["l_rec"] > 0


def test_devices_and_speakers_divide_the_data(asit: Start) -> None:
    done = asit(
        "data.partition=[{name: domain}, {name: natural}]", "data.source.speakers=2", "data.source.devices=2",
        "federation.rounds=1", "evaluation.every=1",
    )  # fmt: skip
    names = {f"device-{device}-speaker-{speaker}" for device in range(2) for speaker in range(2)}
    assert set(done.metrics["clients"]) == names


# evaluation and pictures


def test_what_is_measured(reference: fedlab.Run) -> None:
    assert set(reference.metrics["mean"]) == {"masked_l1", "mean_abs", "masked_l1_ratio"}
    server = reference.metrics["server"]
    probes = {f"{kind}{token}_accuracy" for kind in ("probe", "knn") for token in ("", "_class_token")}
    alarms = {
        f"{name}_{kind}"
        for name in ("target_entropy", "marginal_entropy", "center_norm")
        for kind in ("classes", "patches")
    }
    assert set(server) == probes | alarms | {
        "collapse_alarm", "start_probe_accuracy", "raw_probe_accuracy", "probe_gain"
    }  # fmt: skip
    assert server["probe_gain"] == pytest.approx(server["probe_accuracy"] - server["start_probe_accuracy"])
    assert {p.name for p in reference.folder.figures.glob("*.png")} == {f"repairs-000{r}.png" for r in (0, 1, 3)}


def sounds() -> Dataset:
    return Sounds(SoundsSettings(train=24, test=16, probe=16, seconds=0.5)).load(0)


def with_tags(samples: Samples) -> Samples:
    """Every clip has its class and the next one."""
    columns = dict(samples.columns)
    tags = np.eye(8, dtype=np.uint8)[columns.pop("label")]
    return replace(samples, columns={**columns, "tags": tags | np.roll(tags, 1, axis=1)})


def test_without_a_probe_set_there_are_no_probes(asit: Start) -> None:
    full = sounds()
    done = asit("federation.rounds=1", "evaluation.every=1", data=Dataset("bare", full.train, full.test))
    assert done.metrics.get("server", {}) == {}
    assert done.metrics["mean"]["masked_l1"] > 0


# fine-tuning (§3.6)

TUNE = ("method.finetune_rounds=2", "method.finetune_seconds=0.5", "federation.rounds=3", "evaluation.every=3")


@pytest.fixture(scope="module")
def tuned(asit: Start) -> fedlab.Run:
    return asit(*TUNE, "method.finetune_mixup=0.5", "method.finetune_masks=[4, 8]")


def test_the_last_rounds_train_a_tagger_alone(tuned: fedlab.Run) -> None:
    first, *rest = tuned.history.rounds
    assert "l_rec" in first["train"]
    assert "tagger" not in first["bytes"]
    size = 2 * nbytes(tuned, "tagger.")
    for round in rest:
        assert "ce" in round["train"]
        assert {group: sent for group, sent in round["bytes"].items() if sent["up"]} == {
            "tagger": {"down": size, "up": size}
        }
    assert "accuracy" in tuned.metrics["mean"]
    assert 0 <= tuned.metrics["server"]["finetune_accuracy"] <= 1


def test_clips_with_several_labels_are_scored_by_mean_average_precision(asit: Start) -> None:
    full = sounds()
    train, test, probe = map(with_tags, (full.train, full.test, full.server["probe"]))
    data = Dataset("tags", train, test, {"probe": probe, "test": test})
    done = asit(*TUNE, "method.finetune_training={lr: 0.05}", data=data)
    assert "bce" in done.history.rounds[-1]["train"]
    assert set(done.metrics["pooled"]) == {"map"}
    assert 0 < done.metrics["pooled"]["map"] <= 1
    assert 0 < done.metrics["server"]["finetune_map"] <= 1
    with pytest.raises(ConfigError, match=r"method\.finetune_loss"):
        asit(*TUNE, "method.finetune_loss=ce", data=data)


def test_labels_are_needed_to_fine_tune_and_not_before(asit: Start) -> None:
    full = sounds()
    bare = [replace(s, columns={n: v for n, v in s.columns.items() if n != "label"}) for s in (full.train, full.test)]
    data = Dataset("bare", *bare)
    assert asit("federation.rounds=1", data=data).metrics["mean"]["masked_l1"] > 0
    with pytest.raises(DataError, match="no labels"):
        asit(*TUNE, data=data)


def test_the_tagger_starts_from_the_teacher(asit: Start) -> None:
    done = asit(*TUNE, until=1)
    teacher, tagger = (weights(done, f"{role}.backbone.") for role in ("teacher", "tagger"))
    assert same({n.replace("teacher", "tagger"): v for n, v in teacher.items()}, tagger)


def test_a_finished_run_can_be_fine_tuned(asit: Start, reference: fedlab.Run) -> None:
    start = f"init.teacher={reference.path}#teacher"
    done = asit("method.finetune_rounds=1", "federation.rounds=1", "evaluation.every=1", start)
    assert same(weights(done, "teacher."), weights(reference, "teacher."))
    assert not same(
        {n.replace("tagger", "teacher"): v for n, v in weights(done, "tagger.backbone.").items()},
        weights(reference, "teacher.backbone."),
    )


@pytest.fixture(scope="module")
def averaged(asit: Start) -> fedlab.Run:
    return asit(*TUNE, "method.finetune_average=2")


@pytest.mark.slow
def test_late_weights_are_averaged(asit: Start, averaged: fedlab.Run) -> None:
    plain = asit(*TUNE, until=2), asit(*TUNE)
    first, second, mean = (weights(run, "tagger.") for run in (*plain, averaged))
    for name, value in mean.items():
        torch.testing.assert_close(value, (first[name] + second[name]) / 2)


@pytest.mark.slow
def test_speaker_identification_pools_over_tokens_and_projects(asit: Start) -> None:
    done = asit(*TUNE, "method.finetune_pool=mean", "method.finetune_projector=6", "method.finetune_loss=bce")
    shapes = {n.removeprefix("network/tagger.head."): tuple(v.shape) for n, v in weights(done, "tagger.head.").items()}
    assert shapes == {"0.weight": (6, 16), "0.bias": (6,), "1.weight": (8, 6), "1.bias": (8,)}
    assert "bce" in done.history.rounds[-1]["train"]


@pytest.mark.slow
def test_a_resumed_fine_tuning_is_the_fine_tuning(asit: Start, averaged: fedlab.Run) -> None:
    resumed = fedlab.resume(asit(*TUNE, "method.finetune_average=2", until=2).path)
    assert same(weights(resumed), weights(averaged))


# settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, r"method\.heads"),
        ({"bins": 12}, r"method\.bins"),
        ({"view_seconds": 0.06}, r"method\.view_seconds"),
        ({"rate": 16_000}, r"method\.rate"),
        ({"finetune_rounds": 4}, r"method\.finetune_rounds"),
        ({"finetune_average": 1}, r"method\.finetune_average"),
        ({"finetune_training": {"lr": -1}}, r"method\.finetune_training\.lr"),
        ({"teacher_sync": "global"}, r"method\.teacher_sync"),
    ],
)
def test_impossible_settings_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    config = parse(Config, {**RUN, "method": {**RUN["method"], **change}})
    with pytest.raises((ConfigError, ConfigErrors), match=message):
        make_method(config.method).check(config)


@pytest.mark.parametrize(
    ("section", "change", "warning"),
    [
        ("training", {"batch_size": 8}, "16 or more"),
        ("training", {"optimizer": "sgd"}, "adamw"),
        ("training", {"clip_norm": None}, "clip_norm"),
        ("training", {"local_steps": 2}, "the teacher hardly moves"),
    ],
)
def test_doubtful_settings_are_warned_about(section: str, change: dict[str, Any], warning: str) -> None:
    fine = {**RUN, "training": {**RUN["training"], "batch_size": 32, "local_steps": 100}}
    plain, doubtful = parse(Config, fine), parse(Config, {**fine, section: {**fine[section], **change}})
    assert make_method(plain.method).check(plain) == []
    (text,) = make_method(doubtful.method).check(doubtful)
    assert warning in text


def test_pictures_cannot_be_trained_on(asit: Start) -> None:
    with pytest.raises(DataError, match="audio"):
        asit("data.source={name: digits}")


def test_collapse_reaches_the_runs_alarms(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server finds in its evaluation; the threshold itself has a test of its own."""
    for alarm, told in ((1.0, [evaluation.COLLAPSE]), (0.0, [])):
        monkeypatch.setattr(evaluation, "collapse", lambda ctx, s, alarm=alarm: {"collapse_alarm": alarm})
        heard: list[str] = []
        ctx: Any = SimpleNamespace(data={"test": {}}, plan={"stage": "pretrain"}, alarm=heard.append)
        assert ASiT().server_evaluate(ctx) == {"collapse_alarm": alarm}
        assert heard == told
