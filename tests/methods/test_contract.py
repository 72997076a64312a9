"""What every method owes its users, whatever its paper says.

Workers, a stop and a resumption change no bit of its results; nothing travels but what it declares; and an aggregation
rule that works on the client composes with it. The runs are those of ``benchmarks.hashes``. A registered method without
an entry there fails here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import fedlab
from benchmarks.hashes import configuration, digest, entries
from fedlab.assembly import METHODS, make_method
from fedlab.method import Method
from fedlab.method.exchange import Exchange, Exchanges
from fedlab.storage.checkpoint import NETWORK, load_checkpoint
from tests.methods.shorter import shorter

# all in the process that has Ray, so that each method's reference run is made once
pytestmark = [pytest.mark.usefixtures("ray_workers"), pytest.mark.parametrize("name", METHODS.names())]
STEPS = "training.local_steps=3"  # a proximal term pulls to where the first step of a round starts
BESIDE_THE_STATE = {"shared", "results"}  # the ledger's words for what a method sends that is no network state


@dataclass
class Runs:
    """Small runs of the methods, and each method's own reference."""

    folder: Path
    references: dict[str, fedlab.Run] = field(default_factory=dict)
    started: int = 0

    def start(self, name: str, *overrides: str, whole: bool = False, **arguments: Any) -> fedlab.Run:
        """A run with a cache of its own, since a result that is found in a cache is not logged again."""
        self.started += 1
        config = configuration(entries()[f"method/{name}"], self.folder / str(self.started), 0)
        fixed = ["tracking.checkpoint_every=1", STEPS]
        with nullcontext() if whole else shorter():
            return fedlab.run(config, overrides=[*fixed, *overrides], **arguments)

    def reference(self, name: str) -> fedlab.Run:
        if name not in self.references:
            self.references[name] = self.start(name, whole=True)
        return self.references[name]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("contract"))


def weights(run: fedlab.Run) -> str:
    """Hash of what the server keeps: the networks' state, and the tensors of which clients have a copy."""
    tensors, _ = load_checkpoint(run.checkpoint)
    shared = {f"{NETWORK}{name}": value for name, value in tensors.items() if name.startswith("shared/")}
    return digest({**tensors, **shared})


def averages(run: fedlab.Run) -> bool:
    """Whether the clients' weights are averaged in some round of the run."""
    _, exchange_of = exchanges(run)
    return any(exchange_of(round).up for round in range(1, len(run.history.rounds) + 1))


def measured(run: fedlab.Run) -> str:
    """The last evaluation, to the bit."""
    return repr({scope: values for scope, values in run.metrics.items() if scope != "time"})


def logged(run: fedlab.Run) -> list[tuple[Any, ...]]:
    """What the rounds recorded of losses and bytes."""
    means = [{name: value for name, value in e["train"].items() if name != "seconds"} for e in run.history.rounds]
    return [(e["clients"], mean, e["server"], e["bytes"]) for e, mean in zip(run.history.rounds, means, strict=True)]


def test_workers_give_the_bits_of_one_process(runs: Runs, name: str) -> None:
    reference = runs.reference(name)
    spread = runs.start(name, "engine.name=ray", "engine.workers=2", "engine.chunk=1")
    assert weights(spread) == weights(reference)
    assert measured(spread) == measured(reference)
    assert logged(spread) == logged(reference)


def test_a_run_that_was_stopped_after_its_first_round_ends_as_if_it_had_not_been(runs: Runs, name: str) -> None:
    reference, stopped = runs.reference(name), runs.start(name, until=1)
    assert len(stopped.history.rounds) == 1
    assert weights(stopped) != weights(reference)
    with shorter():
        resumed = fedlab.resume(stopped.path)
    assert weights(resumed) == weights(reference)
    assert measured(resumed) == measured(reference)
    assert logged(resumed) == logged(reference)


def exchanges(run: fedlab.Run) -> tuple[Method, Callable[[int], Exchange]]:
    """A run's method, and the exchange of each of its rounds."""
    config, method = run.config, make_method(run.config.method)
    made = Exchanges(run.model, method, config.exchange.local)
    return method, lambda round: made.of(method.plan(round, config.federation.rounds))


def test_the_ledger_counts_what_the_method_declares_and_nothing_else(runs: Runs, name: str) -> None:
    run = runs.reference(name)
    method, exchange_of = exchanges(run)
    sent_once, population = Counter[str](), run.history.start["clients"]
    for event in run.history.rounds:
        exchange, clients = exchange_of(event["round"]), len(event["clients"])
        found = {group: sizes for group, sizes in event["bytes"].items() if any(sizes.values())}
        down, up = (exchange.bytes_by_group(names) for names in (exchange.down, exchange.up))
        once = exchange.bytes_by_group(exchange.once)
        assert set(found) <= {*down, *once, *BESIDE_THE_STATE}
        plan = method.plan(event["round"], run.config.federation.rounds)
        assert not found.keys() & {g.name for g in method.exchange(plan) if g.mode in ("local", "frozen", "rest")}
        for group in {*down, *up, *once}:
            sizes = found.get(group, {"down": 0, "up": 0})
            sent_once[group] += sizes["down"] - clients * down.get(group, 0)
            if group in exchange.needs:  # sent by those alone who hold the asset
                assert sizes["up"] % up[group] == 0
                assert 0 < sizes["up"] <= clients * up[group], (event["round"], group)
            elif not method.overrides("contributes"):
                assert sizes["up"] == clients * up.get(group, 0), (event["round"], group)
        for group, size in once.items():
            assert 0 <= sent_once[group] <= population * size, group
        assert all(sent_once[group] == 0 for group in down if group not in once), event["round"]


def test_a_proximal_term_composes_with_it_and_pulls_only_what_is_trained(runs: Runs, name: str) -> None:
    reference, pulled = runs.reference(name), runs.start(name, "federation.strategy={name: fedprox, mu: 5}")
    (before, _), (after, _) = (load_checkpoint(run.checkpoint) for run in (reference, pulled))
    assert all(torch.isfinite(value).all() for value in after.values() if value.is_floating_point())
    # a method whose weights all stay on the clients gives the term nothing to pull
    assert (weights(pulled) != weights(reference)) == averages(reference)
    _, exchange_of = exchanges(reference)
    fixed = [
        {*exchange.once, *exchange.frozen} for exchange in map(exchange_of, range(1, len(reference.history.rounds) + 1))
    ]
    for state in frozenset.intersection(*map(frozenset, fixed)):
        assert torch.equal(after[f"{NETWORK}{state}"], before[f"{NETWORK}{state}"]), state


def test_the_metrics_of_its_claim_are_measured(runs: Runs, name: str) -> None:
    run = runs.reference(name)
    method = type(make_method(run.config.method))
    for metric, scope in method.headline:
        assert scope in ("server", "mean"), f"{metric}: a report shows {scope!r} nowhere"
        assert metric in run.metrics[scope], f"{metric} is none of {', '.join(run.metrics[scope])}"
    assert run.history.start["headline"] == [list(pair) for pair in method.headline]
