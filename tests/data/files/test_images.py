from __future__ import annotations

import errno
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fedlab.data.files.images import (
    PictureReader,
    as_float,
    decode,
    is_picture,
    read_image,
    resize,
    to_channels,
    to_uint8,
)
from fedlab.errors import DataError, InputError, MachineError

COLORS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)


class TestDecode:
    def test_colors_and_gray(self) -> None:
        picture = Image.fromarray(COLORS)
        assert np.array_equal(decode(picture, None, 3), COLORS.transpose(2, 0, 1))
        assert decode(picture, None, 1).tolist() == [[[76, 150], [29, 255]]]  # ITU-R 601 luma

    def test_a_palette_is_looked_up(self) -> None:
        picture = Image.fromarray(COLORS).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
        assert np.array_equal(decode(picture, None, 3), COLORS.transpose(2, 0, 1))

    def test_transparency_is_dropped(self) -> None:
        opaque = np.dstack([COLORS, np.array([[0, 128], [255, 1]], np.uint8)])
        assert np.array_equal(decode(Image.fromarray(opaque, "RGBA"), None, 3), COLORS.transpose(2, 0, 1))
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
        gray = np.random.default_rng(0).random((2, 1, 4, 4), dtype=np.float32)
        assert np.allclose(to_channels(to_channels(gray, 3), 1), gray, atol=1e-6)
        assert to_channels(gray, 1) is gray


class TestWhatPeopleBring:
    def test_wrong_notes_of_a_camera_do_not_spoil_the_picture(self, tmp_path: Path) -> None:
        """Orientation 6 beside a resolution that no rational number can be."""
        at = 8 + 2 + 24 + 4
        tags = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHII", 0x011A, 10, 1, at)
        exif = b"Exif\0\0" + struct.pack("<2sHIH", b"II", 42, 8, 2) + tags + struct.pack("<Iii", 0, -1, 0)
        wide = np.zeros((8, 16), np.uint8)
        wide[:, :8] = 255
        Image.fromarray(wide).save(tmp_path / "x.jpg", exif=exif, quality=95)
        upright = read_image(tmp_path / "x.jpg", None, 1)
        assert upright.shape == (1, 16, 8)
        assert upright[0, :7].min() > 200 > 50 > upright[0, 9:].max()

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_every_orientation_is_turned_as_pillow_turns_it(self, tmp_path: Path, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(COLORS.repeat(2, axis=1)).save(tmp_path / "x.png", exif=exif)
        with Image.open(tmp_path / "x.png") as picture:
            expected = np.asarray(ImageOps.exif_transpose(picture)).transpose(2, 0, 1)
        assert np.array_equal(read_image(tmp_path / "x.png", None, 3), expected)

    @pytest.mark.parametrize("suffix", ["png", "pgm", "tif"])
    def test_sixteen_bits_are_read_by_one_rule_from_every_format(self, tmp_path: Path, suffix: str) -> None:
        deep = np.array([[0, 256], [40000, 65535]], np.uint16)
        if suffix == "pgm":
            (tmp_path / "x.pgm").write_bytes(b"P5\n2 2\n65535\n" + deep.astype(">u2").tobytes())
        else:
            Image.fromarray(deep).save(tmp_path / f"x.{suffix}")
        assert read_image(tmp_path / f"x.{suffix}", None, 1).tolist() == [[[0, 1], [156, 255]]]

    def test_twelve_bits_in_sixteen_are_said_with_a_factor_that_helps(self, tmp_path: Path) -> None:
        shallow = np.linspace(0, 4095, 64).reshape(8, 8).astype(np.uint16)
        Image.fromarray(shallow).save(tmp_path / "x.png")
        reader = PictureReader()
        assert reader.read(tmp_path / "x.png", None, 1).max() == 15
        (left,) = reader.left_out
        assert (left.what, left.count, left.total) == ("gray levels", 4080, 4096)
        factor = int(left.fix.split("pixels by ")[1].split(",")[0])
        Image.fromarray(shallow * factor).save(tmp_path / "x.png")
        again = PictureReader()
        assert again.read(tmp_path / "x.png", None, 1).max() == 255
        assert again.left_out == ()

    def test_frames_behind_the_first_are_counted(self, tmp_path: Path) -> None:
        frames = [Image.new("L", (4, 4), value) for value in (0, 80, 160)]
        frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
        reader = PictureReader()
        reader.read(tmp_path / "x.gif", None, 1)
        assert [(left.what, left.count) for left in reader.left_out] == [("frames", 2)]

    def test_a_picture_too_large_is_to_be_made_smaller(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        Image.new("L", (40, 40)).save(tmp_path / "x.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(DataError, match=r"x\.png[\s\S]*make the picture smaller"):
            read_image(tmp_path / "x.png", None, 1)

    @pytest.mark.parametrize("failure", [MemoryError(), OSError(errno.EMFILE, "too many"), OSError(errno.EIO, "disk")])
    def test_a_failing_machine_is_not_blamed_on_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
    ) -> None:
        def fail(*args: object) -> None:
            raise failure

        (tmp_path / "x.png").touch()
        monkeypatch.setattr(Image, "open", fail)
        with pytest.raises(InputError) as caught:
            read_image(tmp_path / "x.png", None, 1)
        assert isinstance(caught.value, DataError if isinstance(failure, MemoryError) else MachineError)
        assert "memory" in str(caught.value) or "machine could not read it" in str(caught.value)

    def test_whatever_pillow_reads_counts_as_a_picture(self, tmp_path: Path) -> None:
        for name in ("a.PNG", "a.jfif", "a.jpe", "a.Tif", "a.jp2", "a.webp", "a.tga"):
            assert is_picture(tmp_path / name), name
        for name in ("a.txt", "a.csv", "a.h5", "a.mpg", "a.eps", "a.npz"):
            assert not is_picture(tmp_path / name), name
        Image.new("L", (4, 4)).save(tmp_path / "IMG_1", format="PNG")
        (tmp_path / "README").write_text("x")
        assert [is_picture(tmp_path / name) for name in ("IMG_1", "README", "gone")] == [True, False, False]
