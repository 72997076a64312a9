"""When a method's pictures are drawn, and of which samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fedlab
from fedlab.config import Config
from fedlab.method import FigureContext, FitContext, ImageGrid, Method, Picture, Task

Settings = Callable[..., Config]


class Drawing(Method):
    """Draws one pixel."""

    def build(self, task: Task) -> dict[str, nn.Module]:
        return {"model": nn.Linear(1, 1)}

    def fit(self, ctx: FitContext) -> None:
        """Nothing is trained."""

    def evaluate(self, ctx: Any) -> Mapping[str, Any]:
        return {"n": torch.ones(1).numpy()}

    def evaluation_values(self, sums: Mapping[str, Any], task: Task) -> dict[str, float]:
        return {"n": 1.0}

    def figures(self, ctx: FigureContext) -> dict[str, Picture]:
        return {"pixel": ImageGrid(torch.zeros(1, 1, 1, 1), columns=1)}


@pytest.mark.parametrize(("every", "drawn"), [(0, [0, 1, 5]), (2, [0, 1, 2, 4, 5]), (1, [0, 1, 2, 3, 4, 5])])
def test_pictures_are_drawn_as_often_as_asked(
    settings: Settings, samples: fedlab.Dataset, every: int, drawn: list[int]
) -> None:
    config = settings(federation__rounds=5, tracking__figures_every=every)
    run = fedlab.run(config, method=Drawing, data=samples)
    assert [event["round"] for event in run.history.of("figure")] == drawn


def test_the_samples_to_draw_are_a_set_of_the_server_or_else_a_clients() -> None:
    def look(data: Mapping[str, Mapping[str, Tensor]], test: Mapping[str, Tensor] | None) -> Any:
        return SimpleNamespace(data=data, client_test=lambda client: test)

    a, b, mine, none = ({"x": torch.full((n,), float(n))} for n in (1, 2, 3, 0))
    assert FigureContext.samples(look({"a": a, "b": b}, mine), "b", "a") is b
    assert FigureContext.samples(look({"a": a}, mine), "b", "a") is a
    assert FigureContext.samples(look({"a": a}, mine), "b") is mine
    assert FigureContext.samples(look({}, None), "b") == {}
    assert FigureContext.samples(look({}, none)) == {}
