"""What a client computes once is computed once, until its samples change."""

from __future__ import annotations

from typing import Any

import torch

from fedlab.blocks.once import kept_by_client
from fedlab.method import ClientState


class Context:
    """As much of a client's context as is needed."""

    def __init__(self, state: ClientState, fingerprint: str) -> None:
        self.state, self.fingerprint = state, fingerprint

    def place(self, value: torch.Tensor) -> torch.Tensor:
        return value


def test_it_is_computed_again_for_other_samples_only() -> None:
    state, calls = ClientState(), list[str]()

    def ask(fingerprint: str) -> dict[str, torch.Tensor]:
        ctx: Any = Context(state, fingerprint)

        def compute() -> dict[str, torch.Tensor]:
            calls.append(fingerprint)
            return {"features": torch.full((2,), float(len(calls)))}

        return kept_by_client(ctx, compute)

    assert ask("one")["features"].tolist() == [1, 1]
    assert ask("one")["features"].tolist() == [1, 1]
    assert ask("two")["features"].tolist() == [2, 2]
    assert calls == ["one", "two"]
    assert set(ask("two")) == {"features"}
