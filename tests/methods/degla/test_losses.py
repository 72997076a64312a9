"""DeGLA's losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.methods.degla.batches import is_caption
from fedlab.methods.degla.losses import (
    Embeddings,
    base_contrast,
    image_grounded_contrast,
    self_distillation,
    text_grounded_contrast,
)

SCALE = torch.tensor(100.0)


def unit(*places: int, d: int) -> Tensor:
    """Rows of the identity."""
    return torch.eye(d)[list(places)]


def equal(b: int = 8, k: int = 4, d: int = 16) -> tuple[Embeddings, Tensor]:
    """Everything alike: all similarities are 1."""
    one = unit(0, d=d)
    return Embeddings(one.repeat(b, 1), one.repeat(b, 1), one.repeat(b, k, 1)), torch.ones(b, k, dtype=torch.bool)


def drawn(b: int = 6, k: int = 3, d: int = 16, seed: int = 0) -> tuple[Embeddings, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    parts = (torch.randn(*shape, d, generator=generator) for shape in ((b,), (b,), (b, k)))
    return Embeddings(*(F.normalize(part, dim=-1) for part in parts)), torch.ones(b, k, dtype=torch.bool)


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_equal_similarities_give_the_logarithm_of_the_choices(scale: float) -> None:
    e, present = equal()
    s = torch.tensor(scale)
    assert image_grounded_contrast(e, present, s).item() == pytest.approx(1.6094, abs=1e-4)
    assert text_grounded_contrast(e, e.text, present).item() == pytest.approx(1.6094, abs=1e-4)
    assert base_contrast(e, present, s, "all").item() == pytest.approx(2.8842, abs=1e-4)
    assert base_contrast(e, present, s, "own").item() == pytest.approx(2.2822, abs=1e-4)
    assert base_contrast(e, present, s, "none").item() == pytest.approx(math.log(8), abs=1e-4)


def test_tgc_has_a_scale_of_its_own() -> None:
    """t·t* = 1 and all false captions orthogonal: ln(1 + 4 e^−10), not the ~0 of the learned scale."""
    d = 8
    e = Embeddings(unit(0, 1, d=d), unit(0, 1, d=d), unit(2, 3, 4, 5, d=d).repeat(2, 1, 1))
    present = torch.ones(2, 4, dtype=torch.bool)
    assert text_grounded_contrast(e, e.text, present).item() == pytest.approx(1.816e-4, rel=1e-3)


def test_tgc_contrasts_a_caption_with_its_own_false_ones() -> None:
    """n10 = t_0 concerns row 1 alone; the released mask lets row 0 see n00 and n10."""
    d = 8
    plain = Embeddings(unit(0, 1, d=d), unit(0, 1, d=d), unit(2, 3, 4, 5, d=d).reshape(2, 2, d))
    changed = plain._replace(negatives=unit(2, 3, 0, 5, d=d).reshape(2, 2, d))
    row = [Embeddings(*(part[:1] for part in e)) for e in (plain, changed)]
    present = torch.ones(2, 2, dtype=torch.bool)

    def both(layout: str) -> tuple[float, float]:
        found = [text_grounded_contrast(e, plain.text, present, layout) for e in (plain, changed)]  # type: ignore[arg-type]  # one of the two names
        return found[0].item(), found[1].item()

    own = [text_grounded_contrast(e, plain.text[:1], present[:1]).item() for e in row]
    assert own[0] == own[1]
    assert both("paper")[0] == both("paper")[1]  # row 1 queries with t_1, which is orthogonal to t_0
    before, after = both("released")
    assert before == pytest.approx(math.log(1 + 2 * math.exp(-10)), rel=1e-2)
    assert after == pytest.approx((math.log(2 + math.exp(-10)) + math.log(1 + 2 * math.exp(-10))) / 2, rel=1e-3)


def test_distillation_is_zero_at_the_teacher_and_a_sum() -> None:
    e, present = drawn()
    leaves = Embeddings(*(part.clone().requires_grad_() for part in e))
    loss = self_distillation(leaves, e, present)
    loss.backward()
    assert loss.item() == 0
    assert all(part.grad is not None and not part.grad.any() for part in leaves)
    b, k, d = 8, 4, 2
    student = Embeddings(unit(0, d=d).repeat(b, 1), unit(0, d=d).repeat(b, 1), unit(0, d=d).repeat(b, k, 1))
    teacher = Embeddings(*(part.flip(-1) for part in student))
    assert self_distillation(student, teacher, torch.ones(b, k, dtype=torch.bool)).item() == 12 * b


def test_distillation_per_sample_does_not_depend_on_the_batch() -> None:
    (student, present), (teacher, _) = drawn(seed=1), drawn(seed=2)
    twice = [Embeddings(*(torch.cat([part, part]) for part in e)) for e in (student, teacher)]
    once = self_distillation(student, teacher, present) / len(student.image)
    double = self_distillation(*twice, torch.cat([present, present])) / (2 * len(student.image))
    assert double.item() == pytest.approx(once.item(), rel=1e-6)


def test_false_captions_never_look_for_an_image() -> None:
    """L_base's text-to-image half has no false captions: where these cannot be confused, `all` equals `none`."""
    e, present = drawn()
    d = e.image.shape[1]
    wide = [torch.cat([part, torch.zeros(*part.shape[:-1], d)], dim=-1) for part in (e.image, e.text)]
    apart = torch.cat([torch.zeros_like(e.negatives), e.negatives], dim=-1)
    far = Embeddings(*wide, -apart)
    s = torch.tensor(5.0)
    rows = (s * wide[0] @ wide[1].T).T
    t2i = F.cross_entropy(rows, torch.arange(len(rows)))
    for negatives in (apart, -apart, apart.roll(1, 0)):
        whole = base_contrast(far._replace(negatives=negatives), present, s)
        i2t = F.cross_entropy(torch.cat([rows.T, torch.zeros(6, 18)], dim=1), torch.arange(6))
        assert whole.item() == pytest.approx((i2t + t2i).item() / 2, rel=1e-6)


def test_missing_false_captions_take_part_in_nothing() -> None:
    (e, present), (teacher, _) = drawn(seed=1), drawn(seed=2)
    present = present.clone()
    present[:, -1] = False
    fewer, fewer_teacher = (part._replace(negatives=part.negatives[:, :-1]) for part in (e, teacher))
    kept = present[:, :-1]
    pairs = [
        (image_grounded_contrast(e, present, SCALE), image_grounded_contrast(fewer, kept, SCALE)),
        (text_grounded_contrast(e, teacher.text, present), text_grounded_contrast(fewer, teacher.text, kept)),
        (self_distillation(e, teacher, present), self_distillation(fewer, fewer_teacher, kept)),
        (base_contrast(e, present, SCALE, "own"), base_contrast(fewer, kept, SCALE, "own")),
        (base_contrast(e, present, SCALE, "all"), base_contrast(fewer, kept, SCALE, "all")),
    ]
    for with_gap, without in pairs:
        assert with_gap.item() == pytest.approx(without.item(), rel=1e-6)


def test_no_gradient_reaches_the_teacher() -> None:
    e, present = drawn()
    t_star = e.text.flip(0).requires_grad_()
    t = e.text.clone().requires_grad_()
    text_grounded_contrast(e._replace(text=t), t_star, present).backward()
    assert t_star.grad is None
    assert t.grad is not None
    assert t.grad.abs().sum() > 0


def test_zero_rows_are_no_captions() -> None:
    assert is_caption(torch.tensor([[0, 0], [1, 0]])).tolist() == [False, True]
