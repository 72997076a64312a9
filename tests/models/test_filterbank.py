from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlab.models.filterbank import FilterBank


def test_six_seconds_at_32_khz_are_598_frames_of_which_592_are_whole_patches() -> None:
    bank = FilterBank(32_000, 128)
    assert (bank.frame, bank.shift, bank.fft) == (800, 320, 1024)
    assert bank.frames(192_000) == 598
    assert bank(torch.zeros(1, 192_000)).shape == (1, 598, 128)
    assert FilterBank(8000, 32).frames(5280) == 64
    assert bank.frames(799) == 0


@pytest.mark.filterwarnings("ignore:At least one mel filter:UserWarning")
def test_it_is_the_filter_bank_of_transformers_feature_extractor() -> None:
    from transformers import ASTFeatureExtractor

    waves = 0.1 * torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0)).cumsum(1) / 10
    extractor = ASTFeatureExtractor(do_normalize=False, max_length=98)
    expected = extractor([wave.numpy() for wave in waves], sampling_rate=16_000, return_tensors="np")["input_values"]
    np.testing.assert_allclose(FilterBank(16_000, 128)(waves).numpy(), expected, atol=2e-3)


@pytest.mark.parametrize(("rate", "bins"), [(8000, 32), (32_000, 128)])
def test_it_is_the_filter_bank_of_transformers_audio_utils_at_other_rates(rate: int, bins: int) -> None:
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    bank = FilterBank(rate, bins)
    wave = torch.randn(rate, generator=torch.Generator().manual_seed(1))
    filters = mel_filter_bank(
        bank.fft // 2 + 1, bins, 20, rate / 2, rate, norm=None, mel_scale="kaldi", triangularize_in_mel_space=True
    )
    expected = spectrogram(
        wave.numpy().astype(np.float64), window_function(bank.frame, "hann", periodic=False), bank.frame, bank.shift,
        bank.fft, power=2.0, center=False, preemphasis=0.97, mel_filters=filters, log_mel="log", mel_floor=1.192e-7,
        remove_dc_offset=True,
    ).T  # fmt: skip
    np.testing.assert_allclose(bank(wave[None])[0].numpy(), expected, atol=2e-3)


def test_time_is_the_first_axis_and_silence_is_the_floor() -> None:
    bank, t = FilterBank(8000, 32), torch.arange(8000) / 8000
    sweep = torch.sin(2 * torch.pi * (300 * t + 600 * t**2))  # 300 to 1500 Hz
    loudest = bank(sweep[None])[0].argmax(1)
    assert loudest[0] < loudest[len(loudest) // 2] < loudest[-1]
    assert bank(torch.full((1, 400), 0.3)).unique().tolist() == pytest.approx([np.log(np.finfo(np.float32).eps)])
