"""Generated faces: exact maps, regions linked by the person's colors, fakes that differ in one part, scenes."""

from __future__ import annotations

import numpy as np
import pytest

from fedlab.data.generated.faces import Look, Scene, draw_faces, draw_looks, scene
from fedlab.data.regions import HAIR, LEFT_BROW, LEFT_EYE, LOWER_LIP, NOSE, REGIONS, RIGHT_BROW, RIGHT_EYE, SKIN

FLAT = Scene(0.0, 0.0, (0.2, 0.3, 0.4))
N, SIZE = 6, 32


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def same_looks(tone: float, hue: float) -> Look:
    return Look(np.full(N, tone), np.full(N, hue), np.zeros((N, 6)))


def color(pixels: np.ndarray, regions: np.ndarray, *wanted: int) -> np.ndarray:
    """The mean color of the pixels of a region over all pictures."""
    return np.asarray(pixels.transpose(0, 2, 3, 1)[np.isin(regions, wanted)].mean(axis=0))


def test_every_face_has_every_region_and_values_in_range() -> None:
    made = draw_faces(draw_looks(50, rng()), SIZE, scene(1, 3), rng(1))
    assert made.pixels.shape == (50, 3, SIZE, SIZE)
    assert made.pixels.dtype == np.float32
    assert 0 <= made.pixels.min() < made.pixels.max() <= 1
    for regions in made.regions:
        assert set(np.unique(regions)) == set(range(len(REGIONS)))
    # a person's right is on the left of the picture
    columns = [np.where(made.regions == region)[2].mean() for region in (RIGHT_EYE, LEFT_EYE)]
    assert columns[0] < SIZE / 2 < columns[1]


def test_the_skin_s_tone_decides_nose_and_lips_and_the_hue_hair_and_brows() -> None:
    drawn = {}
    for name, look in (("base", same_looks(0.2, 0.1)), ("tone", same_looks(0.9, 0.1)), ("hue", same_looks(0.2, 0.6))):
        made = draw_faces(look, SIZE, FLAT, rng())
        drawn[name] = {
            part: color(made.pixels, made.regions, part) for part in (SKIN, NOSE, LOWER_LIP, HAIR, LEFT_BROW)
        }
        np.testing.assert_allclose(drawn[name][LEFT_BROW], 0.75 * drawn[name][HAIR], atol=1e-4)
        np.testing.assert_allclose(drawn[name][NOSE], 0.84 * drawn[name][SKIN], atol=1e-4)
    for part in (SKIN, NOSE, LOWER_LIP):
        assert not np.allclose(drawn["base"][part], drawn["tone"][part], atol=0.05)
        np.testing.assert_allclose(drawn["base"][part], drawn["hue"][part], atol=1e-4)
    for part in (HAIR, LEFT_BROW):
        assert not np.allclose(drawn["base"][part], drawn["hue"][part], atol=0.05)
        np.testing.assert_allclose(drawn["base"][part], drawn["tone"][part], atol=1e-4)


@pytest.mark.parametrize(("fake", "part"), [("eyes", (RIGHT_BROW, LEFT_BROW)), ("mouth", (LOWER_LIP,))])
def test_a_fake_has_one_part_of_another_person_and_is_unchanged_away_from_it(fake: str, part: tuple[int, ...]) -> None:
    looks, donors = same_looks(0.2, 0.1), same_looks(0.9, 0.6)
    true, other = draw_faces(looks, SIZE, FLAT, rng()), draw_faces(donors, SIZE, FLAT, rng())
    made = draw_faces(looks, SIZE, FLAT, rng(), fake=fake, donors=donors)  # type: ignore[arg-type]  # one of its literals
    assert (made.regions == true.regions).all()
    wanted = color(other.pixels, other.regions, *part)
    np.testing.assert_allclose(color(made.pixels, made.regions, *part), wanted, atol=1e-4)
    np.testing.assert_allclose(
        color(made.pixels, made.regions, HAIR), color(true.pixels, true.regions, HAIR), atol=0.02
    )
    changed = (made.pixels != true.pixels).any(axis=1).mean()
    assert 0.01 < changed < 0.3
    with pytest.raises(ValueError, match="donors"):
        draw_faces(looks, SIZE, FLAT, rng(), fake="eyes")


def test_light_and_noise_grow_from_scene_to_scene_and_backgrounds_differ() -> None:
    scenes = [scene(number, 4) for number in range(4)]
    assert [s.light for s in scenes] == sorted(s.light for s in scenes)
    assert [s.noise for s in scenes] == sorted(s.noise for s in scenes)
    assert len({s.backdrop for s in scenes}) == 4
    spread = [
        draw_faces(same_looks(0.5, 0.5), SIZE, s, rng()).pixels.std(axis=0).mean() for s in (scenes[0], scenes[-1])
    ]
    assert spread[0] < spread[1]
