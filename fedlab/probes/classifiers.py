"""Simple classifiers on frozen features: linear probe, nearest neighbors, and mean average precision."""

from __future__ import annotations

import numpy as np


def linear_probe(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, strength: float = 0.1
) -> float:
    """Score of logistic regression on standardized features.

    Args:
        train: (n, d); test: (m, d).
        train_labels: (n,) classes, or (n, K) truth values where a sample may have several; `test_labels` likewise.
        strength: C, inverse strength of the L2 penalty.

    Returns:
        Accuracy; mean average precision over the classes for several labels a sample.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    mean, std = train.mean(0), train.std(0)
    std[std == 0] = 1.0
    train, test = (train - mean) / std, (test - mean) / std
    regression = LogisticRegression(C=strength, max_iter=2000)
    if train_labels.ndim == 2:
        known = np.flatnonzero(train_labels.any(0) & ~train_labels.all(0))
        fitted = OneVsRestClassifier(regression).fit(train, train_labels[:, known])
        scores = np.zeros(test_labels.shape)
        scores[:, known] = np.reshape(fitted.predict_proba(test), (len(test), -1))[:, -len(known) :]
        return mean_average_precision(scores, test_labels)
    if len(np.unique(train_labels)) == 1:
        return float((test_labels == train_labels[0]).mean())
    return float(regression.fit(train, train_labels).score(test, test_labels))


def nearest_neighbors(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, neighbors: int = 5
) -> float:
    """Score of the `neighbors` nearest training samples by cosine distance; arguments and result as `linear_probe`."""
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    chosen = {"n_neighbors": min(neighbors, len(train)), "metric": "cosine"}
    if train_labels.ndim == 2:
        scores = KNeighborsRegressor(**chosen).fit(train, train_labels.astype(float)).predict(test)
        return mean_average_precision(scores, test_labels)
    return float(KNeighborsClassifier(**chosen).fit(train, train_labels).score(test, test_labels))


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Exact average precision, averaged over the classes that occur; 0 if none does.

    Args:
        scores: (n, K), larger is likelier.
        labels: (n, K) truth values.
    """
    from sklearn.metrics import average_precision_score

    occurs = labels.astype(bool).any(0)
    if not occurs.any():
        return 0.0
    return float(average_precision_score(labels[:, occurs], scores[:, occurs], average="macro"))
