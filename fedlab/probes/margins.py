"""Support vector machines on frozen features, as work on point clouds measures them."""

from __future__ import annotations

from typing import Any

import numpy as np


def svm_accuracy(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    strength: float = 1.0,
    kernel: bool = False,
) -> float:
    """Accuracy of a linear support vector machine on L2-normalized features.

    Args:
        train: (n, d).
        train_labels: (n,) of at least two classes.
        test: (m, d).
        test_labels: (m,).
        strength: C, inverse strength of the L2 penalty.
        kernel: False for scikit-learn's ``LinearSVC`` (squared hinge, one class against the rest), True for its
            ``SVC(kernel="linear")`` (hinge, one class against another). Papers differ in which of them they use.
    """
    machine = _machine(strength, kernel).fit(_normalized(train), train_labels)
    return float(machine.score(_normalized(test), test_labels))


def few_shot_accuracy(
    features: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    *,
    ways: int = 5,
    shots: int = 10,
    queries: int = 20,
    episodes: int = 10,
) -> tuple[float, float]:
    """Mean and standard deviation, over episodes, of the accuracy of a support vector machine trained on few samples.

    In each episode some classes are drawn, and of each class some samples to train on and others to test on. Features
    are standardized by the samples to train on.

    Args:
        features: (n, d).
        labels: (n,).
        rng: draws classes and samples.
        ways: number of classes of an episode.
        shots: samples of each class to train on.
        queries: samples of each class to test on; none of them is trained on.
        episodes: number of repetitions.

    Raises:
        ValueError: fewer than `ways` classes have ``shots + queries`` samples.

    Source: the protocol of Afham et al. 2022, arXiv 2203.00680 (CrossPoint).
    """
    classes, counts = np.unique(labels, return_counts=True)
    enough = classes[counts >= shots + queries]
    if len(enough) < ways:
        raise ValueError(f"{ways} classes of {shots + queries} samples; only {len(enough)} have as many")
    scores = []
    for _ in range(episodes):
        chosen = rng.choice(enough, ways, replace=False)
        drawn = [rng.permutation(np.flatnonzero(labels == one))[: shots + queries] for one in chosen]
        support, query = (np.concatenate([rows[part] for rows in drawn]) for part in (slice(shots), slice(shots, None)))
        mean, std = features[support].mean(0), features[support].std(0)
        std[std == 0] = 1.0
        machine = _machine(1.0, True).fit((features[support] - mean) / std, labels[support])
        scores.append(machine.score((features[query] - mean) / std, labels[query]))
    return float(np.mean(scores)), float(np.std(scores))


def _machine(strength: float, kernel: bool) -> Any:
    from sklearn.svm import SVC, LinearSVC

    return SVC(kernel="linear", C=strength) if kernel else LinearSVC(C=strength, random_state=0)


def _normalized(features: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(features, axis=1, keepdims=True)
    scaled: np.ndarray = features / np.where(norm > 0, norm, 1)
    return scaled
