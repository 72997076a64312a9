"""Views of pictures, their corruption, and the fixed view by which pictures are judged (§3.1, §3.5)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fedlab.errors import DataError
from fedlab.methods.mmc.settings import MMCSettings
from fedlab.methods.mmc.views import check_pictures, corrupted, fixed_view, normalized, training_views

PLAIN: dict[str, Any] = {
    "size": 24, "crop": "window", "flip": False, "color": False, "mean": [0.5], "std": [0.1],
}  # fmt: skip


def settings(views: dict[str, Any] | None = None, **others: Any) -> MMCSettings:
    given = {"patch": 4, "width": 8, "heads": 2, "align": 4, "drop": 0.7, **others}
    return MMCSettings.model_validate({**given, "views": {**PLAIN, **(views or {})}})


def pictures(count: int = 8, channels: int = 1, size: tuple[int, int] = (32, 32)) -> Tensor:
    return torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(0))


def drawn(s: MMCSettings, images: Tensor, seed: int = 0) -> dict[str, Tensor]:
    return training_views(s, {"image": images}, torch.Generator().manual_seed(seed))


def test_windows_begin_at_whole_patches_and_keep_every_pixel() -> None:
    s, images = settings(), pictures(40, channels=3)
    views = drawn(s, images)["views"]
    assert views.shape == (80, 3, 24, 24)
    places = set()
    for row, view in enumerate(views):
        found = [
            (top, left)
            for top in range(9)
            for left in range(9)
            if torch.equal(view, normalized(s, images[row % 40, :, top : top + 24, left : left + 24]))
        ]
        assert len(found) == 1
        places.add(found[0])
    assert places == {(top, left) for top in (0, 4, 8) for left in (0, 4, 8)}


def test_windows_may_be_mirrored() -> None:
    s, images = settings({"flip": True}), pictures(30, size=(24, 24))
    mirrored = [
        torch.equal(view, normalized(s, images[row % 30].flip(2))) for row, view in enumerate(drawn(s, images)["views"])
    ]
    kept = [torch.equal(view, normalized(s, images[row % 30])) for row, view in enumerate(drawn(s, images)["views"])]
    assert 15 < sum(mirrored) < 45
    assert sum(mirrored) + sum(kept) == 60


def test_gain_and_noise_are_those_of_each_view() -> None:
    flat = torch.full((200, 1, 24, 24), 0.7)  # 2 when normalized
    s = settings({"gain": [0.7, 1.3], "noise": 0.1})
    views = drawn(s, flat)["views"]
    means = views.mean((1, 2, 3)) / 2
    assert 0.69 < float(means.min()) < 0.72
    assert 1.28 < float(means.max()) < 1.31
    assert float((views - views.mean((1, 2, 3), keepdim=True)).std()) == pytest.approx(0.1, rel=0.02)


def test_resized_views_and_small_ones_have_their_sizes_and_stay_in_range() -> None:
    s = settings(
        {"crop": "resized", "flip": True, "color": True, "local": 3, "local_size": 8, "mean": [0.0], "std": [1.0]}
    )
    for channels in (1, 3):
        made = drawn(s, pictures(5, channels, (40, 30)))
        assert made["views"].shape == (10, channels, 24, 24)
        assert made["local"].shape == (15, channels, 8, 8)
        for name in ("views", "local"):
            assert 0 <= float(made[name].min()) <= float(made[name].max()) <= 1
    assert "local" not in drawn(settings(), pictures())


def test_the_first_view_is_blurred_and_only_the_second_solarized() -> None:
    """White pictures with one black column: a blurred view has grays, a solarized one is black."""
    images = torch.ones(60, 3, 24, 24)
    images[:, :, :, 12] = 0
    s = settings({"color": True, "mean": [0.0], "std": [1.0]})
    first, second = drawn(s, images)["views"].chunk(2)
    black = [float((view[:, :, :, 0].amax((1, 2)) < 0.4).float().mean()) for view in (first, second)]
    assert black[0] == 0
    assert 0.05 < black[1] < 0.4
    spread = [float((view.flatten(2).std(2).amax(1)).median()) for view in (first, second)]
    assert spread[0] < 0.9 * spread[1]


def test_equal_seeds_make_equal_views_and_others_other_ones() -> None:
    s, images = settings({"noise": 0.1}), pictures()
    once, again, other = drawn(s, images), drawn(s, images), drawn(s, images, seed=1)
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert not torch.equal(once["views"], other["views"])


# corruption


def test_zeroed_and_replaced_blocks_cover_their_shares_of_all_channels() -> None:
    s, images = settings(drop=0.5), pictures(200, channels=3)
    made = drawn(s, images)
    share = made["mask"].float().mean((1, 2))
    block = (8 / 24) ** 2  # the largest block, rounded to patches
    for kind, least in ((~made["replaced"], 0.5), (made["replaced"], 0.3)):
        assert least <= float(share[kind].min())
        assert float(share[kind].max()) < least + block
    seen = corrupted(made)
    assert not seen[~made["replaced"]].masked_select(made["mask"][~made["replaced"]][:, None]).any()
    untouched = ~made["mask"][:, None].expand_as(seen)
    assert torch.equal(seen[untouched], made["views"][untouched])
    taken = torch.where(made["mask"][:, None], made["views"][made["partner"]], made["views"])
    assert torch.equal(seen[made["replaced"]], taken[made["replaced"]])


def test_replacements_come_from_the_same_view_of_other_pictures() -> None:
    partner = drawn(settings(), pictures(50))["partner"]
    assert (partner[:50] < 50).all()
    assert (partner[50:] >= 50).all()
    assert (partner != torch.arange(100)).any()


def test_blocks_are_aligned_with_patches() -> None:
    mask = drawn(settings(), pictures(30))["mask"]
    cells = mask.reshape(60, 6, 4, 6, 4)
    assert torch.equal(cells.amax((2, 4)), cells.amin((2, 4)))


def test_the_ablation_corrupts_nothing() -> None:
    made = drawn(settings(corrupt=False), pictures())
    assert torch.equal(corrupted(made), made["views"])
    assert not made["mask"].any()


# the fixed view


def test_windows_are_judged_by_their_middle() -> None:
    s = settings()
    columns = {
        "image": pictures(2),
        "instances": torch.arange(32 * 32).reshape(1, 32, 32).expand(2, -1, -1),
        "parts": torch.arange(64).reshape(1, 8, 8).expand(2, -1, -1),
    }
    seen = fixed_view(s, columns)
    assert torch.equal(seen["view"], normalized(s, columns["image"][:, :, 4:28, 4:28]))
    assert torch.equal(seen["instances"], columns["instances"][:, 4:28, 4:28])
    assert seen["parts"][0].tolist() == [row * 8 + column for row in range(1, 7) for column in range(1, 7)]
    again = fixed_view(s, columns)
    assert torch.equal(seen["view"], again["view"])


def test_other_pictures_are_judged_whole_with_masks_that_divide_into_patches() -> None:
    s = settings({"crop": "resized"})
    instances = torch.zeros(2, 45, 50, dtype=torch.int32)
    instances[:, :, 25:] = 7
    seen = fixed_view(s, {"image": pictures(2, size=(45, 50)), "instances": instances})
    assert seen["view"].shape == (2, 1, 24, 24)
    assert seen["instances"].shape == (2, 48, 48)
    assert set(seen["instances"].unique().tolist()) == {0, 7}
    assert float((seen["instances"] > 0).float().mean()) == 0.5
    assert "parts" not in seen


class _Task:
    def __init__(self, **columns: tuple[int, ...]) -> None:
        self.columns = {name: ("float32", shape) for name, shape in columns.items()}


@pytest.mark.parametrize(
    ("task", "views", "message"),
    [
        (_Task(audio=(100,)), {}, "pictures in a column"),
        (_Task(image=(1, 20, 32)), {}, "24 pixels or more"),
        (_Task(image=(3, 32, 32)), {"mean": [0.5, 0.5]}, "2 channels"),
    ],
)
def test_data_that_cannot_be_cut_into_views_is_refused(task: Any, views: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_pictures(settings(views), task)
