"""Gates of acceptance experiments over runs whose histories are made up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import TypeAdapter

from fedlab.config import parse
from fedlab.config.sections import ConfigErrors
from fedlab.studies.acceptance import Acceptance
from fedlab.studies.gates import AnyGate, last_value, lower_bound
from fedlab.studies.outcome import judge
from fedlab.tracking import History


@dataclass(frozen=True)
class Done:
    """A run of which only the history counts."""

    history: History


def done(*accuracies: float, ce: tuple[float, ...] = (), server: float = 0.5) -> Done:
    events: list[dict[str, Any]] = [
        {"event": "round", "round": r, "train": {"ce": value}, "server": {"gap": value / 2}}
        for r, value in enumerate(ce, start=1)
    ]
    events += [
        {
            "event": "evaluation",
            "round": r,
            "mean": {"accuracy": value},
            "pooled": {"accuracy": value - 0.1},
            "server": {"accuracy": server},
            "clients": {},
        }
        for r, value in enumerate(accuracies, start=1)
    ]
    return Done(History(tuple(events)))


def judged(results: Mapping[str, Mapping[int, Done]], **gate: Any) -> tuple[float, bool]:
    made: Any = TypeAdapter(AnyGate).validate_python({"name": "gate", **gate})
    seen = made.seen(results)
    value, met = made.judge(seen)
    return round(value, 6), met


RUNS = {
    "good": {0: done(0.2, 0.8, ce=(4.0, 1.0)), 1: done(0.6, ce=(4.0, 3.0))},
    "bad": {0: done(0.4), 1: done(0.5)},
    "worse": {0: done(0.2), 1: done(0.1), 2: done(0.9)},
}


def test_a_difference_is_in_points_and_of_means_over_arms_and_seeds() -> None:
    assert judged(RUNS, kind="difference", left="good", minus="bad", at_least=25) == (25.0, True)
    assert judged(RUNS, kind="difference", left="good", minus=["bad", "worse"], at_least=40.1) == (40.0, False)


def test_a_seed_counts_only_where_all_arms_have_it() -> None:
    missing = {**RUNS, "bad": {0: done(0.4)}}
    assert judged(missing, kind="difference", left="good", minus=["bad", "worse"], at_least=1) == (50.0, True)


@pytest.mark.parametrize(
    ("scope", "metric", "value"),
    [
        ("mean", "accuracy", 0.8),
        ("pooled", "accuracy", 0.7),
        ("server", "accuracy", 0.5),
        ("train", "ce", 1.0),
        ("logged", "gap", 0.5),
        ("train", "accuracy", None),
    ],
)
def test_a_metric_is_read_where_its_scope_says(scope: Any, metric: str, value: float | None) -> None:
    found = last_value(RUNS["good"][0].history, metric, scope)
    assert found == (None if value is None else pytest.approx(value))


def test_a_threshold_bounds_the_mean_over_the_seeds_on_either_side() -> None:
    assert judged(RUNS, kind="threshold", arm="good", at_least=0.7) == (0.7, True)
    assert judged(RUNS, kind="threshold", arm="good", at_most=0.69) == (0.7, False)
    assert judged(RUNS, kind="threshold", arm="good", at_least=0.1, at_most=0.9) == (0.7, True)


def test_a_quotient_compares_arms_and_a_trend_the_ends_of_a_series() -> None:
    assert judged(RUNS, kind="quotient", left="good", over="bad", at_least=1.5) == (1.6, True)
    assert judged(RUNS, kind="trend", arm="good", metric="ce", scope="train", at_most=0.4) == (0.5, False)
    assert judged(
        {"none": {0: done(0.0)}, "bad": RUNS["bad"]}, kind="quotient", left="bad", over="none", at_most=9
    ) == (
        float("inf"),
        False,
    )


def experiment(**changes: Any) -> Acceptance:
    raw = {
        "source": "made up",
        "base": {},
        "seeds": [0],
        "arms": {"good": {}, "bad": {}},
        "gates": [{"kind": "threshold", "name": "enough", "arm": "good", "at_least": 1}],
        **changes,
    }
    return parse(Acceptance, raw)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gates": [{"kind": "threshold", "name": "x", "arm": "good"}]}, "a gate with at_least or at_most"),
        (
            {"gates": [{"kind": "difference", "name": "x", "left": ["good", "bat"], "minus": "bad", "at_least": 1}]},
            "bat",
        ),
        ({"seeds_of": {"goof": [0]}}, "did you mean 'good'?"),
        ({"gates": [{"kind": "threshold", "name": "x", "arm": [], "at_most": 1}]}, "gates.0"),
        (
            {
                "gates": [
                    {"kind": "ratio", "name": "x", "arm": "good", "server": ["a", "b"], "at_most": 1, "metric": "c"}
                ]
            },
            "metric",
        ),
    ],
)
def test_gates_that_make_no_sense_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        experiment(**changes)
    assert told in str(caught.value)


# statistics over the seeds


def test_the_median_counts_where_it_is_asked_for() -> None:
    runs = {"good": {seed: done(value) for seed, value in enumerate((0.5, 0.6, 1.0))}}
    threshold = {"kind": "threshold", "arm": "good", "at_least": 0.65}
    assert judged(runs, **threshold) == (0.7, True)
    assert judged(runs, **threshold, statistic="median") == (0.6, False)


def test_a_lower_bound_is_that_of_students_t() -> None:
    """Five values with mean 3 and standard deviation √2.5; t of 90 % with four degrees of freedom is 1.533206."""
    assert lower_bound([1, 2, 3, 4, 5]) == pytest.approx(3 - 1.533206 * math.sqrt(2.5 / 5), abs=1e-5)
    assert lower_bound([2.0, 2.0]) == 2.0
    runs = {"good": {seed: done(value) for seed, value in enumerate((0.5, 0.7))}}
    value, met = judged(runs, kind="threshold", arm="good", at_least=0.3, statistic="lower")
    assert value == pytest.approx(0.6 - 3.077684 * 0.1, abs=1e-5)
    assert not met
    assert judged(runs, kind="threshold", arm="good", at_least=0.29, statistic="lower")[1]
    gate: Any = TypeAdapter(AnyGate).validate_python(
        {"name": "g", "kind": "difference", "left": "a", "minus": "b", "at_least": 1, "statistic": "lower"}
    )
    assert gate.required == "lower ≥ 1 points"
    one_seed: Any = {"a": {0: done(0.9)}, "b": {0: done(0.1)}}
    assert judge(gate, one_seed).word == "not judged"
    with pytest.raises(ValueError, match="at_most, of which a lower confidence bound says nothing"):
        judged(runs, kind="threshold", arm="good", at_most=0.3, statistic="lower")


# ranks


def scored(accuracy: float, ce: float, seeds: int = 1) -> dict[int, Done]:
    event = {"event": "evaluation", "round": 1, "mean": {"accuracy": accuracy, "ce": ce}, "clients": {}}
    return {seed: Done(History((event,))) for seed in range(seeds)}


def test_ranks_are_averaged_over_metrics_with_ties_shared_and_losses_turned_round() -> None:
    runs = {"a": scored(0.9, 0.5), "b": scored(0.8, 0.2), "c": scored(0.8, 0.9)}
    rank = {"kind": "rank", "among": ["b", "c"], "metrics": ["accuracy", "ce"], "at_most": 1.5}
    assert judged(runs, arm="a", **rank) == (1.5, True)
    assert judged(runs, arm="b", **{**rank, "among": ["a", "c"]}) == (1.75, False)
    assert judged(runs, arm="c", **{**rank, "among": ["a", "b"]}) == (2.75, False)
    for metric, told in (("purpose", "is known whether"), ("accuracy", "says nothing")):
        wrong = {"statistic": "lower"} if metric == "accuracy" else {}
        with pytest.raises(ValueError, match=told):
            judged(runs, arm="a", **{**rank, "metrics": [metric], **wrong})


def test_a_seed_in_which_an_arm_lacks_a_metric_has_no_rank() -> None:
    rank: Any = TypeAdapter(AnyGate).validate_python(
        {"name": "r", "kind": "rank", "arm": "a", "among": ["b"], "metrics": ["accuracy", "ce"], "at_most": 1}
    )
    runs: Any = {"a": scored(0.9, 0.5, seeds=2), "b": {0: done(0.3), 1: scored(0.8, 0.2)[0]}}
    assert rank.seen(runs) == {1: 1.5}
    assert rank.arms == ("a", "b")
