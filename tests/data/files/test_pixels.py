"""Arrays as pictures, and advice that gives the right picture when it is followed to the letter."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from fedlab import from_arrays
from fedlab.data.files.pixels import as_pictures
from fedlab.errors import DataError

RAMP = np.arange(64).reshape(1, 8, 8)  # 0 to 63


def refused(values: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        as_pictures(values, "x")
    return caught.value


def followed(values: np.ndarray) -> np.ndarray:
    """What comes of the code in the advice."""
    advice = refused(values).fix
    code = re.search(r"\(x .*?astype\('\w+'\)", advice)
    assert code, advice
    changed: np.ndarray = as_pictures(eval(code.group(), {"x": values}), "x")
    return changed


def relative(pictures: np.ndarray) -> np.ndarray:
    """Brightness from 0 to 1."""
    return pictures / 255 if pictures.dtype == np.uint8 else pictures


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.uint64])
def test_whole_numbers_of_any_type_up_to_255_are_bytes(kind: type) -> None:
    pictures = as_pictures((RAMP * 4).astype(kind), "x")
    assert pictures.dtype == np.uint8
    assert np.array_equal(pictures[0, 0], RAMP[0] * 4)


def test_truth_values_are_black_and_white() -> None:
    assert as_pictures(RAMP > 31, "x").ravel().tolist() == [0] * 32 + [255] * 32


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_up_to_one_are_kept(kind: type) -> None:
    assert np.allclose(as_pictures((RAMP / 63).astype(kind), "x")[0, 0], RAMP[0] / 63, atol=1e-3)


@pytest.mark.parametrize("top", [1023, 4095, 16383, 65535])
def test_the_advice_for_deep_pixels_keeps_their_brightness(top: int) -> None:
    values = (RAMP * (top / 63)).astype(np.uint16)
    assert np.allclose(relative(followed(values))[0, 0], RAMP[0] / 63, atol=0.01)


def test_the_advice_for_sixteen_bits_does_not_wrap() -> None:
    error = refused(np.full((1, 8, 8), 40000, np.uint16))
    assert "257" in error.fix
    assert "astype('uint8')" not in error.fix.replace("(x // 257).astype('uint8')", "")


@pytest.mark.parametrize(("top", "full"), [(255.0, "255"), (254.0, "255"), (4000.0, "4,095"), (65535.0, "65,535")])
def test_floats_of_another_range_are_divided_alike_in_both_splits(top: float, full: str) -> None:
    fix = refused(RAMP / 63 * top).fix
    assert f"highest value a pixel can have, {full} " in fix
    assert "both splits" in fix


@pytest.mark.parametrize(("values", "hint"), [(RAMP / 31.5 - 1, r"\(x \+ 1\) / 2"), (RAMP - 40.0, r"x \* std \+ mean")])
def test_normalized_floats_are_to_be_undone(values: np.ndarray, hint: str) -> None:
    assert re.search(hint, refused(values).fix)


@pytest.mark.parametrize(
    ("shape", "hint"),
    [((2, 8, 8, 4), r"x\[\.\.\., :3\]"), ((2, 4, 8, 8), r"x\[:, :3\]"), ((2, 2, 8, 8), r"x\[:, :1\]")],
)
def test_transparency_is_to_be_left_out_where_it_is(shape: tuple[int, ...], hint: str) -> None:
    values = np.zeros(shape, np.uint8)
    fix = refused(values).fix
    assert re.search(hint, fix)
    as_pictures(eval(fix.split(": ", 1)[1], {"x": values}), "x")


@pytest.mark.parametrize(
    ("labels", "hint"),
    [
        (np.eye(4), "argmax"), (np.arange(4)[:, None], "ravel"), (np.arange(4.0), r"astype\('int64'\)"),
        (np.array([b"a", b"b", b"a", b"b"]), "char.decode"), (np.array(["a", None, "b", "a"], object), "gaps"),
    ],
)  # fmt: skip
def test_the_advice_for_labels_fits_what_they_are(labels: np.ndarray, hint: str) -> None:
    x = np.zeros((4, 8, 8), np.uint8)
    with pytest.raises(DataError, match=hint):
        from_arrays(x, labels, x, labels)


def test_labels_may_be_truth_values() -> None:
    x, y = np.zeros((4, 8, 8), np.uint8), np.array([True, False, True, False])
    assert from_arrays(x, y, x, y).train["label"].tolist() == [1, 0, 1, 0]
