"""Networks that are used as fixed functions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """A context in which the parameters of `module` require no gradient. Gradients still flow to its inputs."""
    before = [(p, p.requires_grad) for p in module.parameters()]
    for p, _ in before:
        p.requires_grad_(False)
    try:
        yield module
    finally:
        for p, required in before:
            p.requires_grad_(required)
