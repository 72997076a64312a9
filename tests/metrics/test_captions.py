"""Choices between a true caption and false ones."""

from __future__ import annotations

import pytest
import torch

from fedlab.metrics import CaptionChoice


def yes(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.bool)


def test_ties_are_wrong() -> None:
    choice = CaptionChoice()
    choice.update("swap_noun", torch.ones(7), torch.ones(7, 1), yes(7, 1))
    assert choice.compute()["accuracy"] == 0.0


def test_of_several_false_captions_all_must_lose() -> None:
    choice = CaptionChoice()
    choice.update("order", torch.tensor([2.0, 2.0]), torch.tensor([[1.0, 0.0], [1.0, 3.0]]), yes(2, 2))
    assert choice.compute()["accuracy_order"] == 0.5


def test_samples_without_a_false_caption_are_no_items() -> None:
    choice = CaptionChoice()
    present = torch.tensor([[True, False], [False, False]])
    choice.update("swap_noun", torch.tensor([1.0, 1.0]), torch.tensor([[0.0, 9.0], [9.0, 9.0]]), present)
    assert choice.compute() == {"accuracy": 1.0, "accuracy_swap_noun": 1.0}


def filled() -> CaptionChoice:
    choice = CaptionChoice()
    for kind, right in {"swap_noun": 3, "swap_adjective": 1, "replace_relation": 2, "order": 4}.items():
        false = torch.cat([torch.zeros(right, 1), torch.full((4 - right, 1), 2.0)])
        choice.update(kind, torch.ones(4), false, yes(4, 1))
        choice.update(kind, torch.ones(4), 2 - false, yes(4, 1), blind=True)
    return choice


def test_kinds_apart_do_not_count_in_the_pooled_shares() -> None:
    values = filled().compute(("replace_relation", "order"))
    assert values["accuracy"] == values["mean_swap"] == 0.5
    assert (values["accuracy_order"], values["accuracy_replace_relation"]) == (1.0, 0.5)
    assert values["text_only"] == pytest.approx(0.5)
    assert (values["text_only_order"], values["text_only_replace_relation"]) == (0.0, 0.5)
    assert "text_only_swap_noun" not in values


def test_counts_merge_exactly() -> None:
    merged, other = CaptionChoice(), filled()
    merged.merge(other.state())
    merged.merge(other.state())
    assert merged.compute() == other.compute()
    assert int(merged.state()["seen.items.swap_noun"]) == 8
