from __future__ import annotations

import torch

from fedlab.data.waveforms import cut, even_starts, lengths, random_starts, uniform


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
    sizes = torch.tensor([10, 12, 3]).repeat(500)
    starts = random_starts(sizes, 10, generator()).reshape(500, 3)
    assert [sorted(set(column.tolist())) for column in starts.T] == [[0], [0, 1, 2], [0]]


def test_even_windows_span_the_clip_and_a_single_one_lies_in_the_middle() -> None:
    sizes = torch.tensor([20, 11, 4])
    assert [start.tolist() for start in even_starts(sizes, 10, 1)] == [[5, 0, 0]]
    assert [start.tolist() for start in even_starts(sizes, 10, 3)] == [[0, 0, 0], [5, 0, 0], [10, 1, 0]]


def test_clips_without_a_length_fill_their_row() -> None:
    audio = torch.zeros(3, 7)
    assert lengths({"audio": audio}).tolist() == [7, 7, 7]
    assert lengths({"audio": audio, "length": torch.tensor([1, 2, 3])}).tolist() == [1, 2, 3]


def test_uniform_draws_depend_on_the_generator_alone() -> None:
    first, again, other = (uniform(torch.zeros(500, 2), generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.dtype == torch.float64
    assert 0 <= float(first.min()) < 0.02
    assert 0.98 < float(first.max()) < 1
