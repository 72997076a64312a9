"""What can be set of TransKD and what is refused; its augmentation; checkpoints of its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fedlab.assembly import make_method, make_task
from fedlab.config import Config, load_config, parse
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.experiment.checks import resolve
from fedlab.experiment.start import method_folder
from fedlab.method import Step
from fedlab.methods.transkd.method import TransKD
from fedlab.models.segformer import SegFormer, SegFormerSettings
from fedlab.studies.acceptance import load_acceptance

NAMES = ("background", "disc", "square", "triangle")
TINY = {"widths": (8, 8, 8, 16), "depths": (1, 1, 1, 1), "heads": (1, 1, 2, 2), "decoder": 8}
WIDE = {"widths": (8, 16, 16, 24), "depths": (1, 1, 1, 1), "heads": (1, 2, 2, 2), "decoder": 8}
BASE: dict[str, Any] = {"name": "transkd", "student": TINY, "teacher": WIDE, "csf_width": 8, "csf_squeeze": 4}
IMAGES = torch.rand(3, 3, 36, 36, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def segformer() -> SegFormer:
    torch.manual_seed(0)
    return SegFormer(parse(SegFormerSettings, TINY), 3, 4).eval()


def at(round: int) -> Step:
    return Step(round, 0, 0, 1, round - 1, 1500, {}, {}, {}, lambda name, value: None)


# schedule, settings, data that does not fit


def test_the_rate_falls_with_the_round_and_ends_at_a_third_after_1000_of_1500() -> None:
    method = TransKD(parse(TransKD.Settings, {"horizon": 1500}))
    rates = [method.schedule(at(round), {"lr": 6e-5})["lr"] for round in (1, 2, 751, 1000, 1500, 1600)]
    expected = [6e-5, 6e-5 * 1499 / 1500, 3e-5, 6e-5 * 501 / 1500, 6e-5 / 1500, 0]
    assert rates == pytest.approx(expected)
    assert TransKD().schedule(at(5), {"lr": 1.0}) == {}


def test_defaults_are_the_papers() -> None:
    s = TransKD().settings
    assert (s.student.widths, s.student.depths, s.student.decoder) == ((32, 64, 160, 256), (2, 2, 2, 2), 256)
    assert (s.teacher.widths, s.teacher.depths, s.teacher.decoder) == ((64, 128, 320, 512), (3, 4, 6, 3), 768)
    assert (s.csf_width, s.squeeze, s.pea_weights, s.gl_residual) == (64, 32, (0.1, 0.1, 0.5, 1.0), False)
    assert (s.flip, s.translate, s.teacher_batch, s.student.drop_path) == (0.5, 2, 8, 0.1)
    assert (s.distiller, s.buffers) == ("shared", "average")


@pytest.mark.parametrize("file", ["config.yaml", "paper.yaml", "paper_acdc.yaml"])
def test_configurations_that_come_with_it_have_nothing_to_warn_of(file: str) -> None:
    found = load_config(method_folder("transkd", "method") / file, ["engine.name=inline"])
    assert resolve(found).warnings == []


def test_arms_of_the_acceptance_experiment_differ_in_the_method_or_in_who_trains() -> None:
    spec = load_acceptance("transkd")
    configs = {arm: spec.config(arm, 0) for arm in spec.arms}
    assert [resolve(found).warnings for found in configs.values()] == [[]] * len(configs)
    central = [found for arm, found in configs.items() if arm in ("student", "csf", "csf_pea", "gl", "ea")]
    same = {found.model_dump_json(exclude={"method"}) for found in central}
    assert len(same) == 1
    shared = configs["federated"].training, configs["federated"].federation.rounds
    assert shared[0].local_steps is not None
    assert shared[0].local_steps * shared[1] == configs["csf_pea"].training.local_steps
    for client in range(4):
        alone = configs[f"local_{client}"]
        assert alone.federation.sampler.settings == {"clients": [client]}
        assert alone.data == configs["federated"].data


def config(method: Mapping[str, Any], **sections: Any) -> Config:
    return parse(Config, {"method": {**BASE, **method}, "data": {"source": "scenes"}, **sections})


def test_distilling_from_a_teacher_nobody_trains_is_refused() -> None:
    for settings in ({}, {"csf": False}, {"pea": "none"}):
        with pytest.raises(ConfigError, match=r"method\.teacher_steps = 0\n.*a trained teacher"):
            make_method(config(settings).method).check(config(settings))
    for fine, init in (({"teacher_steps": 1}, {}), ({"pretrained": "x"}, {}), ({}, {"teacher": "x"})):
        assert make_method(config(fine).method).check(config(fine, init=init)) == []


@pytest.mark.parametrize(
    ("settings", "sections", "warning"),
    [
        ({"csf": False, "pea": "none"}, {"model": "resnet18"}, "model is not used"),
        ({"teacher_steps": 1, "horizon": 20}, {"training": {"schedule": "cosine"}}, "replaces training.schedule"),
        ({"teacher_steps": 1, "horizon": 5}, {"federation": {"rounds": 6}}, "ends before 6 rounds"),
        ({"teacher_steps": 1, "buffers": "local"}, {}, "meaningless"),
    ],
)
def test_settings_without_effect_are_pointed_out(
    settings: dict[str, Any], sections: dict[str, Any], warning: str
) -> None:
    asked = config(settings, **sections)
    (text,) = make_method(asked.method).check(asked)
    assert warning in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "gl", "pea": 2}, r"method\.pea = 2\n  expected: all, or 4 with variant: gl"),
        ({"variant": "ea", "pea": "none"}, "expected: all with variant: ea"),
        ({"variant": "gl", "student": {**TINY, "widths": (8, 8, 8, 12)}}, "multiple of 8"),
        ({"student": {**TINY, "heads": (3, 1, 2, 2)}}, "multiples of the heads"),
        ({"variant": "both"}, "variant"),
        ({"pea": 5}, "pea"),
        ({"flip": 2}, "flip"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigErrors, match=message):
        make_method(config(settings).method)


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"image": (3, 36, 36)}, {}, "images with masks"),
        ({"image": (3, 36, 36), "mask": (36, 36)}, {}, r"masks 36×36.*\n.*1/4 of them\n.*data\.source\.stride to 4"),
        ({"image": (3, 38, 36), "mask": (10, 9)}, {}, "sides that 4 divides"),
        ({"image": (3, 32, 32), "mask": (8, 8)}, {}, "more than 32 pixels"),
        ({"image": (3, 36, 36), "mask": (9, 9)}, {"class_weights": (1, 1)}, r"2 numbers.*\n.*4: background, disc"),
    ],
)
def test_data_that_does_not_fit_is_refused(
    columns: dict[str, tuple[int, ...]], settings: dict[str, Any], message: str
) -> None:
    asked = config(settings)
    described = {name: ("float32" if name == "image" else "int64", shape) for name, shape in columns.items()}
    with pytest.raises(ConfigError, match=message):
        make_method(asked.method).build(make_task(asked, described, NAMES, 2))


# checkpoints


def test_a_whole_checkpoint_fills_the_teacher(tmp_path: Path, segformer: SegFormer) -> None:
    segformer.model.save_pretrained(tmp_path)
    other = SegFormer(parse(SegFormerSettings, TINY), 3, 4)
    assert other.load_pretrained(str(tmp_path), "method.pretrained")
    images = IMAGES
    with torch.no_grad():
        assert torch.equal(other.eval()(images), segformer(images))


def test_other_classes_or_an_encoder_alone_leave_the_decoder_to_be_trained(
    tmp_path: Path, segformer: SegFormer
) -> None:
    from transformers import SegformerForImageClassification

    segformer.model.save_pretrained(tmp_path / "segmentation")
    encoder = SegformerForImageClassification(segformer.model.config)
    encoder.segformer.load_state_dict(segformer.model.segformer.state_dict())
    encoder.save_pretrained(tmp_path / "encoder")
    images = IMAGES
    for folder in ("segmentation", "encoder"):
        other = SegFormer(parse(SegFormerSettings, TINY), 3, 7)
        assert not other.load_pretrained(str(tmp_path / folder), "method.pretrained")
        with torch.no_grad():
            pairs = zip(other.eval().encode(images).features, segformer.encode(images).features, strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


def test_a_checkpoint_of_another_size_or_none_is_refused(tmp_path: Path, segformer: SegFormer) -> None:
    segformer.model.save_pretrained(tmp_path / "tiny")
    other = SegFormer(parse(SegFormerSettings, WIDE), 3, 4)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ConfigError, match=r"widths \(8, 16, 16, 24\).*\n.*method\.teacher"):
        other.load_pretrained(str(tmp_path / "tiny"), "method.pretrained")
    with pytest.raises(ConfigError, match=r"method\.pretrained = .*none"):
        other.load_pretrained(str(tmp_path / "none"), "method.pretrained")
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
