"""Metric values that an evaluation lacks, each with the reason that is true of it."""

from __future__ import annotations

from fedlab.server.tally import uncomputed

EXITS = {"accuracy": 0.5, "exit_4_accuracy": 0.4, "exit_40_accuracy": 0.6}


def test_a_metric_of_an_asset_that_a_client_does_not_hold_is_not_blamed_on_its_samples() -> None:
    clients = {
        "strong": EXITS,
        "weak": {"accuracy": 0.5, "exit_4_accuracy": 0.4},
        "odd": {"exit_4_accuracy": 0.4, "exit_40_accuracy": 0.6},
    }
    unable, unheld, infinite = uncomputed(clients, {}, {"weak": {"exit_40"}, "odd": {"exit_4"}})
    assert (unable.count, unable.examples) == (1, ("accuracy of odd",))
    assert "test samples do not allow" in unable.why
    assert (unheld.count, unheld.examples, unheld.wanted) == (1, ("exit_40_accuracy of weak",), True)
    assert "do not hold (data.holds)" in unheld.why
    assert unable.total == unheld.total == 9
    assert infinite.count == 0


def test_the_name_of_an_asset_counts_as_a_whole() -> None:
    """``exit_40`` is not ``exit_4``, which is what this client does not hold."""
    clients = {"a": EXITS, "b": {"accuracy": 0.5, "exit_4_accuracy": 0.4}}
    unable, unheld, _ = uncomputed(clients, {}, {"b": {"exit_4"}})
    assert (unable.examples, unheld.count) == (("exit_40_accuracy of b",), 0)


def test_without_assets_the_samples_are_the_reason() -> None:
    unable, unheld, _ = uncomputed({"a": EXITS, "b": {"accuracy": 0.1}}, {})
    assert (unable.count, unheld.count) == (2, 0)


def test_values_that_are_no_numbers_are_counted_wherever_they_are() -> None:
    *_, infinite = uncomputed({"a": {"loss": float("nan")}}, {"server": {"mAP": float("inf"), "rank1": 0.5}})
    assert (infinite.count, infinite.examples) == (2, ("loss of a", "mAP of server"))
