from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from fedlab.distill.views import Views, crop_resize, draw_boxes, draw_views, random_resized_crop, take_views


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_boxes_lie_inside_and_have_the_area_and_aspect_asked_for() -> None:
    boxes = draw_boxes(4000, (64, 48), (0.08, 1.0), generator())
    top, left, height, width = boxes.unbind(1)
    assert (boxes[:, :2] >= 0).all()
    assert (top + height <= 64).all()
    assert (left + width <= 48).all()
    share, aspect = (height * width) / (64 * 48), width / height
    assert share.min() > 0.07  # rounding to whole pixels
    assert share.max() > 0.9
    assert aspect.min() > 0.65
    assert aspect.max() < 1.5
    assert top.max() > 40
    assert (draw_boxes(4000, (64, 48), (0.08, 1.0), generator()) == boxes).all()


def test_a_box_is_the_first_attempt_that_fits() -> None:
    """Area and aspect ratio are uniform (the latter in its logarithm), and so is the corner among those that fit."""
    height, width, count = 20, 30, 300
    boxes = draw_boxes(count, (height, width), (0.7, 1.0), generator(5)).tolist()
    shares, ratios, ys, xs = torch.rand(4, count, 10, generator=generator(5), dtype=torch.float64).tolist()
    expected = []
    for row in range(count):
        for share, ratio, y, x in zip(shares[row], ratios[row], ys[row], xs[row], strict=True):
            area = height * width * (0.7 + 0.3 * share)
            aspect = math.exp(math.log(3 / 4) + ratio * math.log(16 / 9))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h <= height and w <= width:
                expected.append([math.floor(y * (height - h + 1)), math.floor(x * (width - w + 1)), h, w])
                break
        else:
            expected.append([0, 1, 20, 27])
    assert boxes == expected
    assert [0, 1, 20, 27] in expected


def test_few_boxes_fall_back_to_the_whole() -> None:
    """About a third of the attempts fit here, so that ten of them hardly ever all fail."""
    boxes = draw_boxes(2000, (64, 64), (0.8, 1.0), generator())
    assert float((boxes == torch.tensor([0, 0, 64, 64])).all(1).float().mean()) < 0.05


def test_half_of_the_views_are_mirrored() -> None:
    views = draw_views(4000, (8, 8), generator())
    assert float(views.flips.float().mean()) == pytest.approx(0.5, abs=0.03)


def test_a_whole_picture_is_not_cropped() -> None:
    """At scale (1, 1) no aspect but 1 fits, and ten failures fall back to the whole."""
    assert (draw_boxes(200, (16, 16), (1.0, 1.0), generator()) == torch.tensor([0, 0, 16, 16])).all()


def test_a_picture_too_wide_falls_back_to_its_central_part() -> None:
    boxes = draw_boxes(5, (3, 300), (1.0, 1.0), generator())
    assert (boxes == torch.tensor([0, 148, 3, 4])).all()


def test_the_gradient_of_a_view_is_zero_outside_its_box() -> None:
    x = torch.randn(2, 3, 12, 12, requires_grad=True)
    box = torch.tensor([2, 3, 5, 6])
    crop_resize(x, box, (12, 12)).square().sum().backward()
    assert x.grad is not None
    outside = x.grad.clone()
    outside[:, :, 2:7, 3:9] = 0
    assert (outside == 0).all()
    assert (x.grad[:, :, 2:7, 3:9] != 0).all()


def test_a_crop_is_a_bilinear_resize_of_the_cut() -> None:
    x = torch.randn(2, 3, 12, 12)
    expected = F.interpolate(x[:, :, 1:7, 2:8], size=(12, 12), mode="bilinear", align_corners=False)
    assert torch.equal(crop_resize(x, torch.tensor([1, 2, 6, 6]), (12, 12)), expected)
    assert torch.equal(crop_resize(x, torch.tensor([0, 0, 12, 12]), (12, 12)), x)


def test_each_image_has_its_own_view() -> None:
    x = torch.randn(2, 1, 8, 8)
    views = Views(torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.25, 0.5, 0.5, 0.5]]), torch.tensor([True, False]))
    seen = take_views(x, views)
    torch.testing.assert_close(seen[0], x[0].flip(2), rtol=0, atol=1e-5)
    whole = crop_resize(x[1:], torch.tensor([2, 4, 4, 4]), (8, 8))
    torch.testing.assert_close(seen[1:, :, 1:-1, 1:-1], whole[:, :, 1:-1, 1:-1], rtol=0, atol=1e-5)


def test_a_shift_moves_by_whole_pixels_and_repeats_the_edge() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    down = take_views(x, Views(torch.tensor([[-0.25, 0.0, 1.0, 1.0]]), torch.tensor([False])))
    torch.testing.assert_close(down[0, 0], x[0, 0, [0, 0, 1, 2]], rtol=0, atol=1e-5)
    views = draw_views(500, (4, 4), generator(), scale=(1.0, 1.0), flip=False, shift=1)
    assert set((views.boxes[:, :2] * 4).flatten().tolist()) == {-1.0, 0.0, 1.0}
    assert (views.boxes[:, 2:] == 1).all()
    assert not views.flips.any()


def test_nothing_drawn_is_the_image_itself() -> None:
    x = torch.randn(3, 2, 9, 7)
    views = draw_views(3, (9, 7), generator(), scale=(1.0, 1.0), flip=False)
    torch.testing.assert_close(take_views(x, views), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("flip", [False, True])
def test_views_are_a_function_of_the_generator(flip: bool) -> None:
    first, second = (draw_views(50, (16, 16), generator(), flip=flip) for _ in range(2))
    assert torch.equal(first.boxes, second.boxes)
    assert torch.equal(first.flips, second.flips)
    assert bool(first.flips.any()) == flip


def test_the_crop_keeps_most_of_the_picture_and_never_flips_it() -> None:
    ramp = torch.linspace(-1, 1, 32).expand(200, 3, 32, 32)
    cropped = random_resized_crop(ramp, 0.9, torch.Generator().manual_seed(0))
    slope = cropped[:, 0, 16, 24] - cropped[:, 0, 16, 8]
    assert (slope > 0).all()
    share = slope / (ramp[0, 0, 16, 24] - ramp[0, 0, 16, 8])
    assert share.min() >= 0.85  # a width below √(0.9 · 3/4) fits no height of at most 1 with that area
    assert share.max() <= 1.0001
    assert share.std() > 0.01
    assert torch.equal(cropped, random_resized_crop(ramp, 0.9, torch.Generator().manual_seed(0)))


def test_the_whole_picture_comes_back_unchanged() -> None:
    images = torch.randn(2, 3, 16, 16)
    assert torch.allclose(random_resized_crop(images, 1.0, torch.Generator().manual_seed(0)), images, atol=1e-5)


def test_the_crop_is_bicubic() -> None:
    """A bicubic resize overshoots at an edge, and a bilinear one never does."""
    step = torch.cat([torch.zeros(50, 1, 16, 8), torch.ones(50, 1, 16, 8)], dim=3)
    cropped = random_resized_crop(step, 0.5, generator())
    assert 1.01 < float(cropped.max()) < 1.2


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_views_of_another_size_are_resized_crops(mode: str) -> None:
    """Away from the border of the crop, where a resize repeats the crop's edge and a view sees the picture beyond."""
    x = torch.randn(2, 3, 24, 24)
    views = Views(torch.tensor([[0.25, 0.5, 0.5, 0.5]] * 2), torch.tensor([False, True]))
    seen = take_views(x, views, (24, 36), mode)  # type: ignore[arg-type]
    expected = F.interpolate(x[:, :, 6:18, 12:24], size=(24, 36), mode=mode, align_corners=False)
    assert seen.shape == (2, 3, 24, 36)
    torch.testing.assert_close(seen[0, :, 6:-6, 9:-9], expected[0, :, 6:-6, 9:-9], rtol=0, atol=1e-4)
    torch.testing.assert_close(seen[1, :, 6:-6, 9:-9], expected[1].flip(2)[:, 6:-6, 9:-9], rtol=0, atol=1e-4)


def test_a_view_does_not_depend_on_the_other_images() -> None:
    views = draw_views(4, (16, 16), generator(), scale=(0.2, 1.0))
    x = torch.randn(4, 3, 16, 16)
    other = torch.cat([torch.zeros(1, 3, 16, 16), x[1:2], torch.ones(2, 3, 16, 16)])
    torch.testing.assert_close(
        take_views(x, views, (8, 8), "bicubic")[1], take_views(other, views, (8, 8), "bicubic")[1]
    )
