from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedlab.data.images import as_float, decode, read_image, resize, to_channels, to_uint8
from fedlab.errors import DataError

COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)


class TestDecode:
    def test_colours_and_grey(self) -> None:
        picture = Image.fromarray(COLOURS)
        assert np.array_equal(decode(picture, None, 3), COLOURS.transpose(2, 0, 1))
        assert decode(picture, None, 1).tolist() == [[[76, 150], [29, 255]]]  # ITU-R 601 luma

    def test_a_palette_is_looked_up(self) -> None:
        picture = Image.fromarray(COLOURS).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
        assert np.array_equal(decode(picture, None, 3), COLOURS.transpose(2, 0, 1))

    def test_transparency_is_dropped(self) -> None:
        opaque = np.dstack([COLOURS, np.array([[0, 128], [255, 1]], np.uint8)])
        assert np.array_equal(decode(Image.fromarray(opaque, "RGBA"), None, 3), COLOURS.transpose(2, 0, 1))
        assert decode(Image.fromarray(opaque[..., :2], "LA"), None, 1).shape == (1, 2, 2)

    def test_sixteen_bits_lose_the_lower_byte(self) -> None:
        deep = Image.fromarray(np.array([[0, 256, 65535, 128]], np.uint16))
        assert decode(deep, None, 1).tolist() == [[[0, 1, 255, 0]]]
        assert decode(deep, None, 3)[:, 0, 2].tolist() == [255] * 3

    @pytest.mark.parametrize("kind", [np.int32, np.float32])
    def test_pixels_without_a_known_range_are_refused(self, kind: type) -> None:
        with pytest.raises(ValueError, match="no known range"):
            decode(Image.fromarray(np.zeros((2, 2), kind)), None, 1)

    def test_a_photograph_is_turned_upright(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # stored lying on its side
        wide = np.zeros((8, 16), np.uint8)
        wide[:, :8] = 255
        Image.fromarray(wide).save(tmp_path / "turned.png", exif=exif)
        upright = read_image(tmp_path / "turned.png", None, 1)
        assert upright.shape == (1, 16, 8)
        assert upright[0, :8].min() == 255
        assert upright[0, 8:].max() == 0

    def test_pictures_are_resized_without_their_aspect(self) -> None:
        assert decode(Image.fromarray(np.full((5, 9, 3), 7, np.uint8)), 4, 3).tolist() == np.full((3, 4, 4), 7).tolist()


class TestReadImage:
    @pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
    def test_what_is_no_image_is_named(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "odd.png"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"odd\.png"):
            read_image(path, 8, 3)

    @pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp", "gif"])
    def test_a_truncated_image_is_named(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"cut.{suffix}"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(path)
        assert read_image(path, 8, 3).shape == (3, 8, 8)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
        with pytest.raises(DataError, match=rf"cut\.{suffix}"):
            read_image(path, 8, 3)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"gone\.png"):
            read_image(tmp_path / "gone.png", 8, 3)


class TestArrays:
    def test_bytes_and_floats_convert_without_loss(self) -> None:
        every = np.arange(256, dtype=np.uint8)
        assert np.array_equal(to_uint8(as_float(every)), every)
        assert to_uint8(np.array([-1.0, 2.0])).tolist() == [0, 255]

    def test_resizing_keeps_the_mean_and_type(self) -> None:
        images = np.random.default_rng(0).integers(0, 256, (3, 1, 28, 28)).astype(np.uint8)
        small = resize(images, 14)
        assert (small.shape, small.dtype) == ((3, 1, 14, 14), np.uint8)
        assert small.mean() == pytest.approx(images.mean(), abs=1.5)
        assert resize(images, 28) is images or np.array_equal(resize(images, 28), images)
        assert resize(images[:0], 7).shape == (0, 1, 7, 7)

    def test_channels_are_added_and_removed(self) -> None:
        grey = np.random.default_rng(0).random((2, 1, 4, 4), dtype=np.float32)
        assert np.allclose(to_channels(to_channels(grey, 3), 1), grey, atol=1e-6)
        assert to_channels(grey, 1) is grey
