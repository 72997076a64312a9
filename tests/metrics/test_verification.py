"""Error rates of verification: known answers, agreement with scikit-learn, merging, whole videos."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedlab.metrics.verification import EDGES, Verification, video_means

LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1])
SCORES = np.array([0.1, 0.2, 0.3, 0.8, 0.25, 0.7, 0.9, 0.95])


def measured(scores: Any, labels: Any, threshold: float | None = None) -> Verification:
    metric = Verification(threshold)
    metric.update(np.asarray(scores, float), np.asarray(labels))
    return metric


def test_the_known_answer_of_the_specification() -> None:
    metric = measured(SCORES, LABELS, 0.7)
    # the last grid point k / 10000 at which a score of 0.7 is still accepted
    assert metric.equal_error_threshold() == 0.7
    assert metric.compute() == {
        "auroc": 0.8125, "eer": 0.25, "hter_at_test_eer": 0.25, "hter": 0.25, "tpr_at_fpr1": 0.5, "accuracy": 0.75,
        "balanced_accuracy": 0.75,
    }  # fmt: skip


def test_perfect_and_reversed_scores() -> None:
    perfect = measured([0.1, 0.2, 0.6, 0.7], [0, 0, 1, 1], 0.5).compute()
    assert (perfect["auroc"], perfect["eer"], perfect["hter"], perfect["tpr_at_fpr1"]) == (1, 0, 0, 1)
    assert measured([0.6, 0.7, 0.1, 0.2], [0, 0, 1, 1]).compute()["auroc"] == 0
    assert measured([0.6, 0.7, 0.1, 0.2], [0, 0, 1, 1]).compute()["eer"] == 1


def test_the_threshold_that_was_given_counts_and_not_the_best_one() -> None:
    values = measured(SCORES, LABELS, 0.85).compute()
    assert values["hter"] == (0 + 2 / 4) / 2
    assert values["hter_at_test_eer"] == 0.25
    assert "hter" not in measured(SCORES, LABELS).compute()


def test_equal_scores_tell_nothing() -> None:
    values = measured([0.4] * 6, [0, 0, 0, 1, 1, 1]).compute()
    assert (values["auroc"], values["eer"], values["tpr_at_fpr1"]) == (0.5, 0.5, 0)


def test_it_agrees_with_scikit_learn_also_where_scores_crowd_near_0_and_1() -> None:
    from scipy.interpolate import interp1d
    from scipy.optimize import brentq
    from sklearn.metrics import roc_auc_score, roc_curve

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 2000)
    for scale in (1, 8):
        scores = 1 / (1 + np.exp(-scale * (rng.normal(size=2000) + 1.5 * labels - 0.7)))
        values = measured(scores, labels).compute()
        assert values["auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=2e-4)
        fpr, tpr, _ = roc_curve(labels, scores)
        curve = interp1d(fpr, tpr)
        root = brentq(lambda x, found=curve: 1 - x - found(x), 0, 1)
        assert values["eer"] == pytest.approx(root, abs=1e-3)
        assert values["tpr_at_fpr1"] == pytest.approx(tpr[fpr <= 0.01].max(), abs=2e-3)


def test_a_model_that_has_hardly_begun_to_learn_is_ranked_too() -> None:
    """Its scores differ from 1/2 by less than the width of most bins."""
    scores = 0.5 + np.array([-2e-6, -1e-7, 3e-8, 1e-6])
    assert measured(scores, [0, 0, 1, 1]).compute()["auroc"] == 1


def test_merged_parts_are_the_whole() -> None:
    whole, merged = measured(SCORES, LABELS, 0.7), Verification()
    for rows in (slice(0, 3), slice(3, 8)):
        merged.merge(measured(SCORES[rows], LABELS[rows], 0.7).state())
    assert merged.compute() == whole.compute()
    assert {name: values.shape for name, values in whole.state().items()} == {
        "bins": (2, len(EDGES)), "decided": (2, 2), "right": (2,),
    }  # fmt: skip


def test_one_kind_of_label_measures_nothing() -> None:
    assert measured([0.1, 0.9], [1, 1]).compute() == {}
    assert measured([], []).compute() == {}
    assert measured([0.1], [0]).equal_error_threshold() is None


def test_a_video_counts_once_with_the_mean_of_its_frames() -> None:
    scores, labels = video_means(np.array([0.2, 0.9, 0.4, 0.7]), np.array([0, 1, 0, 1]), np.array([7, 3, 7, 3]))
    assert scores.tolist() == pytest.approx([0.8, 0.3])
    assert labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match="different labels"):
        video_means(np.array([0.2, 0.9]), np.array([0, 1]), np.array([7, 7]))


@pytest.mark.parametrize(("scores", "labels"), [([1.1], [1]), ([-0.1], [1]), ([np.nan], [1]), ([0.5], [2])])
def test_what_is_no_probability_or_no_label_is_refused(scores: list[float], labels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"probabilities|labels"):
        measured(scores, labels)
