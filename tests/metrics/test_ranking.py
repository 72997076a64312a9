from __future__ import annotations

import pytest

from fedlab.metrics.ranking import average_ranks


def test_equal_scores_share_their_ranks_and_ranks_are_averaged_over_tasks() -> None:
    scores = [[0.9, 0.7], [0.8, 0.6], [0.8, 0.9]]
    assert average_ranks(scores).tolist() == [1.5, 2.75, 1.75]


def test_lower_is_better_where_it_is_said() -> None:
    scores = [[0.9, 0.7], [0.8, 0.6], [0.8, 0.9]]
    assert average_ranks(scores, [False, True]).tolist() == [1.5, 1.75, 2.75]
    assert average_ranks(scores, [True, True]).sum() == pytest.approx(6.0)
