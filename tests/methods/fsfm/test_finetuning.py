"""Fine-tuning: augmented faces, mixed and smoothed labels, and what a batch consists of (§3.6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.data.batching import balanced_batches
from fedlab.distill.mixing import Mix
from fedlab.methods.fsfm import finetuning
from tests.methods.fsfm.conftest import Lab

Make = Callable[..., Lab]
QUIET: dict[str, Any] = {"mix": False, "flip": False, "jitter": 0.0, "erase": 0.0, "smoothing": 0.0}


def faces(count: int = 6) -> dict[str, Tensor]:
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return {"image": images, "label": torch.arange(count) % 2}


def drawn(lab: Lab, seed: int = 0) -> dict[str, Any]:
    return finetuning.augmented(lab.method.settings, faces(), torch.Generator().manual_seed(seed))


def _parts(batch: dict[str, Any]) -> list[Tensor]:
    return [batch["image"], batch["erased"], batch["mix"].permutation, torch.tensor(batch["mix"].share)]


class Fixed(nn.Module):
    """Stands in for the classifier: logits (mean color, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.mean((1, 2, 3)), torch.zeros(len(x))], dim=1)


def test_nothing_is_changed_where_nothing_is_asked_for(lab: Make) -> None:
    batch = drawn(lab(finetune=QUIET))
    assert torch.equal(batch["image"], faces()["image"])
    assert not batch["erased"].any()
    assert batch["mix"].share == 1


@pytest.mark.parametrize("key", ["flip", "jitter", "erase", "mix"])
def test_each_change_is_drawn_from_the_generator_that_is_given(lab: Make, key: str) -> None:
    small = lab(finetune={**QUIET, key: 1.0 if key in ("jitter", "erase") else True})
    first, same, other = (_parts(drawn(small, seed)) for seed in (0, 0, 1))
    assert all(map(torch.equal, first, same))
    assert not all(map(torch.equal, first, other))
    assert 0 <= float(drawn(small)["image"].min()) <= float(drawn(small)["image"].max()) <= 1


def test_labels_are_mixed_as_the_pictures_are_and_smoothed(lab: Make) -> None:
    small = lab(finetune={**QUIET, "smoothing": 0.2})
    small.networks["classifier"] = FixedClassifier()
    batch = {**drawn(small), "mix": Mix(torch.tensor([1, 0, 2, 3, 4, 5]), 0.75, None)}
    x = small.networks["normalizer"](batch["image"])
    mixed = 0.75 * x + 0.25 * x[batch["mix"].permutation]
    hard = F.one_hot(batch["label"], 2).float()
    y = 0.75 * hard + 0.25 * hard[batch["mix"].permutation]
    expected = F.cross_entropy(Fixed()(mixed), 0.8 * y + 0.1)
    found = finetuning.loss(small.method.settings, small.networks, batch)["ce"]
    torch.testing.assert_close(found, expected)


def test_erased_pixels_have_the_mean_color(lab: Make) -> None:
    small = lab(finetune=QUIET)
    small.networks["classifier"] = FixedClassifier()
    batch = drawn(small)
    gray = {**batch, "image": torch.full_like(batch["image"], 0.9), "erased": torch.ones_like(batch["erased"])}
    found = finetuning.loss(small.method.settings, small.networks, gray)["ce"]
    assert float(found) == pytest.approx(float(torch.tensor(2.0).log()))


class FixedClassifier(finetuning.Classifier):
    """A classifier of the right type with fixed logits."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def forward(self, x: Tensor) -> Tensor:
        return Fixed()(x)  # type: ignore[no-any-return]  # modules return anything


def test_real_faces_and_fakes_can_be_drawn_equally_often(lab: Make) -> None:
    balanced, plain = (lab(finetune={"balance": balance}) for balance in (True, False))
    assert balanced.method.batch_spec({"stage": "finetune"}).sampler is balanced_batches
    assert plain.method.batch_spec({"stage": "finetune"}).sampler is None
    assert balanced.method.batch_spec({"stage": "pretrain"}).sampler is not balanced_batches


def test_the_rate_rises_over_half_of_the_steps_as_in_the_authors_code(lab: Make) -> None:
    small = lab(finetune={"warmup": 0.5, "final_lr": 0.0})
    rates = [
        small.method.schedule(small.step(step, 100, "finetune"), {"lr": 1.0})["lr"] for step in (0, 49, 50, 75, 100)
    ]
    assert rates == pytest.approx([0, 1, 1, 0.5, 0])
