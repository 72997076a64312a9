"""The recipe of the small BLIP: its captions are true of their pictures, and its steps teach."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlab.data.files.captions import decode
from fedlab.data.generated.edits import ATTRIBUTES, RELATIVE, WORDS


def test_captions_say_what_is_true_after_their_edit() -> None:
    from benchmarks.tiny_blip import draw

    drawn = draw(200, np.random.default_rng(0))
    said = drawn.meaning >= 0
    assert (drawn.meaning[said] == drawn.attributes[said]).all()
    assert said.any(axis=1).all()
    edits = opposites = 0
    for row in range(200):
        words = decode(drawn.text[row].tolist(), WORDS).split()
        told, _, new = (" ".join(words)).partition("but")
        edits += bool(new)
        stated = {
            word for axis, value in enumerate(drawn.meaning[row]) if value >= 0 for word in [ATTRIBUTES[axis][value]]
        }
        if new:
            (value,) = new.split()
            relative = {word: axis for axis, word in RELATIVE.items()}
            axis = relative.get(value, next((a for a, values in enumerate(ATTRIBUTES) if value in values), -1))
            before = set(told.split()) & set(ATTRIBUTES[axis])
            (after,) = stated & set(ATTRIBUTES[axis])
            assert {after} != before
            assert value in (after, RELATIVE.get(axis))
            if value in relative:
                opposites += 1
                (old,) = before
                assert ATTRIBUTES[axis].index(old) == ATTRIBUTES[axis].index(after) ^ 1
            assert stated == set(told.split()) - {"a"} - before | {after}
        else:
            assert set(words) - {"a"} == stated
    assert 90 < edits < 150
    assert opposites > 15
    assert len({int((row != 0).sum()) for row in drawn.text}) > 3


def test_the_first_steps_lower_the_loss() -> None:
    from benchmarks.tiny_blip import draw, losses, make

    torch.manual_seed(0)
    vl, rng = make(), np.random.default_rng(0)
    assert 150_000 < sum(p.numel() for p in vl.parameters()) < 250_000
    optimizer, seen = torch.optim.AdamW(vl.parameters(), lr=2e-3), list[float]()
    for _ in range(30):
        total = torch.stack(list(losses(vl, draw(24, rng)).values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        seen.append(float(total.detach()))
    assert np.mean(seen[-5:]) < np.mean(seen[:5]) - 0.2


def test_a_model_that_does_not_understand_is_not_written(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.tiny_blip import main

    assert main([f"{tmp_path}/model", "--steps", "2"]) == 1
    assert "less than 95 %" in capsys.readouterr().out
