"""Small federations with FSFM: stages, what travels, what is measured, the clean threshold, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import fedlab
from fedlab.assembly import make_method
from fedlab.config import Config, parse
from fedlab.errors import ConfigError, ConfigErrors, DataError
from fedlab.methods.fsfm import finetuning
from fedlab.methods.fsfm.evaluation import check_videos, labeled, pretraining, restored, restored_values, video_scores
from fedlab.methods.fsfm.settings import FSFMSettings, check_columns
from fedlab.metrics.verification import Verification
from tests.methods.fsfm.conftest import SMALL, Lab
from tests.methods.states import weights

Start = Callable[..., fedlab.Run]
Make = Callable[..., Lab]


@pytest.fixture(scope="module")
def fsfm(runner: Callable[..., Start]) -> Start:
    return runner("fsfm", SMALL)


@pytest.fixture(scope="module")
def reference(fsfm: Start) -> fedlab.Run:
    return fsfm()


def sent(run: fedlab.Run, round: int) -> set[str]:
    return {name for name, size in run.history.rounds[round - 1]["bytes"].items() if size["up"] or size["down"]}


# what travels in which stage (§6)


def test_each_stage_sends_what_it_trains(reference: fedlab.Run) -> None:
    trained = {"encoder", "rep_decoder", "pixel_decoder", "projector", "predictor", "mask_token", "target"}
    assert sent(reference, 1) - {"results", "shared"} == trained | {"statistics"}
    assert sent(reference, 2) - {"results", "shared"} == {"classifier", "threshold"}
    last = reference.history.rounds[2]["bytes"]
    assert last["classifier"]["up"] == 0 < last["classifier"]["down"]
    assert last["results"]["up"] > 0


def test_a_masked_autoencoder_has_no_target_to_send(fsfm: Start) -> None:
    run = fsfm("method.similarity_weight=0", "method.masking=random", "method.region_weight=0", until=1)
    assert sent(run, 1) - {"results"} == {"encoder", "pixel_decoder", "mask_token", "statistics"}
    assert set(run.history.rounds[0]["train"]) >= {"l_m"}
    assert "l_sim" not in run.history.rounds[0]["train"]


@pytest.mark.parametrize("sync", ["local", "reset"])
def test_other_ways_to_keep_the_target(fsfm: Start, sync: str) -> None:
    assert "target" not in sent(fsfm(f"method.teacher_sync={sync}", until=1), 1)


def test_a_linear_probe_sends_the_encoder_once(fsfm: Start) -> None:
    run = fsfm("method.finetune.train=head", "method.finetune.rounds=2", "federation.rounds=4", "evaluation.every=4")
    sizes = [run.history.rounds[round]["bytes"].get("probed encoder", {"down": 0, "up": 0}) for round in (1, 2)]
    assert [size["down"] > 0 for size in sizes] == [True, False]
    student, tuned = weights(run, "student.encoder."), weights(run, "classifier.encoder.")
    assert tuned
    for name, value in tuned.items():
        assert torch.equal(value, student[name.replace("classifier", "student")])


def test_without_pre_training_the_classifier_learns_from_scratch(fsfm: Start, reference: fedlab.Run) -> None:
    run = fsfm("federation.rounds=2", "method.finetune.choose=last", "method.finetune.rounds=2", "evaluation.every=2")
    assert sent(run, 1) - {"results"} == {"classifier", "threshold", "statistics"}
    assert "auroc" in run.metrics["pooled"]


# what is measured (§7)


def test_regions_and_views_first_then_real_against_fake(reference: fedlab.Run) -> None:
    first, last = reference.history.evaluations[0], reference.history.evaluations[-1]
    mechanism = {"region_mse", "eyes_mse", "nose_mse", "mouth_mse", "rest_mse", "view_cosine"}
    assert set(first["pooled"]) == set(first["server"]) == mechanism
    told = {"auroc", "eer", "hter_at_test_eer", "tpr_at_fpr1", "accuracy", "balanced_accuracy"}
    assert set(reference.history.evaluations[1]["unseen"]) == told | {f"frame_{name}" for name in told}
    assert set(last["unseen"]) == {"hter", "frame_hter"} | told | {f"frame_{name}" for name in told}
    assert set(last["server"]) == mechanism
    assert last["unseen_clients"] == ["place 3"]
    assert {p.name for p in reference.folder.figures.glob("*.png")} >= {"restored-0000.png", "restored-0003.png"}


def test_the_chosen_model_and_threshold_come_from_validation_samples_of_clients_that_train(
    reference: fedlab.Run,
) -> None:
    rounds = reference.history.rounds
    losses = {event["round"] - 1: event["server"]["validation_loss"] for event in rounds[1:]}
    assert rounds[-1]["server"]["chosen_round"] == min(losses, key=lambda round: losses[round])
    threshold = weights(reference, "operating_point.threshold")["network/operating_point.threshold"]
    assert threshold.dtype == torch.float64
    assert float(threshold) == pytest.approx(round(float(threshold) * 10_000) / 10_000, abs=1e-15)


def test_the_best_model_takes_the_place_of_the_last(lab: Make) -> None:
    """Three rounds whose models have validation losses 3, 1 and 2: the second one counts, with its threshold."""
    small = lab()
    classifier: Any = small.networks["classifier"]

    logged: dict[str, float] = {}
    ctx: Any = SimpleNamespace(private={}, networks=small.networks, log=logged.__setitem__)
    for number, (loss, cut, stage) in enumerate(((3.0, 0.2, "finetune"), (1.0, 0.6, "finetune"), (2.0, 0.9, "choose"))):
        metric = Verification()
        metric.update(np.array([cut - 0.1, cut]), np.array([0, 1]))
        ctx.results = {
            client: {
                "validation": torch.from_numpy(metric.state()["bins"]),
                "validation_loss": torch.tensor([4 * loss, 4.0], dtype=torch.float64),
            }
            for client in range(2)
        }
        ctx.round, ctx.plan = number + 1, {"stage": stage}
        ctx.before = {f"classifier.{n}": torch.full_like(v, number) for n, v in classifier.state_dict().items()}
        finetuning.choose(ctx)
    assert logged["chosen_round"] == 1
    assert all((value == 1).all() for value in classifier.state_dict().values())
    point: Any = small.networks["operating_point"]
    assert point.chosen == 0.6


def test_scores_are_means_of_a_video_s_frames() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    columns = {"label": torch.tensor([1, 1, 0]), "group": torch.tensor([4, 4, 2])}
    scores, labels = video_scores(logits, columns)
    assert labels.tolist() == [0, 1]
    p = logits.double().softmax(1)[:, 1]
    assert scores.tolist() == pytest.approx([float(p[2]), float(p[:2].mean())])
    assert len(video_scores(logits, {"label": columns["label"]})[0]) == 3


def test_a_perfect_restoration_has_no_error_and_a_blank_one_that_of_standardized_pixels(
    lab: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = lab()
    batch = {"image": small.batch()["image"], "regions": torch.zeros(4, 32, 32, dtype=torch.long)}
    batch["regions"][:, 8:24, 8:24] = torch.tensor([4, 6, 7, 9])[:, None].repeat(1, 4).flatten()[None, :, None]
    student: Any = small.networks["student"]
    for p in (student.pixel_decoder.out.weight, student.pixel_decoder.out.bias):
        torch.nn.init.zeros_(p)
    with torch.no_grad():
        values = restored_values(restored(small.method.settings, small.networks, [batch], torch.Generator()))
    assert values["region_mse"] == pytest.approx(191 / 192, abs=1e-3)
    assert values["rest_mse"] == pytest.approx(191 / 192, abs=1e-3)
    assert -1 <= values["view_cosine"] <= 1
    assert restored_values(restored(small.method.settings, small.networks, [], torch.Generator())) == {}


# traps (§9)


def test_fakes_are_never_pre_trained_on() -> None:
    columns = {
        "image": torch.zeros(5, 3, 4, 4), "label": torch.tensor([0, 1, 1, 0, 1]),
        "labeled": torch.tensor([True, True, False, False, False]),
        "mapped": torch.tensor([True, True, True, True, False]), "row": torch.arange(5),
    }  # fmt: skip
    assert pretraining(FSFMSettings(), columns)["row"].tolist() == [1, 2]
    assert pretraining(FSFMSettings(pretrain_on="unlabeled"), columns)["row"].tolist() == [2]
    assert labeled(columns)["row"].tolist() == [0, 1]


def test_a_divided_video_is_refused(fsfm: Start) -> None:
    whole = {"group": torch.tensor([1, 1, 2]), "frames": torch.tensor([2, 2, 1])}
    check_videos(whole)
    check_videos({"image": torch.zeros(2)})
    with pytest.raises(DataError, match="domain or natural"):
        check_videos({name: values[1:] for name, values in whole.items()})
    with pytest.raises(DataError, match="domain or natural"):
        fsfm("data.partition=[{name: iid, clients: 3}]", "data.unseen=[]", whole=True)
    with pytest.raises(DataError, match="domain or natural"):
        fsfm("data.validation={share: 0.3, by: sample}", whole=True)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("method.patch=5", "method.patch"),
        ("method.mask_ratio=0.7", "method.mask_ratio"),
        ("method.heads=3", "method.heads"),
        ("method.predictor=[16, 4]", "method.predictor"),
        ("data.mean=[0.5]", "data.mean"),
        ("data.validation=null", "method.finetune.choose"),
        ("method.finetune.training={lr: -1}", "method.finetune.training"),
        ("federation.rounds=1", "federation.rounds"),
        ("method.statistics=fixed", "method.mean"),
    ],
)
def test_what_cannot_work_is_refused(fsfm: Start, override: str, told: str) -> None:
    more = ["method.mean=[0.1, 0.2]"] if override.endswith("fixed") else []
    with pytest.raises((ConfigError, ConfigErrors), match=told.replace(".", r"\.")):
        fsfm(override, *more)


def test_data_without_maps_or_labels_is_refused() -> None:
    tuning = FSFMSettings(finetune={"rounds": 1})  # type: ignore[arg-type]  # pydantic makes a section of it
    check_columns(tuning, {"image", "regions", "label"}, True)
    check_columns(tuning, {"image", "label"}, False)
    check_columns(FSFMSettings(), {"image", "regions"}, True)
    with pytest.raises(DataError, match="region maps"):
        check_columns(tuning, {"image", "label"}, True)
    with pytest.raises(DataError, match="labels"):
        check_columns(tuning, {"image", "regions"}, True)


def test_warnings() -> None:
    config = parse(Config, {**SMALL, "training": {**SMALL["training"], "optimizer": "sgd", "clip_norm": None}})
    told = make_method(config.method).check(config)
    assert [part for part in ("optimizer", "clip_norm", "teacher") if any(part in text for text in told)] == [
        "optimizer", "clip_norm", "teacher",
    ]  # fmt: skip


def test_an_encoder_of_an_earlier_run_is_fine_tuned_with_its_statistics(fsfm: Start, reference: fedlab.Run) -> None:
    run = fsfm(
        f"init.student={reference.path}#student", f"init.normalizer={reference.path}#normalizer",
        "method.statistics=fixed", "federation.rounds=2", "method.finetune.train=head", "evaluation.every=2",
    )  # fmt: skip
    for prefix in ("student.encoder.", "normalizer."):
        before, after = weights(reference, prefix), weights(run, prefix)
        assert all(torch.equal(before[name], after[name]) for name in before)
    tuned = weights(run, "classifier.encoder.")
    assert all(
        torch.equal(v, weights(reference, "student.")[n.replace("classifier", "student")]) for n, v in tuned.items()
    )


def test_every_configuration_of_the_paper_is_valid() -> None:
    from fedlab.experiment.checks import resolve
    from fedlab.experiment.start import configure, method_folder

    for path in sorted(Path(method_folder("fsfm", "method")).glob("*.yaml")):
        if path.name not in ("acceptance.yaml", "card.yaml"):
            resolve(configure(str(path), ["engine.name=inline", "engine.device=cpu"]))
