"""Tensors the server shares with all clients: versions, and who holds which."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor


class SharedTensors(MutableMapping[str, Tensor]):
    """The server's lasting tensors. Assigning one makes a new version, which every client is sent once."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        self.versions: dict[str, int] = {}
        self._held: dict[int, dict[str, int]] = {}
        self._count = 0  # over all names: a tensor that is dropped and made again must not repeat a version

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        # a copy: clients of this process may still hold the version before
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
        """Those of the `wanted` names a client must be sent."""
        held = self._held.get(client, {})
        return tuple(name for name in sorted(wanted) if held.get(name) != self.versions[name])

    def delivered(self, client: int, versions: Mapping[str, int]) -> None:
        """A client has done what it could only do with these versions, so it holds them."""
        if versions:
            self._held.setdefault(client, {}).update(versions)

    def forget(self, client: int) -> None:
        """A client says it holds nothing (a node that lost its disk)."""
        self._held.pop(client, None)

    def bytes_of(self, name: str) -> int:
        """Payload bytes of a tensor."""
        return self._tensors[name].numel() * self._tensors[name].element_size()

    def book(self) -> dict[str, object]:
        """Versions and holders, for a checkpoint."""
        held = {str(client): dict(versions) for client, versions in self._held.items()}
        return {"count": self._count, "versions": dict(self.versions), "held": held}

    def restore(self, tensors: Mapping[str, Tensor], book: Mapping[str, Any]) -> None:
        """Take over tensors and `book` of a checkpoint."""
        self._tensors = dict(tensors)
        self._count = int(book["count"])
        self.versions = {name: int(version) for name, version in book["versions"].items()}
        self._held = {int(client): dict(held) for client, held in book["held"].items()}
