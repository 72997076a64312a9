"""PAT's batches: identities with several images each, and what becomes of the images."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fedlab.methods.pat.batches import augment, identity_batches


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# the sampler (check 10)


def test_every_batch_has_p_identities_with_k_images_each() -> None:
    labels = torch.arange(23).repeat_interleave(9).tolist()
    batches = list(identity_batches(labels, 5, 4, generator()))
    for batch in batches:
        counts = Counter(labels[i] for i in batch.tolist())
        assert len(counts) == 5
        assert set(counts.values()) == {4}
        assert len(set(batch.tolist())) == 20
    seen = torch.cat(batches).tolist()
    assert len(seen) == len(set(seen))  # groups are disjoint, the remainder is dropped
    # two groups of each identity; it ends when fewer than five identities are left
    used = Counter(labels[i] for batch in batches for i in batch[::4].tolist())
    assert sum(count < 2 for count in used.values()) + (23 - len(used)) < 5


def test_identities_with_few_images_are_drawn_with_replacement() -> None:
    batches = list(identity_batches([3, 3, 8, 8, 8, 8, 8], 2, 4, generator()))
    assert len(batches) == 1
    counts = Counter([3, 3, 8, 8, 8, 8, 8][i] for i in batches[0].tolist())
    assert counts == {3: 4, 8: 4}


@pytest.mark.parametrize(("labels", "identities"), [([1] * 9, 1), ([1] * 8 + [2] * 8, 2), ([], 0)])
def test_clients_of_few_identities_use_them_all(labels: list[int], identities: int) -> None:
    batches = list(identity_batches(labels, 16, 4, generator()))
    assert len(batches) == (2 if labels else 0)
    assert all(len({labels[i] for i in batch.tolist()}) == identities for batch in batches)


def test_batches_depend_on_the_generator_alone() -> None:
    labels = torch.arange(10).repeat_interleave(8).tolist()
    first, again, other = (torch.cat(list(identity_batches(labels, 4, 4, generator(s)))) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


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
