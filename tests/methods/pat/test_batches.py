"""What becomes of PAT's images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fedlab.methods.pat.batches import augment


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# augmentation

PLAIN: dict[str, Any] = {"flip": 0.0, "pad": 0, "gray_patch": 0.0, "erase": 0.0, "fill": -1.0}


def test_augmentation_does_one_thing_at_a_time() -> None:
    images = torch.rand(8, 3, 12, 6, generator=generator())
    assert torch.equal(augment(images, generator(), **PLAIN), images)
    assert torch.equal(augment(images, generator(), **{**PLAIN, "flip": 1.0}), images.flip(3))
    shifted = augment(images, generator(), **{**PLAIN, "pad": 2})
    assert shifted.shape == images.shape
    padded = F.pad(images, (2,) * 4, value=-1.0)
    for one, source in zip(shifted, padded, strict=True):
        assert any(torch.equal(one, source[:, y : y + 12, x : x + 6]) for y in range(5) for x in range(5))
    half = augment(images.repeat(50, 1, 1, 1), generator(), **{**PLAIN, "flip": 0.5})
    kept = sum(torch.equal(one, images[i % 8]) for i, one in enumerate(half))
    assert kept == pytest.approx(200, abs=45)


@pytest.mark.parametrize("kind", ["gray_patch", "erase"])
def test_rectangles_are_gray_or_black_and_of_the_right_size(kind: str) -> None:
    images = torch.rand(200, 3, 24, 12, generator=generator())
    changed = augment(images, generator(), **{**PLAIN, kind: 0.5})
    touched = (changed != images).any(1)
    hit = touched.flatten(1).any(1)
    assert int(hit.sum()) == pytest.approx(100, abs=30)
    for one, inside in zip(changed[hit], touched[hit], strict=True):
        rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
        box = one[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert torch.allclose(box[0], box[1])
        assert box[0].numel() <= 0.45 * 24 * 12
        if kind == "erase":
            assert (box == -1.0).all()
