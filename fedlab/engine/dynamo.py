"""Keeps PyTorch's compiler from being loaded by processes that compile nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

NAME = "torch._dynamo"


class _Postponed(ModuleType):
    """Stands for ``torch._dynamo``, and is replaced by it as soon as anything is asked for that compiling needs.

    An optimizer imports the compiler only to tell it where a graph has to end and which functions are not to be
    followed. While nothing is being compiled both do nothing, and that is what these two functions do.
    """

    def graph_break(self, msg: str = "") -> None:
        """End the graph that is being traced, of which there is none."""

    def disable(self, fn: Callable[..., Any], recursive: bool = True, **options: Any) -> Callable[..., Any]:
        """The function, called through the compiler's own wrapper from the moment that the compiler is loaded."""
        wrapped: list[Callable[..., Any]] = []

        def call(*args: Any, **kwargs: Any) -> Any:
            loaded = sys.modules.get(NAME)
            if loaded is self or loaded is None:
                return fn(*args, **kwargs)
            if not wrapped:
                wrapped.append(loaded.disable(fn, recursive, **options))
            return wrapped[0](*args, **kwargs)

        return call

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # who looks through all modules, as inspect does, needs none
            raise AttributeError(name)
        return getattr(self._load(), name)

    def _load(self) -> ModuleType:
        if sys.modules.get(NAME) is self:
            del sys.modules[NAME]
        return importlib.import_module(NAME)


def postpone_compiler() -> None:
    """Let PyTorch load ``torch._dynamo`` when something is compiled, rather than when the first optimizer is made.

    The import takes about as long as that of PyTorch itself, in every worker, and hardly any run compiles anything.
    ``torch.compile`` works as ever. Nothing happens if the module has been loaded already.
    """
    if NAME not in sys.modules:
        sys.modules[NAME] = _Postponed(NAME, _Postponed.__doc__)
