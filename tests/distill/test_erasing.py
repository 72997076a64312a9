from __future__ import annotations

import torch

from fedlab.distill.erasing import padded_crop, random_flip, random_rectangles


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_flips_mirror_as_many_images_as_asked() -> None:
    x = torch.rand(400, 1, 3, 4)
    found = random_flip(x, generator(), probability=0.25)
    mirrored = (found == x.flip(3)).all(3).all(2).all(1)
    assert 70 < int(mirrored.sum()) < 130
    assert torch.equal(found[~mirrored], x[~mirrored])
    assert torch.equal(random_flip(x, generator(), probability=1), x.flip(3))


def test_crops_are_moved_by_up_to_the_border() -> None:
    x = torch.ones(500, 1, 6, 6)
    found = padded_crop(x, 2, generator(), fill=-7)
    missing = (found == -7).all(3).sum(2)[:, 0]  # rows of border
    assert sorted(set(missing.tolist())) == [0, 1, 2]
    assert found.shape == x.shape


def test_a_rectangle_has_between_2_and_40_percent_of_the_area() -> None:
    inside = random_rectangles(torch.zeros(800, 3, 60, 40), 0.5, generator())
    shares = inside.float().mean((1, 2, 3))
    drawn = shares[shares > 0]
    assert 340 < len(drawn) < 460
    assert float(drawn.min()) > 0.015
    assert 0.3 < float(drawn.max()) < 0.42
    for mask in inside[shares > 0][:50, 0]:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        assert int(mask.sum()) == len(rows) * len(columns)
