"""What ASiT makes of waveforms: windows, rolling, corruption over the batch, fine-tuning clips."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedlab.distill.windows import cut
from fedlab.methods.asit import views
from fedlab.methods.asit.settings import ASiTSettings

SETTINGS: dict[str, Any] = {"rate": 8000, "view_seconds": 0.66, "bins": 32, "patch": 8}


def settings(**changes: Any) -> ASiTSettings:
    return ASiTSettings(**{**SETTINGS, **changes})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_views_of_the_paper_are_592_by_128() -> None:
    s = ASiTSettings()
    assert views.input_size(s, s.window) == (592, 128)
    assert views.input_size(settings(), 5280) == (64, 32)


def test_two_views_are_independent_windows_view_0_first() -> None:
    clips = torch.randn(8, 12_800, generator=generator(1))
    batch = views.pretraining_views(settings(), {"audio": clips}, generator())
    assert batch["fbank"].shape == batch["mask"].shape == (16, 64, 32)
    first, second = batch["fbank"].chunk(2)
    assert not torch.equal(first, second)


def test_half_of_the_clips_are_rolled(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def recorded(audio: Any, lengths: Any, starts: Any, window: int, shifts: Any = None) -> torch.Tensor:
        seen.append(shifts)
        return cut(audio, lengths, starts, window, shifts)

    monkeypatch.setattr(views, "cut", recorded)
    views.pretraining_views(settings(), {"audio": torch.zeros(400, 6000)}, generator())
    assert torch.equal(seen[0], seen[1])  # the clip is rolled, both views see it so
    assert 160 < int((seen[0] > 0).sum()) < 240
    assert int(seen[0].max()) < 6000


def test_replacements_come_from_the_same_view_of_other_clips() -> None:
    batch = views.corruption(settings(), torch.zeros(80, 1), 40, generator())
    partner = batch["partner"]
    assert partner[:40].max() < 40
    assert 40 <= partner[40:].min() <= partner[40:].max() < 80


def test_without_corruption_the_student_sees_clean_views() -> None:
    s = settings(corrupt=False)
    batch = views.pretraining_views(s, {"audio": torch.randn(4, 8000)}, generator())
    assert not batch["mask"].any()
    assert torch.equal(views.corrupted(batch["fbank"], batch), batch["fbank"])


def test_the_waveforms_mean_does_not_matter() -> None:
    clip = torch.randn(1, 5280, generator=generator())
    shifted = views.spectrogram(settings(), clip + 0.5)
    torch.testing.assert_close(shifted, views.spectrogram(settings(), clip), atol=1e-3, rtol=0)


def test_fixed_windows_are_evenly_spaced_and_one_is_the_middle() -> None:
    s, clips = settings(), torch.randn(2, 12_800, generator=generator())
    batch = {"audio": clips, "length": torch.full((2,), 12_800)}
    middle = (12_800 - 5280) // 2
    expected = views.spectrogram(s, clips[:, middle : middle + 5280])
    assert torch.equal(views.fixed_windows(s, batch, s.window, 1)[0], expected)
    three = views.fixed_windows(s, batch, s.window, 3)
    assert torch.equal(three[1], expected)
    assert torch.equal(three[0], views.spectrogram(s, clips[:, :5280]))
    assert torch.equal(three[2], views.spectrogram(s, clips[:, -5280:]))


# fine-tuning


def test_mixup_mixes_waveforms_and_says_by_how_much() -> None:
    s = settings(finetune_mixup=1.0)
    batch = {"audio": torch.randn(200, 5280, generator=generator()), "label": torch.arange(200) % 3}
    clips = views.finetuning_clips(s, batch, generator(1))
    shares = clips["share"].flatten().numpy()
    assert 0.45 < shares.mean() < 0.55
    assert shares.std() == pytest.approx((100 / (400 * 21)) ** 0.5, rel=0.2)  # Beta(10, 10)
    centered = batch["audio"] - batch["audio"].mean(1, keepdim=True)
    mixed = clips["share"] * centered + (1 - clips["share"]) * centered[clips["partner"]]
    torch.testing.assert_close(clips["fbank"], views.spectrogram(s, mixed), atol=1e-3, rtol=0)
    assert torch.equal(clips["label"], batch["label"])


def test_without_augmentation_clips_are_as_they_are() -> None:
    clips = views.finetuning_clips(settings(), {"audio": torch.randn(5, 5280), "label": torch.arange(5)}, generator())
    assert torch.equal(clips["share"], torch.ones(5, 1))
    assert clips["keep"].all()


def test_specaugment_masks_one_stripe_of_bins_and_one_of_frames() -> None:
    s = settings(finetune_masks=(8, 20))
    keep = views.finetuning_clips(s, {"audio": torch.randn(300, 5280)}, generator())["keep"].numpy()
    bins, frames = ~keep.any(1), ~keep.any(2)  # wholly masked
    assert bins.sum(1).max() == 7
    assert frames.sum(1).max() == 19
    for stripes in (bins, frames):
        assert all(np.count_nonzero(np.diff(row.astype(int))) <= 2 for row in stripes)


def test_longer_clips_in_fine_tuning_give_more_frames() -> None:
    s = settings(finetune_seconds=1.6)
    assert views.finetuning_clips(s, {"audio": torch.randn(2, 12_800)}, generator())["fbank"].shape == (2, 152, 32)
