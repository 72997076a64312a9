"""Facial regions as classes of pixels: their numbers, other numberings, and ellipses that stand in for a parser."""

from __future__ import annotations

import numpy as np

REGIONS = (
    "background", "skin", "right brow", "left brow", "right eye", "left eye", "nose", "upper lip", "inner mouth",
    "lower lip", "hair",
)  # fmt: skip
"""The classes of LaPa (Liu et al. 2020, AAAI), by their numbers."""
BACKGROUND, SKIN, RIGHT_BROW, LEFT_BROW, RIGHT_EYE, LEFT_EYE, NOSE, UPPER_LIP, INNER_MOUTH, LOWER_LIP, HAIR = range(11)

MIRRORED = (0, 1, 3, 2, 5, 4, 6, 7, 8, 9, 10)
"""The class that a pixel of each class has in the mirrored picture: left and right change places."""

CELEBAMASK = {
    "background": BACKGROUND, "skin": SKIN, "nose": NOSE, "eye_g": SKIN, "l_eye": LEFT_EYE, "r_eye": RIGHT_EYE,
    "l_brow": LEFT_BROW, "r_brow": RIGHT_BROW, "l_ear": SKIN, "r_ear": SKIN, "mouth": INNER_MOUTH, "u_lip": UPPER_LIP,
    "l_lip": LOWER_LIP, "hair": HAIR, "hat": BACKGROUND, "ear_r": BACKGROUND, "neck_l": BACKGROUND,
    "neck": BACKGROUND, "cloth": BACKGROUND,
}  # fmt: skip
"""The class of LaPa for each class of CelebAMask-HQ (Lee et al. 2020, arXiv 1907.11922) by name, in its usual order.

Glasses and ears count as skin, and hats, jewelry, neck and clothes as background.
"""

# (class, center down, center across, half height, half width), as shares of an aligned crop, painted in this order
_ELLIPSES = (
    (HAIR, 0.40, 0.50, 0.42, 0.40),
    (SKIN, 0.54, 0.50, 0.40, 0.30),
    (RIGHT_BROW, 0.36, 0.36, 0.030, 0.10),
    (LEFT_BROW, 0.36, 0.64, 0.030, 0.10),
    (RIGHT_EYE, 0.44, 0.36, 0.035, 0.075),
    (LEFT_EYE, 0.44, 0.64, 0.035, 0.075),
    (NOSE, 0.57, 0.50, 0.11, 0.065),
    (UPPER_LIP, 0.735, 0.50, 0.030, 0.115),
    (LOWER_LIP, 0.785, 0.50, 0.035, 0.105),
    (INNER_MOUTH, 0.76, 0.50, 0.012, 0.085),
)


def template(height: int, width: int) -> np.ndarray:
    """Regions of an upright, centered face in an aligned crop, as ellipses; an approximation of every face.

    Where an ellipse is smaller than a pixel, the pixel at its center stands for it, so that no region is missing.

    Args:
        height: H, at least 16.
        width: W, at least 16.

    Returns:
        (H, W) uint8.
    """
    down = ((np.arange(height) + 0.5) / height)[:, None]
    across = ((np.arange(width) + 0.5) / width)[None, :]
    painted = np.full((height, width), BACKGROUND, np.uint8)
    for region, y, x, tall, wide in _ELLIPSES:
        inside = ((down - y) / tall) ** 2 + ((across - x) / wide) ** 2 <= 1
        inside[int(y * height), int(x * width)] = True
        painted[inside] = region
    return painted
