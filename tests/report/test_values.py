from __future__ import annotations

import pytest

from fedlab.metrics.direction import best_of
from fedlab.report.values import (
    human_bytes,
    metric_names,
    metric_phrase,
    metric_value,
    moment,
    number,
)
from fedlab.tracking.durations import human_seconds


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (449_480, "449 kB"),
        (999_600, "1.00 MB"),
        (13_010_000, "13.0 MB"),
        (2.5e9, "2.50 GB"),
        (7e15, "7000 TB"),
    ],
)
def test_bytes_have_three_digits_and_a_decimal_unit(count: float, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"),
        (0.0123, "12 ms"),
        (0.2, "0.20 s"),
        (9.951, "10.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (76.65, "1 min 17 s"),
        (3599.7, "1 h 00 min"),
        (36_000, "10 h 00 min"),
    ],
)
def test_seconds_never_show_sixty_of_a_unit(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


def test_accuracies_are_percentages_and_other_metrics_are_not() -> None:
    assert metric_value("accuracy", 0.4639) == "46.4 %"
    assert metric_value("balanced_accuracy", 1.0) == "100.0 %"
    assert metric_value("f1_macro", 0.447) == "0.447"
    assert metric_value("recall@1", 0.25) == "0.250"


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), [0.1, 0.2], "x", True])
def test_a_value_that_is_no_number_is_a_dash(value: object) -> None:
    assert metric_value("accuracy", value) == "–"


def test_accuracy_comes_first_and_losses_last_whatever_else_there_is() -> None:
    assert metric_names(
        [{"loss": 1.0, "miou": 0.5}, {"accuracy": 0.1, "f1_macro": 0.2, "note": "x", "curve": [1]}]
    ) == [
        "accuracy",
        "f1_macro",
        "miou",
        "loss",
    ]
    assert metric_names([{"rmse": 1.0}]) == ["rmse"]
    assert metric_names([]) == []


def test_the_better_direction_is_claimed_only_where_the_name_tells() -> None:
    assert best_of("balanced_accuracy") is max
    assert best_of("recall@1") is max
    assert best_of("test_loss") is min
    assert best_of("temperature") is None


def test_names_keep_their_own_capitals() -> None:
    assert metric_phrase("balanced_accuracy") == "balanced accuracy"
    assert metric_phrase("f1_macro") == "F1 (macro)"
    assert metric_phrase("PSNR") == "PSNR"


def test_numbers_stay_short() -> None:
    assert [number(x) for x in (0, 1.23456, 216.71, 1e-5, -0.5, 3.2e7)] == [
        "0.000",
        "1.235",
        "216.7",
        "1.00e-05",
        "-0.500",
        "3.20e+07",
    ]


def test_moments_are_in_utc() -> None:
    assert moment(1795503415.7) == "2026-11-24 06:56 UTC"
    assert moment(None) == ""
