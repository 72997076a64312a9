"""Support vector machines on features, against what must hold for any features."""

from __future__ import annotations

import numpy as np
import pytest

from fedlab.probes.margins import few_shot_accuracy, svm_accuracy


def clusters(n: int, classes: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return np.eye(classes)[labels] + rng.normal(0, spread, (n, classes)), labels


@pytest.mark.parametrize("kernel", [False, True])
def test_separate_classes_are_told_apart_and_noise_is_not(kernel: bool) -> None:
    train, test = clusters(60, 3, 0.05), clusters(30, 3, 0.05, 1)
    assert svm_accuracy(*train, *test, kernel=kernel) == 1
    noise = np.random.default_rng(2).normal(size=(600, 3))
    assert svm_accuracy(noise[:300], train[1].repeat(5), noise[300:], train[1].repeat(5), kernel=kernel) < 0.45


def test_only_the_direction_of_features_counts() -> None:
    (train, labels), (test, targets) = clusters(60, 3, 0.3), clusters(90, 3, 0.3, 1)
    length = np.random.default_rng(0).uniform(0.1, 50, (60, 1))
    assert svm_accuracy(length * train, labels, test, targets) == svm_accuracy(train, labels, test, targets)
    zero = np.vstack([test, np.zeros((1, 3))])
    assert np.isfinite(svm_accuracy(train, labels, zero, np.append(targets, 0)))


def test_the_two_machines_are_scikit_learns() -> None:
    from sklearn.svm import SVC, LinearSVC

    (train, labels), (test, targets) = clusters(60, 4, 0.6), clusters(200, 4, 0.6, 1)

    def unit(x: np.ndarray) -> np.ndarray:
        return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))

    for kernel, machine in ((False, LinearSVC(random_state=0)), (True, SVC(kernel="linear"))):
        expected = machine.fit(unit(train), labels).score(unit(test), targets)
        assert svm_accuracy(train, labels, test, targets, kernel=kernel) == expected


def test_few_shots_never_meet_in_training_and_test(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[set[float], set[float], int]] = []

    class Machine:
        def fit(self, x: np.ndarray, y: np.ndarray) -> Machine:
            self.trained, self.labels = x, y
            return self

        def score(self, x: np.ndarray, y: np.ndarray) -> float:
            assert np.array_equal(np.unique(y), np.unique(self.labels))
            assert (np.bincount(self.labels)[np.unique(y)] == 2).all()
            assert (np.bincount(y)[np.unique(y)] == 3).all()
            seen.append((set(self.trained[:, 0].tolist()), set(x[:, 0].tolist()), len(np.unique(y))))
            return 0.5

    monkeypatch.setattr("fedlab.probes.margins._machine", lambda strength, kernel: Machine())
    features = np.arange(80, dtype=float)[:, None] + np.zeros((80, 2))
    mean, std = few_shot_accuracy(
        features, np.arange(80) % 8, np.random.default_rng(0), ways=4, shots=2, queries=3, episodes=6
    )
    assert (mean, std) == (0.5, 0)
    assert len(seen) == 6
    assert all(not trained & tested and ways == 4 for trained, tested, ways in seen)


def test_few_shots_of_separate_classes_are_all_right_and_of_noise_are_chance() -> None:
    features, labels = clusters(300, 10, 0.02)
    assert few_shot_accuracy(features, labels, np.random.default_rng(0)) == (1.0, 0.0)
    noise = np.random.default_rng(1).normal(size=(300, 10))
    assert few_shot_accuracy(noise, labels, np.random.default_rng(0), episodes=20)[0] == pytest.approx(0.2, abs=0.06)


def test_episodes_need_enough_samples_of_enough_classes() -> None:
    with pytest.raises(ValueError, match="only 0"):
        few_shot_accuracy(np.zeros((40, 2)), np.arange(40) % 10, np.random.default_rng(0))
