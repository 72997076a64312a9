from __future__ import annotations

import copy

import pytest
import torch

from fedlab.models.filterbank import FilterBank
from fedlab.models.spectra import Normalizer, filterbank_sums


def test_statistics_are_those_of_all_frames_without_the_padding() -> None:
    bank = FilterBank(8000, 32)
    clips = torch.randn(3, 4000, generator=torch.Generator().manual_seed(0))
    clips[1, 2000:] = 0
    length = torch.tensor([4000, 2000, 4000])
    halves = [{"audio": clips[part], "length": length[part]} for part in (slice(2), slice(2, 3))]
    sums = filterbank_sums(bank, halves)
    assert sums[0] == 32 * (2 * bank.frames(4000) + bank.frames(2000))
    parts = [bank((clip - clip.mean())[None])[0] for clip in clips]
    whole = torch.cat([part[: bank.frames(int(n))] for part, n in zip(parts, length, strict=True)])
    assert float(sums[1] / sums[0]) == pytest.approx(float(whole.mean()), abs=0.05)


def test_normalization_has_its_factor_two_and_takes_pooled_statistics() -> None:
    normalizer = Normalizer(-4.2677393, 4.5689974)
    x = torch.randn(1000) * 3 + 5
    torch.testing.assert_close(normalizer(x), (x + 4.2677393) / (2 * 4.5689974))
    parts = [part.double() for part in x.split([300, 700])]
    normalizer.set(sum(torch.tensor([len(p), float(p.sum()), float(p.square().sum())]).double() for p in parts))
    assert float(normalizer(x).std(correction=0)) == pytest.approx(0.5, rel=1e-4)
    assert float(normalizer(x).mean()) == pytest.approx(0, abs=1e-5)
    before = copy.deepcopy(normalizer.state_dict())
    normalizer.set(torch.zeros(3).double())  # nobody has a sample
    assert all(torch.equal(value, before[name]) for name, value in normalizer.state_dict().items())
