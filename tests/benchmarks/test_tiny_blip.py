"""The recipe of the small BLIP: its captions are true of their pictures, and its steps teach."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlab.data.files.captions import decode
from fedlab.data.generated.edits import ATTRIBUTES, WORDS


def test_captions_say_what_is_true_after_their_edit() -> None:
    from benchmarks.tiny_blip import draw

    drawn = draw(200, np.random.default_rng(0))
    said = drawn.meaning >= 0
    assert (drawn.meaning[said] == drawn.attributes[said]).all()
    assert said.any(axis=1).all()
    edits = 0
    for row in range(200):
        words = decode(drawn.text[row].tolist(), WORDS).split()
        told, _, new = (" ".join(words)).partition("but")
        edits += bool(new)
        stated = {
            word for axis, value in enumerate(drawn.meaning[row]) if value >= 0 for word in [ATTRIBUTES[axis][value]]
        }
        if new:
            (value,) = new.split()
            assert value in stated
            axis = next(axis for axis, values in enumerate(ATTRIBUTES) if value in values)
            assert value not in told.split()
            others = set(told.split()) - {"a"} - set(ATTRIBUTES[axis])
            assert stated == others | {value}
        else:
            assert set(words) - {"a"} == stated
    assert 60 < edits < 140
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
