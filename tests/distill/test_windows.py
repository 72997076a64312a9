from __future__ import annotations

import torch

from fedlab.distill.windows import clip_lengths, cut, random_starts, spaced_starts


def ramps(n: int, samples: int = 12_800) -> torch.Tensor:
    """Clip i holds i + its sample's number / samples, so that a window tells where it was cut."""
    return torch.arange(n, dtype=torch.float32)[:, None] + torch.arange(samples) / samples


def test_a_window_is_a_piece_of_the_clip_rolled_or_not() -> None:
    clips, length = ramps(2), torch.full((2,), 12_800)
    starts = torch.tensor([100, 0])
    plain = cut(clips, length, starts, 50)
    assert torch.equal(plain[0], clips[0, 100:150])
    rolled = cut(clips, length, starts, 12_800, torch.tensor([3000, 1]))
    assert torch.equal(rolled[1], clips[1].roll(1))
    assert torch.equal(rolled[0, :-100], clips[0].roll(3000)[100:])
    assert not rolled[0, -100:].any()


def test_short_clips_are_padded_with_silence_and_rolled_before_that() -> None:
    clips, length = ramps(1), torch.tensor([1000])
    window = cut(clips, length, torch.tensor([0]), 1500, torch.tensor([400]))
    assert torch.equal(window[0, :1000], clips[0, :1000].roll(400))
    assert not window[0, 1000:].any()


def test_windows_start_anywhere_they_fit() -> None:
    lengths = torch.tensor([10, 12, 3]).repeat(500)
    starts = random_starts(lengths, 10, torch.Generator().manual_seed(0)).reshape(500, 3)
    assert [sorted(set(column.tolist())) for column in starts.T] == [[0], [0, 1, 2], [0]]


def test_evenly_spaced_windows_reach_both_ends_and_one_is_the_middle() -> None:
    lengths = torch.tensor([10, 3])
    assert spaced_starts(lengths, 4, 3).tolist() == [[0, 0], [3, 0], [6, 0]]
    assert spaced_starts(lengths, 4, 1).tolist() == [[3, 0]]


def test_the_length_of_clips_is_told_or_that_of_the_column() -> None:
    audio = torch.zeros(2, 7)
    assert clip_lengths({"audio": audio}).tolist() == [7, 7]
    assert clip_lengths({"audio": audio, "length": torch.tensor([3, 5])}).tolist() == [3, 5]
