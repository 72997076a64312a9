"""CRFR-P: the exact number of hidden patches, the covered region, the share of the others (checks 1 to 5)."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fedlab.data.regions import BACKGROUND, HAIR, LEFT_EYE, MIRRORED, NOSE, RIGHT_EYE, SKIN, template
from fedlab.methods.fsfm.masks import COVERABLE, GROUPS, Masking, Masks, draw_masks, patch_groups
from fedlab.methods.fsfm.views import moved
from tests.methods.fsfm.conftest import Lab

PATCH, N, T = 16, 196, 147


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def faces(count: int = 1) -> Tensor:
    """The template at the paper's size, moved a little for each face."""
    one = torch.from_numpy(template(224, 224))
    return torch.stack([one.roll((3 * index, 5 * index), (0, 1)) for index in range(count)])


def named(groups: Tensor, name: str) -> Tensor:
    return groups[:, GROUPS.index(name)]


def drawn(groups: Tensor, seed: int = 0, **settings: object) -> Masks:
    return draw_masks(groups, T, generator(seed), **settings)  # type: ignore[arg-type]  # settings by name


@pytest.mark.parametrize("masking", ["crfr_p", "crfr_r", "frp", "random"])
def test_exactly_the_wanted_number_of_patches_is_hidden(masking: Masking) -> None:
    groups = patch_groups(faces(4), PATCH)
    for seed, covered in itertools.product(range(3), (None, *range(COVERABLE))):
        masks = drawn(groups, seed, masking=masking, covered=covered)
        assert (masks.masked.sum(1) == T).all()
        assert not (masks.region & ~masks.masked).any()
        assert masks.visible.shape == (4, N - T)
        assert not masks.masked.gather(1, masks.visible).any()
    small = draw_masks(patch_groups(faces(4)[:, ::7, ::7], 4), 48, generator(), masking=masking)
    assert (small.masked.sum(1) == 48).all()


def test_the_covered_region_is_hidden_wholly_and_the_others_in_proportion() -> None:
    groups = patch_groups(faces(1), PATCH)
    nose = named(groups, "nose")
    share, hidden = (T - int(nose.sum())) / (N - int(nose.sum())), torch.zeros(N)
    draws = 200
    for seed in range(draws):
        masks = drawn(groups, seed, covered=GROUPS.index("nose"))
        assert torch.equal(masks.region, nose)
        assert (masks.masked | ~nose).all()
        hidden += masks.masked[0]
    used = nose.clone()
    for index, name in enumerate(GROUPS):
        mine = groups[:, index] & ~used
        used |= mine
        count = int(mine.sum())
        if name != "nose" and count:
            found = float(hidden[mine[0]].sum()) / draws
            assert abs(found - share * count) <= 1, name


def test_patches_of_several_groups_count_for_the_first_of_them() -> None:
    """Brows, eyes and boundary overlap here: counted twice, a group would lose more than its share."""
    groups = torch.zeros(1, len(GROUPS), N, dtype=torch.bool)
    groups[:, 0, :40] = True
    groups[:, 1, 20:60] = True
    groups[:, 7] = True
    masks = drawn(groups, covered=2)
    share = T / N
    for part in (slice(0, 40), slice(40, 60), slice(60, N)):
        size = len(range(N)[part])
        assert abs(int(masks.masked[0, part].sum()) - share * size) <= 2


def test_a_region_that_is_too_large_is_shown_in_part() -> None:
    groups = torch.zeros(2, len(GROUPS), N, dtype=torch.bool)
    groups[:, 5, :160] = True
    groups[:, 7, 160:] = True
    masks = drawn(groups, covered=5)
    assert torch.equal(masks.masked, masks.region)
    assert (masks.masked.sum(1) == T).all()
    assert not masks.masked[:, 160:].any()
    assert not torch.equal(masks.masked[0], masks.masked[1])


def test_a_region_that_a_face_lacks_covers_nothing() -> None:
    blank = torch.full((2, 224, 224), SKIN)
    masks = drawn(patch_groups(blank, PATCH), covered=GROUPS.index("nose"))
    assert not masks.region.any()
    assert (masks.masked.sum(1) == T).all()


def test_skin_and_background_are_never_covered_and_every_other_group_is() -> None:
    groups = torch.eye(len(GROUPS), dtype=torch.bool)[None].repeat_interleave(24, dim=2).expand(64, -1, -1)
    masks = draw_masks(groups, 150, generator())
    which = {int(row.nonzero()[0, 0]) // 24 for row in masks.region}
    assert which == set(range(COVERABLE))
    together = draw_masks(groups, 150, generator(), one_region=True)
    assert (together.region == together.region[:1]).all()


def test_the_settings_decide_how_regions_are_drawn_and_what_is_masked(lab: Callable[..., Lab]) -> None:
    """The faces of the batch have the same map, so that only the draw can make their covered regions differ."""
    assert (together := lab(region_draw="batch").batch(8)["region"]).any()
    assert (together == together[:1]).all()
    each = lab().batch(8)["region"]
    assert not (each == each[:1]).all()
    plain = lab(masking="random").batch(8)
    assert not plain["region"].any()
    assert (plain["masked"].sum(1) == 12).all()
    assert plain["visible"].shape == (8, 4)


def test_one_pixel_puts_a_patch_into_a_group() -> None:
    regions = torch.full((1, 224, 224), BACKGROUND)
    regions[0, 100, 37] = NOSE
    nose = named(patch_groups(regions, PATCH), "nose")[0]
    assert nose.nonzero().flatten().tolist() == [100 // PATCH * 14 + 37 // PATCH]


def test_the_boundary_is_where_skin_meets_hair_or_background_in_a_patch() -> None:
    regions = torch.full((1, 32, 32), SKIN)
    assert not named(patch_groups(regions, PATCH), "boundary").any()
    regions[0, 0, 0], regions[0, 0, 31], regions[0, 16:, :16] = HAIR, BACKGROUND, HAIR
    assert named(patch_groups(regions, PATCH), "boundary")[0].tolist() == [True, True, False, False]


def test_patches_are_numbered_row_by_row() -> None:
    regions = torch.zeros(1, 8, 12, dtype=torch.long)
    regions[0, 5, 9] = LEFT_EYE
    assert named(patch_groups(regions, 4), "eyes").nonzero().tolist() == [[0, 5]]


# random views: face and map together


def test_a_mirrored_face_has_a_mirrored_map_in_which_left_and_right_change_their_names() -> None:
    regions = faces(8)
    images = regions[:, None].float() / 10
    seen, maps = moved(images, regions, True, 1.0, generator(1))
    flipped = (maps != regions).flatten(1).any(1)
    assert 0 < int(flipped.sum()) < 8
    names = torch.tensor(MIRRORED)
    assert torch.equal(maps[flipped], names[regions[flipped].long().flip(2)])
    assert torch.equal(maps[~flipped], regions[~flipped].long())
    torch.testing.assert_close(seen[flipped], images[flipped].flip(3), atol=1e-4, rtol=0)
    # somebody's right eye stays on the same side of the nose as seen by the person
    assert (maps == RIGHT_EYE).nonzero()[:, 2].float().mean() < (maps == LEFT_EYE).nonzero()[:, 2].float().mean()


def test_a_crop_moves_face_and_map_alike_and_none_is_the_default() -> None:
    regions = faces(4)
    images = torch.stack([regions == SKIN] * 3, dim=1).float()
    seen, maps = moved(images, regions, False, 0.5, generator(2))
    assert ((seen[:, 0] > 0.5) == (maps == SKIN)).float().mean() > 0.97
    assert not torch.equal(maps, regions.long())
    assert moved(images, regions, False, 1.0, generator())[1] is regions
