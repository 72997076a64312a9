from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from fedlab.data.corruptions import CORRUPTIONS, corrupt
from fedlab.data.files.images import as_float
from fedlab.data.generated import digits
from fedlab.errors import DataError

NINETEEN = {
    "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "gaussian_blur", "glass_blur", "defocus_blur",
    "motion_blur", "zoom_blur", "fog", "frost", "snow", "spatter", "contrast", "brightness", "saturate",
    "jpeg_compression", "pixelate", "elastic_transform",
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Color pictures with edges and textures, 32×32."""
    rng = np.random.default_rng(0)
    return digits.synth(np.arange(40) % 10, 32, rng)


def test_they_are_those_of_cifar_10_c() -> None:
    assert set(CORRUPTIONS) == NINETEEN


@pytest.mark.parametrize("name", CORRUPTIONS)
class TestEveryCorruption:
    @pytest.mark.parametrize(
        "shape", [(3, 32, 32), (1, 28, 28), (3, 20, 37), (1, 41, 16), (3, 96, 96), (3, 8, 8), (1, 3, 3)]
    )
    @pytest.mark.parametrize("kind", [np.uint8, np.float32])
    def test_shape_type_and_range_are_kept(self, name: str, shape: tuple[int, ...], kind: type) -> None:
        images = np.random.default_rng(0).integers(0, 256, (2, *shape)).astype(np.uint8)
        images = images if kind is np.uint8 else as_float(images)
        before = images.copy()
        result = corrupt(images, name, 5, 0, np.arange(2))
        assert (result.shape, result.dtype) == (images.shape, images.dtype)
        assert np.isfinite(result).all()
        assert 0 <= result.min() <= result.max() <= (255 if kind is np.uint8 else 1)
        assert np.array_equal(images, before)

    def test_an_image_is_corrupted_alike_in_every_batch(self, name: str, pictures: np.ndarray) -> None:
        ids = np.arange(40) + 100
        whole = corrupt(pictures, name, 4, 3, ids)
        order = np.array([7, 2, 9])
        assert np.array_equal(corrupt(pictures[order], name, 4, 3, ids[order]), whole[order])
        assert np.array_equal(corrupt(pictures[:1], name, 4, 3, ids[:1]), whole[:1])

    def test_severity_grows(self, name: str, pictures: np.ndarray) -> None:
        clean = as_float(pictures)
        levels = [
            float(np.abs(as_float(corrupt(pictures, name, level, 0, np.arange(40))) - clean).mean())
            for level in range(1, 6)
        ]
        assert min(levels) > 0.001
        # the published parameters of these five change their kind of damage, not only its amount
        if name not in ("elastic_transform", "saturate", "spatter", "glass_blur", "frost"):
            assert levels[0] < levels[2] < levels[4]
            assert all(after > 0.95 * before for before, after in pairwise(levels))

    def test_no_images_are_fine(self, name: str) -> None:
        assert corrupt(np.empty((0, 3, 8, 8), np.uint8), name, 3, 0, np.empty(0, np.int64)).shape == (0, 3, 8, 8)

    def test_flat_and_extreme_images_stay_finite(self, name: str) -> None:
        for value in (0.0, 0.5, 1.0):
            flat = np.full((1, 3, 16, 16), value, np.float32)
            assert np.isfinite(corrupt(flat, name, 5, 0, np.zeros(1, int))).all()


@pytest.mark.parametrize("name", ["gaussian_noise", "fog", "snow", "motion_blur", "elastic_transform"])
def test_random_ones_depend_on_seed_and_image(name: str, pictures: np.ndarray) -> None:
    same = np.repeat(pictures[:1], 2, axis=0)
    one, other = corrupt(same, name, 3, 0, np.array([0, 1]))
    assert not np.array_equal(one, other)
    assert not np.array_equal(corrupt(same[:1], name, 3, 1, np.array([0]))[0], one)


def test_known_answers() -> None:
    ramp = np.linspace(0.2, 0.8, 64, dtype=np.float32).reshape(1, 1, 8, 8)
    ids = np.zeros(1, int)
    assert np.allclose(corrupt(ramp, "contrast", 5, 0, ids), (ramp - 0.5) * 0.15 + 0.5, atol=1e-6)
    assert np.allclose(corrupt(ramp, "brightness", 2, 0, ids), np.minimum(ramp + 0.1, 1), atol=1e-6)
    gray = np.full((1, 3, 40, 40), 0.5, np.float32)
    assert corrupt(gray, "gaussian_noise", 5, 0, ids).std() == pytest.approx(0.1, abs=0.005)
    assert (corrupt(gray, "impulse_noise", 5, 0, ids) != 0.5).mean() == pytest.approx(0.07, abs=0.01)
    for name in ("gaussian_blur", "defocus_blur", "zoom_blur", "motion_blur", "glass_blur", "pixelate"):
        assert np.allclose(corrupt(gray, name, 3, 0, ids), 0.5, atol=0.01)
    color = np.tile(np.array([0.8, 0.4, 0.4], np.float32)[:, None, None], (1, 1, 4, 4))
    assert np.allclose(corrupt(color, "saturate", 1, 0, ids)[0, :, 0, 0], [0.8, 0.68, 0.68], atol=1e-6)


def test_blur_grows_with_the_image() -> None:
    point = np.zeros((1, 1, 96, 96), np.float32)
    point[..., 48, 48] = 1
    assert (corrupt(point, "defocus_blur", 5, 0, np.zeros(1, int)) > 1e-4).sum() > 50


@pytest.mark.parametrize(
    ("images", "name", "severity", "hint"),
    [
        (np.zeros((1, 3, 8, 8), np.uint8), "fogg", 3, "did you mean 'fog'"),
        (np.zeros((1, 3, 8, 8), np.uint8), "fog", 0, "1 to 5"),
        (np.zeros((1, 3, 8, 8), np.uint8), "fog", 6, "1 to 5"),
        (np.zeros((1, 2, 8, 8), np.uint8), "fog", 3, "for pictures only"),
        (np.zeros((1, 3, 8, 8), np.float64), "fog", 3, "for pictures only"),
        (np.zeros((3, 8, 8), np.uint8), "fog", 3, "for pictures only"),
        (np.zeros((2, 3, 8, 8), np.uint8), "fog", 3, "one for each"),
    ],
)  # fmt: skip
def test_what_cannot_be_corrupted_is_refused(images: np.ndarray, name: str, severity: int, hint: str) -> None:
    with pytest.raises(DataError, match=hint):
        corrupt(images, name, severity, 0, np.zeros(1, int))
