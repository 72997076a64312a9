"""Sequences and the masks over them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedlab.methods.arra.sequences import PAD, Layout

LAYOUT = Layout(words=10, ends=(1,), codes=8, cells=4)
TEXT = torch.tensor([[5, 1, 0, 0], [6, 7, 8, 1], [0, 0, 0, 0]])
CODES = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [7, 7, 7, 7]])
BOI, EOI, REP, FIRST = 10, 11, 12, 13


def positions(mask: Tensor) -> list[list[int]]:
    return [row.nonzero().flatten().tolist() for row in mask]


def test_a_sequence_is_caption_boi_codes_eoi_and_padding() -> None:
    assert (LAYOUT.boi, LAYOUT.eoi, LAYOUT.rep_token, LAYOUT.first_code, LAYOUT.size) == (BOI, EOI, REP, FIRST, 21)
    assert LAYOUT.sequences(TEXT, CODES).tolist() == [
        [5, 1, BOI, 13, 14, 15, 16, EOI, PAD, PAD],
        [6, 7, 8, 1, BOI, 17, 18, 19, 20, EOI],
        [BOI, 20, 20, 20, 20, EOI, PAD, PAD, PAD, PAD],
    ]
    assert LAYOUT.longest(4) == 10


def test_image_positions_start_at_boi_and_are_as_many_as_there_are_codes() -> None:
    ids = LAYOUT.sequences(TEXT, CODES)
    assert positions(LAYOUT.image_positions(ids)) == [[2, 3, 4, 5], [4, 5, 6, 7], [0, 1, 2, 3]]
    assert positions(LAYOUT.predicted_positions(ids)) == [[2, 3, 4, 5, 6], [4, 5, 6, 7, 8], [0, 1, 2, 3, 4]]
    whole = Layout(words=10, ends=(1,), codes=64, cells=64)
    text, codes = TEXT[:1], torch.randint(0, 64, (1, 64))
    assert int(whole.image_positions(whole.sequences(text, codes)).sum()) == 64


def test_further_padding_changes_no_mask() -> None:
    ids = LAYOUT.sequences(TEXT, CODES)
    longer = torch.cat([ids, ids.new_full((3, 10), PAD)], dim=1)
    for mask in (LAYOUT.image_positions, LAYOUT.predicted_positions, lambda x: LAYOUT.aligned_positions(x, "last")):
        assert positions(mask(longer)) == positions(mask(ids))


def test_what_is_aligned() -> None:
    ids = LAYOUT.sequences(TEXT, CODES)
    assert torch.equal(LAYOUT.aligned_positions(ids, "hybnext"), LAYOUT.image_positions(ids))
    assert positions(LAYOUT.aligned_positions(ids, "last")) == [[5], [7], [3]]
    with_rep = Layout(words=10, ends=(1,), codes=8, cells=4, rep=True)
    ids = with_rep.sequences(TEXT, CODES)
    assert ids[0].tolist() == [5, 1, REP, BOI, 13, 14, 15, 16, EOI, PAD, PAD]
    assert positions(with_rep.aligned_positions(ids, "rep")) == [[2], [4], [0]]
    assert positions(with_rep.image_positions(ids)) == [[3, 4, 5, 6], [5, 6, 7, 8], [1, 2, 3, 4]]
    assert with_rep.size == LAYOUT.size, "both arms have equal language models"


def test_a_dropped_caption_leaves_a_sequence_that_starts_with_the_image() -> None:
    ids = LAYOUT.sequences(TEXT, CODES, torch.tensor([False, True, False]))
    assert ids.tolist() == [
        [5, 1, BOI, 13, 14, 15, 16, EOI],
        [BOI, 17, 18, 19, 20, EOI, PAD, PAD],
        [BOI, 20, 20, 20, 20, EOI, PAD, PAD],
    ]


def test_prompts_end_with_boi_whatever_the_length_of_their_captions() -> None:
    ids, mask = LAYOUT.prompts(TEXT)
    assert ids.tolist() == [[PAD, PAD, 5, 1, BOI], [6, 7, 8, 1, BOI], [PAD, PAD, PAD, PAD, BOI]]
    assert mask.tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("row", "length"), [([5, 9, 9, 9], 2), ([9, 5, 5, 9], 1), ([5, 6, 7, 8], 4), ([0, 0, 0, 0], 0)]
)
def test_a_caption_ends_with_its_first_end_token_even_if_that_is_the_padding_too(row: list[int], length: int) -> None:
    """Some tokenizers pad with their end token."""
    assert Layout(words=10, ends=(9,), codes=8, cells=4).lengths(torch.tensor([row])).tolist() == [length]


def test_only_codes_can_be_drawn_inside_an_image() -> None:
    assert set(range(LAYOUT.size)) - set(LAYOUT.not_codes) == set(range(FIRST, FIRST + 8))
