"""Rules for false captions, and scenes of which they are false."""

from __future__ import annotations

import numpy as np
import pytest

from fedlab.data.generated.negatives import KINDS, NegativeRules
from fedlab.data.generated.scenes import COLORS, OPPOSITE, RELATIONS, SHAPES, draw_pairs, draw_singles, rules

CAPTION = ("a", "red", "square", "left", "of", "a", "blue", "circle")
SEEN = ("red", "green", "blue", "yellow")


def made(kind: str, seed: int = 0) -> str:
    words = rules(SEEN).make(kind, CAPTION, np.random.default_rng(seed))
    assert words is not None
    return " ".join(words)


def test_the_rules_give_the_specified_examples() -> None:
    assert made("reshuffle") == "a blue circle left of a red square"
    assert made("swap_noun") == "a red circle left of a blue square"
    assert made("swap_adjective") == "a blue square left of a red circle"
    assert made("replace_relation") == "a red square right of a blue circle"
    adjectives, nouns = ({made(kind, seed) for seed in range(50)} for kind in ("replace_adjective", "replace_noun"))
    assert "a green square left of a blue circle" in adjectives
    assert "a red square left of a blue cross" in nouns
    assert len(adjectives) == len(nouns) == 4  # two places, two absent words


def test_the_order_changes_and_the_words_do_not() -> None:
    for seed in range(20):
        words = made("order", seed).split()
        assert sorted(words) == sorted(CAPTION)
        assert tuple(words) != CAPTION


@pytest.mark.parametrize("kind", KINDS)
def test_every_false_caption_is_false_of_its_scene(kind: str) -> None:
    rng = np.random.default_rng(1)
    scenes = draw_pairs(400, SEEN, rng)
    for scene in range(len(scenes)):
        caption = scenes.caption(scene)
        assert scenes.is_true(scene, caption)
        false = rules(SEEN).make(kind, caption, rng)
        assert false is not None
        assert not scenes.is_true(scene, false)


def test_the_checker_knows_the_hard_positive() -> None:
    """``blue circle right of red square`` is true of ``red square left of blue circle``."""
    scenes = draw_pairs(50, SEEN, np.random.default_rng(2))
    for scene in range(50):
        relation = RELATIONS[scenes.relation[scene]]
        other = (*scenes.noun_phrase(scene, 1), *OPPOSITE[relation], *scenes.noun_phrase(scene, 0))
        assert scenes.is_true(scene, other)
        assert not scenes.is_true(scene, (*other[:3], *relation, *other[-3:]))


@pytest.mark.parametrize(
    "words", [("two", "dogs"), ("a", "red", "square"), ("left", "of", "a", "red", "square"), ("red", "red")]
)
def test_rules_that_do_not_apply_give_nothing(words: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    found = NegativeRules(("red",), ("square",), OPPOSITE)
    for kind in ("reshuffle", "swap_noun", "swap_adjective", "replace_noun", "replace_adjective"):
        assert found.make(kind, words, rng) is None
    assert found.make("order", ("red", "red"), rng) is None


def test_pictures_show_what_the_scenes_say() -> None:
    """The mean place of the brightest pixels of each color channel lies where the relation says."""
    rng = np.random.default_rng(3)
    scenes = draw_pairs(200, ("red", "blue"), rng)
    images = scenes.render(rng).astype(float)
    assert images.shape == (200, 3, 32, 32)
    y, x = np.mgrid[:32, :32]
    names = tuple(COLORS)
    for scene in range(200):
        places = []
        for thing in (0, 1):
            lit = images[scene, 0 if names[scenes.colors[scene, thing]] == "red" else 2] > 150
            assert 25 < lit.sum() <= 169
            places.append((x[lit].mean(), y[lit].mean()))
        (x0, y0), (x1, y1) = places
        holds = {"left": x0 < x1 - 8, "right": x0 > x1 + 8, "above": y0 < y1 - 8, "below": y0 > y1 + 8}
        assert holds[RELATIONS[scenes.relation[scene]][0]]


def test_all_combinations_occur() -> None:
    scenes = draw_pairs(3000, SEEN, np.random.default_rng(0))
    assert (scenes.colors[:, 0] != scenes.colors[:, 1]).all()
    assert (scenes.shapes[:, 0] != scenes.shapes[:, 1]).all()
    pairs = {
        (*colors, *shapes, relation)
        for colors, shapes, relation in zip(
            scenes.colors.tolist(), scenes.shapes.tolist(), scenes.relation.tolist(), strict=True
        )
    }
    assert len(pairs) > 550  # of 4·3 · 4·3 · 4 = 576
    assert set(draw_singles(500, tuple(COLORS), np.random.default_rng(0)).shapes.ravel()) == set(range(len(SHAPES)))
