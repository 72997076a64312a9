"""Network state that stays on the client: the values from which it starts, and what a client keeps of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from fedlab.method import ClientState
from fedlab.storage.checkpoint import NETWORK, START

Starts = Mapping[str, tuple[int, Tensor]]
"""The server's values from which local state starts, with their versions, by name of the state."""


class LocalState:
    """Loads the local state of one client after the other into the resident networks, and takes it out again.

    A client goes on from the values it has kept. Where it has kept none, or the server's value is newer, it starts
    from the server's value; without one, it starts from the value that `Method.build` made.

    Args:
        live: the resident networks' state by name; the tensors are changed in place.
        build: builds the networks anew and returns their state. The resident ones have been trained meanwhile.
        wanted: names of the state whose built values may be asked for.
    """

    def __init__(
        self,
        live: Mapping[str, Tensor],
        build: Callable[[], Mapping[str, Tensor]],
        wanted: Callable[[], Iterable[str]],
    ) -> None:
        self._live, self._build, self._wanted = live, build, wanted
        self._built: dict[str, Tensor] = {}

    def built(self, name: str) -> Tensor:
        """Return the value that a state was built with."""
        if name not in self._built:
            state = self._build()
            self._built = {wanted: state[wanted] for wanted in self._wanted()}
        return self._built[name]

    def load(self, names: Iterable[str], state: ClientState, starts: Starts) -> None:
        """Give the resident networks a client's local state.

        Args:
            names: the local state of the round's exchange.
            state: the client's own tensors.
            starts: see `Starts`.
        """
        for name in names:
            version, _ = starts.get(name, (0, None))
            kept, since = f"{NETWORK}{name}", f"{START}{name}"
            # what a client kept before the server made its value is older than that value
            newest = kept in state and (name not in starts or int(state.get(since, 0)) == version)
            self._live[name].copy_(state[kept] if newest else self._start(name, starts))

    def keep(self, names: Iterable[str], state: ClientState, starts: Starts) -> None:
        """Put the local state that training has changed into a client's own tensors; the arguments are as in `load`."""
        for name in names:
            kept = f"{NETWORK}{name}"
            if kept not in state and torch.equal(self._live[name], self._start(name, starts)):
                continue
            state[kept] = self._live[name]
            if name in starts:
                state[f"{START}{name}"] = torch.tensor(starts[name][0])

    def _start(self, name: str, starts: Starts) -> Tensor:
        return starts[name][1] if name in starts else self.built(name)
