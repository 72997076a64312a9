"""The privacy guarantee of a run and the budget that it has spent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedlab.report.blocks import Chart, Table
from fedlab.report.charts import lines_chart
from fedlab.report.record import RunRecord
from fedlab.report.values import is_number, number

_SCOPE = (
    "ε covers only what the privacy mechanism releases; it does not cover the metrics, evaluations and pictures on "
    "this page. The noise is drawn from the run’s seed, so this run simulates the cost of privacy and guarantees none."
)


def privacy_figure(record: RunRecord) -> tuple[str, str, str] | None:
    """(name, value, remark) of ε after the last round."""
    spent = _last(record)
    if not spent:
        return None
    who = "worst client, " if spent.get("clients") else ""
    return "Privacy ε", _epsilon(spent.get("epsilon")), f"{who}{spent['adjacency']}, δ {spent['delta']:g}"


def privacy(record: RunRecord) -> tuple[Table, Chart | None, Table | None] | None:
    """The guarantee, a chart of ε over the rounds, and a table of the clients if each has a budget of its own."""
    spent = _last(record)
    if not spent:
        return None
    rows = [
        ("Mechanism", str(record.setting("privacy", "name") or "")),
        ("ε", _epsilon(spent.get("epsilon"))),
        ("δ", f"{spent['delta']:g}"),
        ("Adjacency", str(spent["adjacency"])),
        ("Sampling", str(spent["sampling"])),
        ("Noise multiplier", number(spent["noise_multiplier"])),
        ("Clip norm", number(spent["clip"])),
    ]
    names = _names(record)
    by_round = {round: event["privacy"] for round, event in record.rounds.items() if event.get("privacy")}
    series: dict[str, dict[int, float]] = {}
    for round, event in by_round.items():
        clients: Mapping[str, Any] = event.get("clients") or {"all": event.get("epsilon")}
        for client, epsilon in clients.items():
            if is_number(epsilon):
                series.setdefault(names.get(client, client), {})[round] = epsilon
    chart = None
    if series:
        chart = Chart(
            "ε spent up to each round",
            lines_chart("privacy", series, ylabel=f"ε at δ {spent['delta']:g}", span=record.span),
            "" if len(series) < 2 else "ε of each client for its own steps; the ε of the run is the largest.",
        )
    return Table(("Guarantee", "Value"), rows, note=_SCOPE, text_columns=1), chart, _accounts(record, spent, names)


def _accounts(record: RunRecord, spent: Mapping[str, Any], names: Mapping[str, str]) -> Table | None:
    own = {
        str(event["client"]): event["privacy"]
        for event in sorted(record.history.of("client"), key=lambda event: int(event["round"]))
        if event.get("privacy")
    }
    if not own:
        return None
    rows = [
        [
            names.get(client, client),
            _epsilon(spent["clients"].get(client)),
            number(facts["rate"]),
            number(facts["noise_multiplier"]),
            f"{facts['steps']:,}",
        ]
        for client, facts in sorted(own.items(), key=lambda item: int(item[0]))
    ]
    return Table(("Client", "ε", "Sampling rate", "Noise multiplier", "Noisy steps"), rows)


def _last(record: RunRecord) -> Mapping[str, Any]:
    return record.rounds[max(record.rounds)].get("privacy") or {} if record.rounds else {}


def _names(record: RunRecord) -> dict[str, str]:
    """Names by client id."""
    clients = record.partition.get("clients")
    return {str(i): str(found["name"]) for i, found in enumerate(clients)} if isinstance(clients, list) else {}


def _epsilon(value: Any) -> str:
    return number(value) if is_number(value) else "infinite"
