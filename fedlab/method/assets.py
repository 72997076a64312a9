"""Assets: what only some participants of a run have, such as a licensed expert network, or a part that is too large
for a weak device.

An asset is no part of a method's networks. It is never trained or sent, and no checkpoint holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from fedlab.errors import FedLabError
from fedlab.seeding import global_generators
from fedlab.storage.hashing import state_hash

Asset = Callable[[], nn.Module] | None
"""Builds an asset's network. None stands for something that is no network, and that a participant has or lacks."""


class Shelf(dict[tuple[str, str], tuple[nn.Module, str]]):
    """The assets that this process has built, each with its hash, by name and device. It is empty when unpickled."""

    def __reduce__(self) -> tuple[type[Shelf], tuple[()]]:
        return Shelf, ()


class Assets:
    """The assets of a run in one process. Each is built when it is first asked for, and once for all participants.

    Args:
        builders: what `Method.assets` returned.
        seed: the run's seed.
        device: the device to which networks are moved.
        shelf: where the built networks are kept; all runtimes of a run in this process share it.
    """

    def __init__(
        self,
        builders: Mapping[str, Asset] | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        shelf: Shelf | None = None,
    ) -> None:
        self._builders, self._seed, self._device = dict(builders or {}), seed, torch.device(device)
        self._shelf = Shelf() if shelf is None else shelf

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all assets, in the order of `Method.assets`."""
        return tuple(self._builders)

    def network(self, name: str) -> nn.Module:
        """An asset's network, in evaluation mode and without gradients.

        Raises:
            FedLabError: the asset is no network.
            Whatever its builder raises.
        """
        network, _ = self._built(name)
        if network.training:  # `networks.train()` of a method that reaches it must not last
            network.eval()
        return network

    def hashes(self, names: Iterable[str]) -> dict[str, str]:
        """The hashes of the weights of those assets that are networks, by name. They are built for it."""
        return {name: self._built(name)[1] for name in names if self._builders[name] is not None}

    def check_unchanged(self) -> None:
        """Check that the networks that were built still have the weights that they were built with.

        Raises:
            FedLabError: a network has others.
        """
        for (name, _), (network, built) in self._shelf.items():
            if state_hash(network) != built:
                raise FedLabError(
                    f"local work changes the asset {name!r}: assets are not trained, so leave their weights and "
                    "buffers alone, or return the network from build() if it is to be trained"
                )

    def _built(self, name: str) -> tuple[nn.Module, str]:
        key = name, str(self._device)
        if key not in self._shelf:
            build = self._builders[name]
            if build is None:
                raise FedLabError(f"the asset {name!r} is no network, so it can only be looked up in ctx.holds")
            # equal on every participant, whatever was built before, and in whichever mode it is first asked for
            modes = torch.enable_grad(), torch.autocast(self._device.type, enabled=False)
            with global_generators(self._seed, "asset", name), modes[0], modes[1]:
                network = build().requires_grad_(False).eval()
            self._shelf[key] = network.to(self._device), state_hash(network)
        return self._shelf[key]


@dataclass(frozen=True)
class Holding:
    """What one participant holds. Nothing else can be reached through it.

    Args:
        owner: who it is, as errors call it.
        names: the names of its assets, in the order of `Method.assets`.
        assets: the assets of the run in this process.
    """

    owner: str = "this participant"
    names: tuple[str, ...] = ()
    assets: Assets = field(default_factory=Assets)

    def network(self, name: str) -> nn.Module:
        """The network of an asset that the participant holds.

        Raises:
            FedLabError: the participant does not hold it, or it is no network.
        """
        if name not in self.names:
            held = ", ".join(self.names) or "nothing"
            raise FedLabError(
                f"{self.owner} does not hold the asset {name!r} (it holds {held}): look it up in ctx.holds first, or "
                "change data.holds"
            )
        return self.assets.network(name)

    def hashes(self) -> dict[str, str]:
        """The hashes of the networks that it holds, by name."""
        return self.assets.hashes(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)
