"""Small federations with MMC: what travels, what is measured, data of one's own, and refused settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fedlab
from fedlab.assembly import make_method
from fedlab.config import Config, parse
from fedlab.data.generated.materials import draw_patterns, draw_scenes
from fedlab.errors import ConfigError, ConfigErrors, DataError
from fedlab.methods.mmc import evaluation
from fedlab.methods.mmc.evaluation import Judgement, pixel_tokens, teacher_tokens
from fedlab.methods.mmc.views import fixed_view
from fedlab.seeding import numpy_generator
from tests.methods.mmc.conftest import SMALL, VIEWS, Lab
from tests.methods.states import weights

Start = Callable[..., fedlab.Run]


@pytest.fixture(scope="module")
def mmc(runner: Callable[..., Start]) -> Start:
    return runner("mmc", SMALL)


@pytest.fixture(scope="module")
def reference(mmc: Start) -> fedlab.Run:
    return mmc()


def nbytes(run: fedlab.Run, prefix: str) -> int:
    parts = [value for value in weights(run, prefix).values() if value.is_floating_point()]
    return sum(value.numel() * value.element_size() for value in parts)


# what travels (§6)


def test_student_teacher_and_center_travel_and_nothing_else(reference: fedlab.Run) -> None:
    sizes = {role: 2 * nbytes(reference, f"{role}.") for role in ("student", "teacher", "centers")}
    assert sizes["centers"] == 2 * 4 * 12
    for round in reference.history.rounds:
        sent = {group: size for group, size in round["bytes"].items() if size["up"] or size["down"]}
        assert sent == {role: {"down": size, "up": size} for role, size in sizes.items()}
    assert not any("decoder" in name for name in weights(reference, "teacher."))


@pytest.mark.parametrize(
    ("sync", "down", "up"), [("server_ema", True, False), ("reset", False, False), ("local", False, False)]
)
def test_other_ways_to_keep_a_teacher(mmc: Start, reference: fedlab.Run, sync: str, down: bool, up: bool) -> None:
    run = mmc(f"method.teacher_sync={sync}")
    # counters of the heads' BatchNorm are never averaged, but the server's teacher is sent with all its state
    size = 2 * sum(value.numel() * value.element_size() for value in weights(run, "teacher.").values())
    for round in run.history.rounds:
        assert round["bytes"].get("teacher", {"down": 0, "up": 0}) == {"down": down * size, "up": up * size}
    found, usual = weights(run, "teacher."), weights(reference, "teacher.")
    assert not all(torch.equal(found[name], usual[name]) for name in usual)
    assert run.metrics["server"].keys() == reference.metrics["server"].keys()


@pytest.mark.parametrize("sync", ["average", "server_ema"])
def test_the_teachers_heads_normalize_over_the_batch_while_clients_train(lab: Callable[..., Lab], sync: str) -> None:
    """Also where the server keeps the teacher, which is otherwise in evaluation mode and may not change on a client."""
    small = lab(teacher_sync=sync)
    teacher: Any = small.networks["teacher"].eval()
    small.method.set_modes(small.networks, {})
    before = {name: value.clone() for name, value in teacher.named_buffers()}
    features = teacher(small.batch()["views"]).contrast
    torch.testing.assert_close(features.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    same = all(torch.equal(before[name], value) for name, value in teacher.named_buffers())
    assert same == (sync == "server_ema")


# what is measured (§3.5, §7)


def test_what_is_measured(reference: fedlab.Run) -> None:
    figures = {
        "miou", "threshold", "oracle_miou", "miou_random", "threshold_random", "oracle_miou_random", "objects",
        "small_objects", "intra", "inter", "gap", "overlap", "auroc", "linked_auroc",
    }  # fmt: skip
    compared = {f"{kind}{name}{end}" for name in ("miou", "miou_random", "auroc", "linked_auroc")
                for kind, end in (("raw_", ""), ("start_", ""), ("", "_over_raw"), ("", "_over_start"))}  # fmt: skip
    told = {"delta_h", "contrast_accuracy", "target_entropy", "marginal_entropy", "center_norm", "collapse_alarm"}
    server = reference.metrics["server"]
    assert set(server) == figures | compared | told
    assert server["miou_over_raw"] == pytest.approx(server["miou"] - server["raw_miou"])
    assert server["auroc_over_start"] == pytest.approx(server["auroc"] - server["start_auroc"])
    assert server["miou"] <= server["oracle_miou"] <= 1
    assert server["objects"] == 12
    assert set(reference.metrics["mean"]) == figures | {"client_miou", "masked_l1", "mean_abs", "masked_l1_ratio"}
    assert {p.name for p in reference.folder.figures.glob("*.png")} == {f"prompts-000{r}.png" for r in (0, 1, 2)}


def test_clients_have_thresholds_of_their_own_and_share_one_where_pooled(lab: Callable[..., Lab]) -> None:
    """Two clients whose similarities lie on different scales: one threshold cannot serve both."""
    s = lab(points=0).method.settings
    instances = torch.zeros(8, 24, 24, dtype=torch.int32)
    instances[:, 8:16, 8:20] = 1
    inside = (instances[:, ::4, ::4] == 1).flatten(1)
    sums = []
    for object_, elsewhere in ((0.9, 0.5), (0.4, 0.0)):
        cosine = torch.where(inside, object_, elsewhere)
        tokens = torch.stack([cosine, (1 - cosine**2).sqrt()], dim=2)
        tokens[:, 16] = torch.tensor([1.0, 0.0])  # row 2, column 4: the innermost point's patch
        judged = Judgement(s)
        for half in ("validation", "test"):
            judged.update(tokens, {"instances": instances}, half)
        own = judged.compute()
        assert own["miou"] == 1
        client = np.array([own["miou"] * own["objects"], own["objects"]])
        sums.append({**judged.state(), "client_threshold": client, "reconstruction": np.zeros(4)})
    pooled = evaluation.values({name: sums[0][name] + sums[1][name] for name in sums[0]}, s)
    assert pooled["client_miou"] == 1
    assert pooled["miou"] < 0.9
    assert [evaluation.values(one, s)["miou"] for one in sums] == [1, 1]


def test_figures_are_of_the_teachers_normalized_patch_tokens(lab: Callable[..., Lab]) -> None:
    """Not of the student, of a head, of the class token, or of tokens before the last normalization."""
    small = lab()
    view = fixed_view(small.method.settings, {"image": torch.rand(3, 1, 32, 32)})["view"]
    networks = small.networks.eval()
    tokens = teacher_tokens(networks)(view)
    assert tokens.shape == (3, 36, 16)
    torch.testing.assert_close(tokens.mean(2), torch.zeros(3, 36), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.std(2, correction=0), torch.ones(3, 36), atol=1e-3, rtol=0)
    with torch.no_grad():
        for role, part in (("student", ""), ("teacher", "patch_head"), ("teacher", "contrast_head")):
            for p in networks[role].get_submodule(part).parameters():
                p.add_(1)
    assert torch.equal(teacher_tokens(networks)(view), tokens)


@torch.no_grad()
def test_probes_see_whole_pictures(lab: Callable[..., Lab]) -> None:
    """Positions are resized to the 8 × 8 patches of a picture whose views have 6 × 6."""
    small = lab()
    small.networks.eval()
    for part in small.method.feature_parts:
        found = small.method.features(small.networks, {"image": torch.rand(3, 1, 32, 32)}, part)
        assert found.grid == (8, 8)
        assert found.tokens is not None
        assert found.tokens.shape == (3, 64, 16)
        assert found.vectors.shape == (3, 16)


def test_segmentation_by_a_prompt_is_also_a_probe(mmc: Start) -> None:
    probe = "probes=[{name: prompt_segmentation}, {name: prompt_segmentation, part: student, points: 0}]"
    server = mmc(probe, "federation.rounds=1", "evaluation.every=1").metrics["server"]
    assert 0 < server["probe_prompt_segmentation_teacher"] <= server["probe_prompt_segmentation_teacher_oracle"] <= 1
    assert 0 < server["probe_prompt_segmentation_student"] <= 1
    assert "probe_prompt_segmentation_student_random" not in server


def test_raw_pixels_of_a_patch_are_its_pixels(lab: Callable[..., Lab]) -> None:
    view = torch.rand(2, 3, 24, 24)
    tokens = pixel_tokens(lab(channels=3).method.settings)(view)
    assert tokens.shape == (2, 36, 48)
    assert torch.equal(tokens[1, 8], view[1, :, 4:8, 8:12].flatten())


def test_raw_pixels_cannot_link_the_two_patterns_of_a_material(lab: Callable[..., Lab]) -> None:
    """Over many draws of patterns the AUROC of linked pairs is one half: mechanism gates are differences to it."""
    s, found = lab(points=0).method.settings, []
    for seed in range(8):
        patterns = draw_patterns(6, numpy_generator(seed, "patterns"))
        scenes = draw_scenes(40, patterns, 0.25, numpy_generator(seed, "scenes"))
        columns = {
            "image": torch.from_numpy(scenes.pixels / 10 + 0.5)[:, None],
            "instances": torch.from_numpy(scenes.objects),
            "parts": torch.from_numpy(scenes.parts),
        }
        seen = fixed_view(s, columns)
        judged = Judgement(s)
        judged.update(pixel_tokens(s)(seen["view"]), seen, "test")
        found.append(judged.linked.compute()["auroc"])
        assert judged.gap.compute()["auroc"] > found[-1]
    assert 0.4 < np.mean(found) < 0.6


def test_evaluation_changes_nothing_and_says_the_same_twice(reference: fedlab.Run, mmc: Start) -> None:
    again = mmc("evaluation.every=1")
    assert again.metrics["server"] == reference.metrics["server"]
    assert all(torch.equal(value, weights(reference)[name]) for name, value in weights(again).items())


def test_collapse_reaches_the_runs_alarms(lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    for alarm in (0.0, 1.0):
        monkeypatch.setattr(evaluation, "mechanisms", lambda ctx, s, alarm=alarm: {"collapse_alarm": alarm})

        class Context:
            data: Mapping[str, Any] = {"test": {}}
            alarm = heard.append

        assert lab().method.server_evaluate(Context()) == {"collapse_alarm": alarm}  # type: ignore[arg-type]
    assert heard == [evaluation.COLLAPSE]


# variants and data


@pytest.mark.parametrize(
    "changes",
    [
        ("method.global_to_local=shared", "method.predictor=[10, 8]", "method.reconstruction=squared"),
        ("method.global_to_local=cls_to_patch", "method.level=pixel", "method.points=0"),
        ("method.views.local=2", "method.views.local_size=8", "method.views.crop=resized", "method.views.color=true",
         "method.views.mean=[0.0]", "method.views.std=[1.0]"),
        ("method.corrupt=false", "data.partition=[{name: natural}]", "data.source.materials=3"),
    ],
)  # fmt: skip
def test_variants_train_and_are_measured(mmc: Start, changes: tuple[str, ...]) -> None:
    run = mmc(*changes, "federation.rounds=1", "evaluation.every=1")
    assert 0 < run.metrics["server"]["miou"] <= 1
    assert run.history.rounds[0]["train"]["l_con"] > 0


def test_samples_that_clients_hold_back_choose_their_thresholds(mmc: Start) -> None:
    """Then all test pictures are scored, and not every other one."""
    once = ("federation.rounds=1", "evaluation.every=1")
    run, usual = mmc("data.validation=0.25", *once), mmc(*once)
    assert run.history.evaluations[-1]["pooled"]["objects"] == 24
    assert usual.history.evaluations[-1]["pooled"]["objects"] == 12


def test_cameras_divide_the_data(mmc: Start) -> None:
    changes = ("data.source.cameras=2", "data.partition=[{name: domain}]", "federation.rounds=1", "evaluation.every=1")
    assert set(mmc(*changes).metrics["clients"]) == {"camera 1", "camera 2"}


def test_pictures_without_masks_can_be_trained_on(mmc: Start) -> None:
    changes = ("method.views.size=16", "federation.rounds=1", "evaluation.every=1")
    run = mmc("data.source={name: shifted_digits, train_per_class: 4, test_size: 20}", *changes)
    assert set(run.metrics["mean"]) == {"masked_l1", "mean_abs", "masked_l1_ratio"}


def own(folder: Path, height: int) -> str:
    """A folder of pictures, each with one object of this height, as the source of a run."""
    rng = np.random.default_rng(0)
    for part in ("train", "test", "server/validation", "server/test"):
        for name in range(8):
            mask = np.zeros((32, 32), np.uint8)
            mask[8 : 8 + height, 4:24], mask[:4, :4] = 3, 255
            for kind, pixels in (("images", rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)), ("masks", mask)):
                path = folder / part / kind / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return f"data.source={{name: masks, path: '{folder}', contents: instances, stride: 1}}"


def test_own_pictures_with_numbered_objects(mmc: Start, tmp_path: Path) -> None:
    run = mmc(own(tmp_path, 12), "training.batch_size=4", "federation.rounds=1", "evaluation.every=1")
    assert run.metrics["server"]["objects"] == 8
    assert 0 < run.metrics["pooled"]["miou"] <= 1


def test_objects_smaller_than_a_patch_everywhere_are_refused(mmc: Start, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no object to prompt"):
        mmc(own(tmp_path, 2), "federation.rounds=1")


def test_sets_held_out_of_the_clients_pictures_are_scored_by_the_server(mmc: Start) -> None:
    source = "data.source={name: materials, train: 64, test: 24, validation: 0, server_test: 0}"
    held = "data.held={validation: {share: 0.2}, test: {split: test, share: 0.5}}"
    run = mmc(source, held, "federation.rounds=1", "evaluation.every=1")
    assert run.metrics["server"]["objects"] == 12


def test_the_papers_networks_have_the_parameters_that_were_counted(paper_networks: Callable[..., Any]) -> None:
    columns = {"image": ("float32", (3, 256, 256)), "instances": ("int32", (256, 256))}
    networks = paper_networks("mmc", columns)
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in networks["student"].named_children()}
    heads = {"patch_head": 7_606_528, "contrast_head": 19_423_488, "decoder": 738_435, "predictor": 0}
    assert parts == {"backbone": 21_665_664, **heads}
    assert sum(p.numel() for p in networks["teacher"].parameters()) == 21_665_664 + 7_606_528 + 19_423_488
    assert sum(value.numel() for value in networks["centers"].buffers()) == 8192


# settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": {"heads": 3}}, r"method\.heads"),
        ({"method": {"views": {**VIEWS, "size": 22}}}, r"method\.views\.size"),
        ({"method": {"views": {**VIEWS, "local": 2, "local_size": 6}}}, r"method\.views\.local_size"),
        ({"method": {"predictor": [16, 9]}}, r"method\.predictor"),
        ({"method": {"teacher_sync": "global"}}, r"method\.teacher_sync"),
        ({"method": {"reconstruction_weight": 0, "distillation_weight": 0, "contrast_weight": 0}}, "weight of a loss"),
        ({"data": {"mean": [0.5]}}, r"data\.mean"),
        ({"data": {"std": [0.5]}}, r"data\.std"),
    ],
)
def test_impossible_settings_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    config = parse(Config, {**SMALL, **{section: {**SMALL[section], **keys} for section, keys in change.items()}})
    with pytest.raises((ConfigError, ConfigErrors), match=message):
        make_method(config.method).check(config)


@pytest.mark.parametrize(
    ("section", "change", "warning"),
    [
        ("training", {"batch_size": 8}, "16 or more"),
        ("training", {"optimizer": "sgd"}, "adamw"),
        ("training", {"clip_norm": None}, "clip_norm"),
        ("training", {"local_steps": 2}, "hardly moves"),
        ("method", {"global_to_local": "cls_to_patch"}, "alike"),
        ("method", {"corrupt": False}, "nothing is masked"),
    ],
)
def test_doubtful_settings_are_warned_about(section: str, change: dict[str, Any], warning: str) -> None:
    fine = {**SMALL, "training": {**SMALL["training"], "batch_size": 32, "local_steps": 200}}
    plain, doubtful = parse(Config, fine), parse(Config, {**fine, section: {**fine[section], **change}})
    assert make_method(plain.method).check(plain) == []
    (text,) = make_method(doubtful.method).check(doubtful)
    assert warning in text
