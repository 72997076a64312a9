"""How much a figure stands on, in words."""

from __future__ import annotations

import pytest

from fedlab.tracking.basis import Basis, alike, basis, server_basis

EVENT = {
    "clients": {"a": {"mAP": 0.5}, "b": {}, "c": {"mAP": 0.1}},
    "unseen_clients": ["c"],
    "samples": {"a": 1000, "b": 200, "c": 1},
    "unit": "queries",
}


@pytest.mark.parametrize(
    ("scope", "metric", "words"),
    [
        ("mean", None, "1,200 queries of 2 clients"),
        ("pooled", None, "1,200 queries of 2 clients"),
        ("mean", "mAP", "1,000 queries of 1 client"),
        ("unseen", "mAP", "1 query of 1 unseen client"),
        ("strategy", None, "1,201 queries of 3 clients"),
        ("b", None, "200 queries of 1 client"),
        ("nobody", None, "0 queries of 0 clients"),
    ],
)
def test_each_scope_counts_its_clients(scope: str, metric: str | None, words: str) -> None:
    assert str(basis(EVENT, scope, metric)) == words


def test_validation_samples_have_a_count_of_their_own() -> None:
    event = {**EVENT, "validation_basis": {"clients": 3, "samples": 40}}
    assert str(basis(event, "validation")) == str(basis(event, "validation_pooled")) == "40 queries of 3 clients"
    assert str(basis({**event, "unit": "test samples"}, "validation")) == "40 validation samples of 3 clients"
    assert basis(event, "mean").samples == 1200


def test_records_of_older_versions_say_how_many_clients() -> None:
    assert str(basis({"clients": EVENT["clients"]})) == "3 clients"
    assert server_basis({}) == ""


def test_runs_that_stand_on_different_numbers_say_from_where_to_where() -> None:
    runs = [Basis(2, 300), Basis(2, 20), Basis(2, 100), Basis(2, 20)]
    assert alike(runs) == "20 test samples of 2 clients to 300 test samples of 2 clients"
    assert alike(runs[1::2]) == "20 test samples of 2 clients"
    assert alike([]) == "–"


def test_the_servers_sets_are_named_with_their_sizes() -> None:
    assert server_basis({"server_samples": {"query": 120, "gallery": 2400}}) == "query 120, gallery 2,400 samples"
    assert server_basis({"server_samples": {"probe": 1}}) == "probe 1 sample"
