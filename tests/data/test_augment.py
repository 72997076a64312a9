"""Augmentations of training batches: what they do to pixels, what they depend on, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedlab
from benchmarks.hashes import digest
from fedlab.config import Config, DataConfig, parse
from fedlab.data.augment import AUGMENTATIONS, Augment, Augmentation, make_augment
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.method import Batch, Step
from fedlab.methods.supervised.method import Supervised
from fedlab.storage.checkpoint import load_checkpoint

STRONGEST: dict[str, dict[str, Any]] = {
    "blur": {"probability": 1, "smallest": 1.0},
    "color": {"probability": 1},
    "crop": {},
    "erase": {"probability": 1},
    "flip": {"probability": 1},
    "gray": {"probability": 1},
    "resized_crop": {},
    "solarize": {"probability": 1},
}
SMALL: dict[str, Any] = {
    "method": "supervised",
    "model": {"name": "convnet", "width": 4, "depth": 1},
    "data": {
        "source": {"name": "digits", "domains": ["handwritten"], "train_per_domain": 60, "test_per_domain": 20},
        "partition": [{"name": "iid", "clients": 2}],
    },
    "training": {"batch_size": 16},
    "federation": {"rounds": 2},
    "engine": {"name": "inline", "device": "cpu"},
}
FLIP = "data.augment=[{name: flip, probability: 1}]"


def augment(*components: dict[str, Any], **data: Any) -> Augment:
    return make_augment(parse(DataConfig, {"source": "digits", "augment": components, **data}))


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(channels: int = 3) -> Tensor:
    """Four normalized images with values from −1 to 1."""
    return 2 * torch.rand(4, channels, 8, 8, generator=drawn(7)) - 1


@pytest.mark.parametrize("name", AUGMENTATIONS.builtin)
def test_each_changes_copies_within_the_range_of_pixels_and_draws_from_its_generator_only(name: str) -> None:
    one, x = augment({"name": name, **STRONGEST[name]}), images()
    batch = {"image": x.clone(), "label": torch.arange(4)}
    torch.manual_seed(1)
    first = one(batch, drawn())
    torch.manual_seed(2)
    assert torch.equal(one(batch, drawn())["image"], first["image"])
    assert torch.equal(batch["image"], x)
    assert torch.equal(first["label"], batch["label"])
    assert first["image"].shape == x.shape
    assert not torch.equal(first["image"], x)
    assert -1 - 1e-6 <= float(first["image"].min()) <= float(first["image"].max()) <= 1 + 1e-6
    if name not in ("flip", "gray", "solarize"):  # which draw nothing that matters with probability 1
        assert not torch.equal(one(batch, drawn(1))["image"], first["image"])


def test_a_flip_mirrors_and_a_border_is_black_before_normalization() -> None:
    x = images()
    assert torch.allclose(augment({"name": "flip", "probability": 1})({"image": x}, drawn())["image"], x.flip(3))
    white = torch.full((40, 1, 4, 4), 2.0)  # of pixels in [0, 1], normalized by mean 0.2 and std 0.4
    found = augment({"name": "crop", "padding": 2}, mean=[0.2], std=[0.4])({"image": white}, drawn())["image"]
    assert sorted({round(value, 5) for value in found.flatten().tolist()}) == [-0.5, 2.0]


def test_steps_are_applied_in_their_order() -> None:
    x = {"image": torch.full((1, 1, 8, 8), 1.0)}
    solarize = {"name": "solarize", "probability": 1, "threshold": 0.5}
    erase = {"name": "erase", "probability": 1, "fill": 0.0}
    dark = augment(solarize, erase)(x, drawn())["image"]
    spotted = augment(erase, {**solarize, "threshold": 0.0})(x, drawn())["image"]
    assert dark.unique().tolist() == [-1.0]
    assert spotted.unique().tolist() == [-1.0, 1.0]


def test_a_batch_without_samples_or_images_stays_as_it_is() -> None:
    one = augment({"name": "crop"})
    for batch in ({"image": torch.zeros(0, 1, 8, 8)}, {"points": torch.zeros(2, 3)}):
        assert one(dict(batch), drawn()) == batch


# in runs


class Watching(Supervised):
    """Keeps what it is trained and evaluated on."""

    augments = True
    trained: list[Tensor]
    tested: list[Tensor]

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        type(self).trained.append(batch["image"].clone())
        return super().loss(networks, batch, step)

    def predict(self, networks: nn.ModuleDict, batch: Batch) -> Tensor:
        type(self).tested.append(batch["image"].clone())
        return super().predict(networks, batch)


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., fedlab.Run]:
    def make(*overrides: str, **arguments: Any) -> fedlab.Run:
        tracking = {"folder": str(tmp_path), "console": "quiet", "tensorboard": False, "checkpoint_every": 1}
        return fedlab.run({**SMALL, "tracking": tracking}, overrides=overrides, **arguments)

    return make


def weights(run: fedlab.Run) -> str:
    return digest(load_checkpoint(run.checkpoint)[0])


def test_training_batches_are_augmented_and_nothing_else(start: Callable[..., fedlab.Run]) -> None:
    seen = []
    for overrides in ([], [FLIP]):
        Watching.trained, Watching.tested = [], []
        start(*overrides, method=Watching)
        seen.append((Watching.trained, Watching.tested))
    (plain, tested), (flipped, again) = seen
    assert all(torch.allclose(b, a.flip(3), atol=1e-6) for a, b in zip(plain, flipped, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tested, again, strict=True))


def test_draws_differ_between_clients_steps_and_rounds_and_not_between_runs(start: Callable[..., fedlab.Run]) -> None:
    crop = "data.augment=[{name: crop, padding: 8}, {name: color}]"
    first, other = start(crop), start(crop, "seed=1")
    assert weights(first) != weights(start()) != weights(other)
    stopped = start(crop, until=1)
    resumed = fedlab.resume(stopped.path)
    assert weights(resumed) == weights(first)
    gray = np.full((64, 8, 8), 0.5, np.float32)  # of alike images, so that batches differ in their draws alone
    data = fedlab.from_arrays(gray, np.arange(64) % 2, gray[:8], np.arange(8) % 2)
    Watching.trained, Watching.tested = [], []
    start("data.augment=[{name: erase, probability: 1}]", "model=logistic", method=Watching, data=data)
    batches = [batch for batch in Watching.trained if len(batch) == 16]
    assert len(batches) >= 8  # two rounds of two clients with two steps each
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(batches[-8:], 2))


def test_dp_sgd_trains_on_augmented_images_too(start: Callable[..., fedlab.Run]) -> None:
    private = "privacy={name: dp_sgd, clip: 1.0, noise_multiplier: 1.0}"
    norm = "model.norm=group"
    assert weights(start(private, norm, FLIP)) != weights(start(private, norm))


# what is refused


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["data.augment=[turn]"], r"data\.augment\.0\.name[\s\S]*turn"),
        (["data.augment=[{name: crop, padding: 0}]"], r"data\.augment\.0\.padding"),
        (["data.augment=[{name: blur, smallest: 3}]"], r"data\.augment\.0"),
        (["data.augment=[flip]", "method=moon"], r"data\.augment[\s\S]*MOON does not"),
        (["data.augment=[flip]", "data.mean={handwritten: [0.5]}"], "for all domains"),
    ],
)
def test_what_cannot_be_augmented_is_refused(start: Callable[..., fedlab.Run], overrides: list[str], told: str) -> None:
    with pytest.raises((ConfigError, ConfigErrors), match=told):
        start(*overrides)


def test_samples_that_are_no_images_are_refused() -> None:
    one = augment({"name": "flip"}, {"name": "color"})
    with pytest.raises(ConfigError, match=r"samples that are images[\s\S]*label, points"):
        one.check({"points": ("float32", (16, 3)), "label": ("int64", ())})
    with pytest.raises(ConfigError, match=r"data\.augment\.1\.name[\s\S]*color[\s\S]*these have 4"):
        one.check({"image": ("float32", (4, 8, 8))})
    one.check({"image": ("float32", (3, 8, 8))})
    Augment().check({})


def test_a_run_on_other_samples_ends_before_it_begins(start: Callable[..., fedlab.Run]) -> None:
    shapes = "data.source={name: shapes, train: 24, test: 12, probe: 6, points: 16}"
    with pytest.raises((ConfigError, ConfigErrors), match=r"data\.augment[\s\S]*images"):
        start(shapes, FLIP, "data.partition=[{name: iid, clients: 2}]", method=Watching)


def test_an_augmentation_of_ones_own_is_checked() -> None:
    with pytest.raises(ConfigError, match="Augmentation"):
        make_augment(parse(Config, {**SMALL, "data": {"source": "digits", "augment": [_NAME]}}).data)


class NoAugmentation:
    """Has settings and nothing else."""

    class Settings(Augmentation.Settings):
        pass


_NAME = f"{__name__}:NoAugmentation"
