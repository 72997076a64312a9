from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from fedlab.config import Component
from fedlab.data.files.images import resize, to_channels
from fedlab.data.generated import digits
from fedlab.data.samples import Dataset
from fedlab.data.sources import load_source
from fedlab.data.sources.shifted_digits import shift
from fedlab.errors import DataError


@pytest.fixture(scope="module")
def five() -> Dataset:
    return load_source(Component(name="digits", train_per_domain=200, test_per_domain=100), 0)


@pytest.fixture(scope="module")
def shifted() -> Dataset:
    return load_source(Component(name="shifted_digits"), 0)


def of_domain(dataset: Dataset, name: str, split: str = "train") -> np.ndarray:
    samples = getattr(dataset, split)
    return samples["image"][samples["domain"] == samples.domain_names.index(name)]


def rows(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


class TestDigits:
    def test_there_are_five_domains_of_the_wanted_sizes(self, five: Dataset) -> None:
        assert five.train.domain_names == ("handwritten", "mnist", "synth", "mnistm", "svhn")
        assert np.bincount(five.train["domain"]).tolist() == [200] * 5
        assert np.bincount(five.test["domain"]).tolist() == [100] * 5
        assert five.train["image"].shape == (1000, 3, 28, 28)
        assert five.train["image"].dtype == np.uint8

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_every_domain_is_balanced(self, five: Dataset, split: str) -> None:
        samples = getattr(five, split)
        table = np.array([np.bincount(samples["label"][samples["domain"] == d], minlength=10) for d in range(5)])
        assert (table == len(samples) // 50).all()

    def test_train_and_test_are_disjoint(self, five: Dataset) -> None:
        for name in five.train.domain_names:
            train, test = (rows(of_domain(five, name, split)) for split in ("train", "test"))
            assert not train & test
        assert len(rows(five.train["image"])) >= 995  # hardly any twice

    def test_two_domains_are_real_handwriting(self, five: Dataset) -> None:
        whole = load_source(
            Component(name="digits", domains=["handwritten", "mnist"], train_per_domain=200, test_per_domain=100), 5
        )
        written, labels = digits.handwritten()
        real = {image.tobytes(): label for image, label in zip(digits.gray_to_rgb(written, 28), labels, strict=True)}
        scanned, names = digits.mnist()
        real |= {image.tobytes(): label for image, label in zip(digits.gray_to_rgb(scanned, 28), names, strict=True)}
        for image, label in zip(whole.train["image"], whole.train["label"], strict=True):
            assert real[image.tobytes()] == label

    def test_no_scanned_digit_is_in_two_domains_or_splits(self) -> None:
        source = Component(name="digits", domains=["mnist", "mnistm"], train_per_domain=1500, test_per_domain=1000)
        dataset = load_source(source, 0)
        scanned, labels = digits.mnist()
        plain = rows(digits.gray_to_rgb(scanned, 28))
        halves = digits.deal(labels, [2500, 2500], np.random.default_rng(0))
        assert not set(halves[0]) & set(halves[1])
        mine = rows(of_domain(dataset, "mnist")) | rows(of_domain(dataset, "mnist", "test"))
        assert mine < plain
        # |patch − digit| differs from every plain digit, so compare by what was dealt: the blended half is the rest
        strokes = {digit.tobytes() for digit in scanned} - {
            image[0].tobytes() for image in np.r_[of_domain(dataset, "mnist"), of_domain(dataset, "mnist", "test")]
        }
        assert len(strokes) == 2500

    def test_the_runs_seed_changes_nothing_and_the_datas_does(self, five: Dataset) -> None:
        settings = {"train_per_domain": 200, "test_per_domain": 100}
        assert load_source(Component(name="digits", **settings), 7).fingerprint == five.fingerprint
        assert load_source(Component(name="digits", data_seed=1, **settings), 0).fingerprint != five.fingerprint

    def test_domains_differ_as_their_namesakes_do(self, five: Dataset) -> None:
        def colorful(name: str) -> float:
            images = of_domain(five, name).astype(float)
            return float((images.max(axis=1) - images.min(axis=1)).mean())

        assert colorful("handwritten") == colorful("mnist") == 0
        assert min(colorful(name) for name in ("synth", "mnistm")) > 20
        borders = {name: of_domain(five, name)[..., :2].mean() for name in five.train.domain_names}
        assert borders["mnist"] < 5
        assert borders["svhn"] > 40

    @pytest.mark.parametrize(
        ("settings", "hint"),
        [
            ({"train_per_domain": 1700}, "at most 1797 together"),
            ({"domains": ["mnist"], "train_per_domain": 2001}, "at most 2500 together"),
        ],
    )
    def test_more_images_than_there_are_are_refused(self, settings: dict[str, Any], hint: str) -> None:
        with pytest.raises(DataError, match=hint):
            load_source(Component(name="digits", **settings), 0)

    def test_made_domains_have_no_end(self) -> None:
        dataset = load_source(
            Component(name="digits", domains=["svhn"], train_per_domain=2100, test_per_domain=1, size=8), 0
        )
        assert len(dataset.train) == 2100


class TestDeal:
    def test_sets_are_disjoint_and_balanced(self) -> None:
        labels = np.random.default_rng(0).permutation(np.arange(100) % 10)
        parts = digits.deal(labels, [30, 40, 20], np.random.default_rng(1))
        assert [len(part) for part in parts] == [30, 40, 20]
        assert len(set(np.concatenate(parts))) == 90
        assert all((np.bincount(labels[part]) == len(part) // 10).all() for part in parts)


class TestShiftedDigits:
    """The acceptance experiment's data: fedlgd.md §7.2."""

    def test_every_client_has_260_images_of_its_own(self, shifted: Dataset) -> None:
        assert np.bincount(shifted.train["domain"]).tolist() == [260] * 5
        assert shifted.train["image"].shape == (1300, 3, 16, 16)
        table = np.array([np.bincount(shifted.train["label"][shifted.train["domain"] == d]) for d in range(5)])
        assert (table[:4] == 26).all()
        assert (np.abs(table[4] - 26) <= 2).all()

    def test_the_last_497_images_test_every_domain(self, shifted: Dataset) -> None:
        assert np.bincount(shifted.test["domain"]).tolist() == [497] * 5
        images, labels = digits.handwritten()
        for domain in range(5):
            assert np.array_equal(shifted.test["label"][shifted.test["domain"] == domain], labels[-497:])
        gray = to_channels(resize(images, 16), 3)
        assert np.array_equal(of_domain(shifted, "grey", "test"), gray[-497:])

    def test_clients_and_test_share_no_digit(self, shifted: Dataset) -> None:
        images, _ = digits.handwritten()
        gray = to_channels(resize(images, 16), 3)
        place = {image.tobytes(): index for index, image in enumerate(gray)}
        tinted = (1 - of_domain(shifted, "tinted")) / np.array([0.9, 0.6, 0.3], np.float32)[:, None, None]
        nearest = [int(np.abs(gray - picture).sum(axis=(1, 2, 3)).argmin()) for picture in tinted[:40]]
        used = {place[image.tobytes()] for image in of_domain(shifted, "grey")}
        assert len(used) == 260
        assert max(used) < 1300
        assert max(nearest) < 1300
        assert not used & set(nearest)

    def test_the_runs_seed_changes_nothing(self, shifted: Dataset) -> None:
        assert load_source(Component(name="shifted_digits"), 9).fingerprint == shifted.fingerprint
        assert load_source(Component(name="shifted_digits", data_seed=1), 0).fingerprint != shifted.fingerprint

    def test_too_many_images_are_refused(self) -> None:
        with pytest.raises(DataError, match="at most 26 with test_size: 497"):
            load_source(Component(name="shifted_digits", train_per_class=27), 0)
        with pytest.raises(DataError, match="at most 0"):
            load_source(Component(name="shifted_digits", test_size=5000), 0)

    def test_the_shifts_are_the_papers(self) -> None:
        images = np.random.default_rng(0).random((50, 3, 16, 16), dtype=np.float32)
        digit = np.zeros((200, 3, 16, 16), np.float32)
        digit[:, :, 6:10, 6:10] = 1

        def rng() -> np.random.Generator:
            return np.random.default_rng(3)

        assert np.array_equal(shift(images, 0, rng()), images)
        assert np.allclose(shift(images, 1, rng()), 1 - images * np.array([0.9, 0.6, 0.3])[:, None, None], atol=1e-6)

        blended = shift(digit, 2, rng())
        ground = digits.smooth_colors(200, 16, rng())
        assert np.allclose(blended, np.abs(ground - digit))
        steps = np.abs(np.diff(ground, axis=3))
        assert steps.max() < 0.35  # smooth: neighbors differ little, corners much
        assert ground.std() > 0.15

        blurred = shift(digit, 3, rng())
        assert blurred[:, :, 0, 0].mean() == pytest.approx(0.3, abs=0.02)
        assert blurred[:, :, 0, 0].std() == pytest.approx(0.1, abs=0.01)
        assert blurred[:, :, 8, 8].mean() == pytest.approx(0.3 + 0.5 * 16 / 25, abs=0.03)
        assert blurred[:, :, 6, 6].mean() == pytest.approx(0.3 + 0.5 * 9 / 25, abs=0.03)

        colored = shift(digit, 4, rng())
        ink, paper = colored[:, :, 8, 8], colored[:, :, 0, 8]
        assert ink.std() == pytest.approx(12**-0.5, abs=0.03)  # uniform in [0, 1]
        assert paper.std() == pytest.approx(12**-0.5, abs=0.03)
        assert np.abs(np.corrcoef(ink.ravel(), paper.ravel())[0, 1]) < 0.15
        wide = np.zeros((50, 3, 16, 16), np.float32)
        wide[:25, :, :, -4:] = 1  # ink at the right border shows at neighbors' left border
        beside = shift(wide, 4, rng())
        left, middle = beside[:, :, 8, 0], beside[:, :, 8, 8]
        assert 5 < (np.abs(left - middle).max(axis=1) > 1e-3).sum() < 45

    def test_all_values_are_pixels(self, shifted: Dataset) -> None:
        assert shifted.train["image"].min() >= 0
        assert shifted.train["image"].max() <= 1
        means = [of_domain(shifted, name).mean() for name in shifted.train.domain_names]
        assert all(abs(a - b) > 0.01 for a, b in pairwise(sorted(means)))
