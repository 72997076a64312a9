"""The server's shared tensors: their versions, and which client holds which version."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor

from fedlab.storage.checkpoint import NETWORK, START


class SharedTensors(MutableMapping[str, Tensor]):
    """The shared tensors by name. Assigning one makes a new version, which each client is sent once."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        self.versions: dict[str, int] = {}
        self._held: dict[int, Mapping[str, int]] = {}
        self._books: dict[tuple[tuple[str, int], ...], Mapping[str, int]] = {}
        self._count = 0  # of all names, so that a tensor that is deleted and assigned again gets no earlier version

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        # a copy, because clients in this process may still hold the previous version
        self._tensors[name] = value.detach().clone()
        self._count += 1
        self.versions[name] = self._count

    def __delitem__(self, name: str) -> None:
        del self._tensors[name]
        del self.versions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def outdated(self, client: int, wanted: Iterable[str]) -> tuple[str, ...]:
        """Names among `wanted` whose current version the client does not hold, sorted."""
        held = self._held.get(client, {})
        return tuple(name for name in sorted(wanted) if held.get(name) != self.versions[name])

    def delivered(self, client: int, versions: Mapping[str, int]) -> None:
        """Note that a client holds these versions. It must have done work that needs them."""
        if versions:
            self._hold(client, {**self._held.get(client, {}), **versions})

    def _hold(self, client: int, versions: Mapping[str, int]) -> None:
        """Clients that hold the same versions share one mapping, because there may be very many clients."""
        self._held[client] = self._books.setdefault(tuple(sorted(versions.items())), versions)

    def forget(self, client: int) -> None:
        """Note that a client holds no shared tensors, for example because its node has lost its disk."""
        self._held.pop(client, None)

    def bytes_of(self, name: str) -> int:
        """Number of bytes of a tensor in a payload."""
        return self._tensors[name].numel() * self._tensors[name].element_size()

    def book(self) -> dict[str, object]:
        """The versions, and the clients that hold them, for a checkpoint."""
        holders: dict[int, list[int]] = {}
        for client, versions in self._held.items():
            holders.setdefault(id(versions), []).append(client)
        self._books = {tuple(sorted(versions.items())): versions for versions in self._held.values()}
        held = [[dict(self._held[clients[0]]), ranges(clients)] for clients in holders.values()]
        return {"count": self._count, "versions": dict(self.versions), "held": held}

    def restore(self, tensors: Mapping[str, Tensor], book: Mapping[str, Any]) -> None:
        """Restore the tensors and the `book` of a checkpoint."""
        self._tensors = dict(tensors)
        self._count = int(book["count"])
        self.versions = {name: int(version) for name, version in book["versions"].items()}
        self._held = {}
        for versions, held in book["held"]:
            for client in members(held):
                self._hold(client, versions)


def state_in(name: str) -> str | None:
    """The name of the network state that a shared tensor holds; None if it is one of the method's own tensors.

    Args:
        name: of the shared tensor.
    """
    prefix = next((prefix for prefix in (NETWORK, START) if name.startswith(prefix)), None)
    return None if prefix is None else name.removeprefix(prefix)


def ranges(clients: Iterable[int]) -> list[list[int]]:
    """The first and the last id of every sequence of consecutive ids, which keeps the JSON of many clients short."""
    found: list[list[int]] = []
    for client in sorted(clients):
        if found and client == found[-1][1] + 1:
            found[-1][1] = client
        else:
            found.append([client, client])
    return found


def members(found: Iterable[Sequence[int]]) -> Iterator[int]:
    """The reverse of `ranges`: all ids in ascending order."""
    for first, last in found:
        yield from range(first, last + 1)
