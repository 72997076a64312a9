"""How many clients and samples a result is based on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

TEST_SAMPLES, VALIDATION_SAMPLES = "test samples", "validation samples"


@dataclass(frozen=True)
class Basis:
    """The clients and samples that a value is based on.

    Args:
        clients: number of clients.
        samples: number of their samples; None if the record does not say, as in older versions.
        unit: what `samples` counts, in the plural.
        kind: ``unseen`` if they are unseen clients, else "".
    """

    clients: int
    samples: int | None
    unit: str = TEST_SAMPLES
    kind: str = ""

    @property
    def amount(self) -> str:
        """``1,000 test samples``; "" if the number is not known."""
        return "" if self.samples is None else counted(self.samples, self.unit)

    @property
    def who(self) -> str:
        """``5 clients``, ``1 unseen client``."""
        return counted(self.clients, f"{self.kind} clients".strip())

    def __str__(self) -> str:
        return f"{self.amount} of {self.who}" if self.amount else self.who


def basis(event: Mapping[str, Any], scope: str = "mean", metric: str | None = None) -> Basis:
    """The clients and samples that a value of an evaluation is based on.

    Args:
        event: of an evaluation.
        scope: ``mean`` and ``pooled`` are of the clients that may train, ``unseen`` of the others, ``strategy`` of all,
            ``validation`` and ``validation_pooled`` of those with validation samples; or a client's name.
        metric: count only clients that have this metric; None counts all that were evaluated.
    """
    if scope.startswith("validation") and (counts := event.get("validation_basis")):
        unit = str(event.get("unit") or TEST_SAMPLES)
        told = VALIDATION_SAMPLES if unit == TEST_SAMPLES else unit
        return Basis(int(counts["clients"]), int(counts["samples"]), told)
    clients, unseen = event.get("clients") or {}, set(event.get("unseen_clients") or ())
    groups = {
        "mean": [name for name in clients if name not in unseen],
        "unseen": [name for name in clients if name in unseen],
        "strategy": list(clients),
    }
    groups["pooled"] = groups["mean"]
    held = groups.get(scope, [scope] if scope in clients else [])
    if metric is not None:
        held = [name for name in held if clients[name].get(metric) is not None]
    samples = event.get("samples") or {}
    known = all(name in samples for name in held)
    total = sum(samples[name] for name in held) if known else None
    return Basis(len(held), total, str(event.get("unit") or TEST_SAMPLES), "unseen" if scope == "unseen" else "")


def server_basis(event: Mapping[str, Any]) -> str:
    """The server's sample sets with their sizes: ``query 120, gallery 240 samples``; "" if they are unknown."""
    sizes: Mapping[str, int] = event.get("server_samples") or {}
    told = ", ".join(f"{name} {count:,}" for name, count in sizes.items())
    return f"{told} sample{'' if list(sizes.values()) == [1] else 's'}" if told else ""


def alike(bases: Iterable[Basis]) -> str:
    """What the values of several runs are based on: once if it is the same, else from the smallest to the largest."""
    found = list(dict.fromkeys(map(str, sorted(bases, key=lambda one: (one.samples or 0, one.clients)))))
    return "–" if not found else found[0] if len(found) == 1 else f"{found[0]} to {found[-1]}"


def counted(count: int, plural: str) -> str:
    """``1 query``, ``2 queries``."""
    return f"{count:,} {singular(plural) if count == 1 else plural}"


def singular(plural: str) -> str:
    """``query`` of ``queries``, ``test sample`` of ``test samples``."""
    return f"{plural[:-3]}y" if plural.endswith("ies") else plural.removesuffix("s")
