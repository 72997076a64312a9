"""Every operation against values computed by hand or by Python's colorsys, and what is drawn."""

from __future__ import annotations

import colorsys
import math

import pytest
import torch
from torch import Tensor

from fedlab.distill import photometric
from fedlab.distill.photometric import Recipe, alter

ALL = Recipe(jitter_probability=0.8, gray_probability=0.2, blur_probability=0.5, solarize_probability=0.5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 6, channels: int = 3, seed: int = 1) -> Tensor:
    return torch.rand(n, channels, 9, 7, generator=generator(seed))


def pixel(*values: float) -> Tensor:
    return torch.tensor(values).reshape(1, -1, 1, 1)


# known answers


def test_luma_weighs_green_most() -> None:
    assert photometric.luma(pixel(1.0, 0.0, 0.0)).item() == pytest.approx(0.299)
    assert photometric.luma(pixel(0.0, 1.0, 0.0)).item() == pytest.approx(0.587)
    assert photometric.luma(pixel(0.2, 0.4, 0.6)).item() == pytest.approx(0.0598 + 0.2348 + 0.0684)
    gray = images(channels=1)
    assert photometric.luma(gray) is gray


def test_brightness_multiplies_and_is_cut_off_at_one() -> None:
    found = photometric.brightness(torch.cat([pixel(0.2, 0.4, 0.6)] * 2), torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(found.flatten(1), torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.8, 1.0]]))


def test_contrast_is_around_the_mean_gray_of_the_image() -> None:
    x = torch.tensor([0.2, 0.6]).expand(1, 3, 1, 2)  # mean gray 0.4
    torch.testing.assert_close(photometric.contrast(x, torch.tensor([0.5]))[0, 1, 0], torch.tensor([0.3, 0.5]))
    torch.testing.assert_close(photometric.contrast(x, torch.tensor([3.0]))[0, 2, 0], torch.tensor([0.0, 1.0]))
    colored = torch.cat([pixel(1.0, 0.0, 0.0), pixel(0.0, 0.0, 1.0)], dim=3)  # mean gray (0.299 + 0.114) / 2
    flat = photometric.contrast(colored, torch.tensor([0.0]))
    torch.testing.assert_close(flat, torch.full((1, 3, 1, 2), 0.2065))


def test_saturation_is_around_the_gray_of_the_pixel() -> None:
    x = pixel(0.2, 0.4, 0.6)  # gray 0.363
    torch.testing.assert_close(photometric.saturation(x, torch.tensor([0.0])), pixel(0.363, 0.363, 0.363))
    torch.testing.assert_close(photometric.saturation(x, torch.tensor([0.5])), pixel(0.2815, 0.3815, 0.4815))
    torch.testing.assert_close(photometric.saturation(x, torch.tensor([2.0])), pixel(0.037, 0.437, 0.837))


def test_hue_turns_colors_as_the_standard_library_does() -> None:
    x = images(4)
    x[0, :, 0] = 0.3  # gray pixels
    shifts = torch.tensor([0.1, -0.25, 0.5, 0.0])
    found = photometric.hue(x, shifts)
    for row in range(4):
        for place in ((0, 0), (3, 2), (8, 6)):
            h, s, v = colorsys.rgb_to_hsv(*x[row][(slice(None), *place)].tolist())
            expected = colorsys.hsv_to_rgb((h + float(shifts[row])) % 1, s, v)
            assert found[row][(slice(None), *place)].tolist() == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(photometric.hue(pixel(1.0, 0.0, 0.0), torch.tensor([1 / 3])), pixel(0.0, 1.0, 0.0))
    torch.testing.assert_close(photometric.hue(pixel(0.0, 0.0, 1.0), torch.tensor([-1 / 3])), pixel(0.0, 1.0, 0.0))


def test_blur_spreads_a_point_as_a_gaussian_and_keeps_flat_images() -> None:
    x = torch.zeros(2, 1, 13, 13)
    x[:, :, 6, 6] = 1
    found = photometric.gaussian_blur(x, torch.tensor([1.0, 0.5]), radius=6)
    for row, σ in enumerate((1.0, 0.5)):
        weights = [math.exp(-(k**2) / (2 * σ**2)) for k in range(-6, 7)]
        for y, across in ((6, 6), (6, 7), (5, 8)):
            expected = weights[y] * weights[across] / sum(weights) ** 2
            assert float(found[row, 0, y, across]) == pytest.approx(expected, abs=1e-6)
    flat = torch.full((1, 3, 4, 4), 0.7)
    torch.testing.assert_close(photometric.gaussian_blur(flat, torch.tensor([2.0]), radius=6), flat)


def test_solarize_inverts_from_the_threshold_on() -> None:
    torch.testing.assert_close(photometric.solarize(pixel(0.4, 0.5, 0.9)), pixel(0.4, 0.5, 0.1))
    torch.testing.assert_close(photometric.solarize(pixel(0.4, 0.5, 0.9), 0.8), pixel(0.4, 0.5, 0.1))
    torch.testing.assert_close(photometric.solarize(pixel(0.2, 0.25, 0.3), 0.25), pixel(0.2, 0.75, 0.7))


def test_gray_images_have_no_hue_and_no_saturation() -> None:
    x = images(channels=1)
    amounts = torch.full((6,), 0.3)
    assert photometric.hue(x, amounts) is x
    torch.testing.assert_close(photometric.saturation(x, amounts), x)
    torch.testing.assert_close(photometric.random_grayscale(x, generator(), probability=1), x)


# draws


@pytest.mark.parametrize("channels", [1, 3])
def test_a_recipe_keeps_shape_and_range_and_leaves_its_input_alone(channels: int) -> None:
    x = images(40, channels)
    before = x.clone()
    found = alter(x, ALL, generator())
    assert found.shape == x.shape
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert torch.equal(x, before)
    assert not torch.equal(found, x)
    assert torch.equal(alter(x, Recipe(), generator()), x)


def test_what_happens_to_an_image_depends_on_its_place_alone() -> None:
    x, others = images(8), images(8, seed=2)
    whole = alter(x, ALL, generator())
    others[3] = x[3]
    torch.testing.assert_close(alter(others, ALL, generator())[3], whole[3])
    steps = [
        lambda some: photometric.color_jitter(some, (0.4, 0.4, 0.2, 0.1), generator()),
        lambda some: photometric.random_blur(some, (0.1, 2.0), generator(), probability=0.5),
        lambda some: photometric.random_grayscale(some, generator(), probability=0.5),
        lambda some: photometric.random_solarize(some, generator(), probability=0.5),
    ]
    for step in steps:
        torch.testing.assert_close(step(x[:3]), step(x)[:3])


def test_draws_depend_on_the_generator_alone() -> None:
    first, again, other = (alter(images(), ALL, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_each_operation_happens_as_often_as_asked() -> None:
    x = images(600)
    for changed in (
        photometric.color_jitter(x, (0.4, 0.4, 0.2, 0.1), generator(), probability=0.3),
        photometric.random_grayscale(x, generator(), probability=0.3),
        photometric.random_blur(x, (0.5, 2.0), generator(), probability=0.3),
        photometric.random_solarize(x, generator(), probability=0.3),
    ):
        share = (changed != x).any(dim=3).any(dim=2).any(dim=1).float().mean()
        assert float(share) == pytest.approx(0.3, abs=0.06)


def test_factors_are_drawn_from_their_range() -> None:
    gray = torch.full((2000, 1, 1, 1), 0.5)
    found = photometric.color_jitter(gray, (0.4, 0.0, 0.0, 0.0), generator()).flatten() / 0.5
    assert (float(found.min()), float(found.max())) == pytest.approx((0.6, 1.4), abs=0.01)
    assert float(found.mean()) == pytest.approx(1, abs=0.02)


def test_a_strength_above_one_makes_no_negative_factor() -> None:
    white = torch.ones(500, 1, 1, 1)
    found = photometric.color_jitter(white, (2.0, 0.0, 0.0, 0.0), generator())
    assert float((found == 0).float().mean()) < 0.02  # a factor from U(-1, 3) would make a quarter of them black


def test_hues_are_turned_both_ways() -> None:
    red = pixel(1.0, 0.0, 0.0).expand(500, 3, 1, 1)
    found = photometric.color_jitter(red, (0.0, 0.0, 0.0, 0.1), generator()).flatten(1)
    hues = [colorsys.rgb_to_hsv(*color)[0] for color in found.tolist()]
    turned = [hue - 1 if hue > 0.5 else hue for hue in hues]
    assert (min(turned), max(turned)) == pytest.approx((-0.1, 0.1), abs=0.005)


def test_every_image_is_blurred_by_its_own_deviation_out_to_three_of_the_largest() -> None:
    x = torch.zeros(20, 1, 17, 17)
    x[:, :, 8, 8] = 1
    drawn = torch.rand(20, 2, generator=generator())
    found = photometric.random_blur(x, (0.5, 2.0), generator(), probability=1)
    expected = photometric.gaussian_blur(x, 0.5 + 1.5 * drawn[:, 1], radius=6)
    torch.testing.assert_close(found, expected)
    assert float(found[:, 0, 8, 14].max()) > 0
    assert float(found[:, 0, 8, 15].max()) == 0


def test_a_recipe_is_all_of_its_steps_in_order() -> None:
    x, recipe = images(30), Recipe((0.3, 0.3, 0.3, 0.1), 0.5, 0.5, (0.5, 1.0), 0.5, 0.5, threshold=0.7)
    rng = generator()
    expected = photometric.color_jitter(x, (0.3, 0.3, 0.3, 0.1), rng, probability=0.5)
    expected = photometric.random_grayscale(expected, rng, probability=0.5)
    expected = photometric.random_blur(expected, (0.5, 1.0), rng, probability=0.5)
    expected = photometric.random_solarize(expected, rng, probability=0.5, threshold=0.7)
    assert torch.equal(alter(x, recipe, generator()), expected)


def test_the_order_of_the_changes_is_drawn_too() -> None:
    """Bright and then rich in contrast is not the same as the other way round where values are cut off."""
    x = torch.tensor([0.1, 0.9]).expand(300, 1, 1, 2)
    drawn = torch.rand(300, 9, generator=generator())
    factor = 0.1 + 1.8 * drawn[:, 5:7]
    bright, strong = factor[:, 0], factor[:, 1]
    one = photometric.contrast(photometric.brightness(x, bright), strong)
    two = photometric.brightness(photometric.contrast(x, strong), bright)
    found = photometric.color_jitter(x, (0.9, 0.9, 0.0, 0.0), generator())
    first, second = ((found - way).abs().amax((1, 2, 3)) < 1e-6 for way in (one, two))
    assert bool((first | second).all())
    assert int((first & ~second).sum()) > 60
    assert int((second & ~first).sum()) > 60


@pytest.mark.parametrize(
    "wrong", [torch.rand(2, 2, 4, 4), torch.rand(3, 4, 4), 2 * torch.ones(1, 3, 4, 4), -pixel(0.1)]
)
def test_images_that_cannot_be_changed_are_refused(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match=r"channels|values in"):
        alter(wrong, ALL, generator())
