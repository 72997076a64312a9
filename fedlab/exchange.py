"""Which state travels: a method's exchange groups applied to its networks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from fedlab.errors import ConfigError
from fedlab.method import Group

_NORM_LAYERS = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.modules.instancenorm._InstanceNorm,
)
LOCAL = Group("kept by exchange.local", mode="local")


class Exchange:
    """The exchange of one method over its networks.

    Args:
        networks: networks by role.
        groups: the method's groups; the first that matches a state name owns it.
        local: patterns of state names that stay on the client whatever the group says; ``norm`` stands for every
            normalisation layer.

    Raises:
        ConfigError: a pattern that matches nothing, or state that no group owns.
    """

    def __init__(self, networks: nn.ModuleDict, groups: Sequence[Group], local: Iterable[str] = ()) -> None:
        state = networks.state_dict()
        buffers = {name for name, _ in networks.named_buffers()}
        kept = _matches(networks, list(state), local)
        self.group_of: dict[str, Group] = {}
        self.sizes = {name: value.numel() * value.element_size() for name, value in state.items()}
        for name, value in state.items():
            group = next((g for g in groups if any(fnmatchcase(name, p) for p in _patterns(g))), None)
            if group is None:
                raise ConfigError("method.exchange", name, "a group for every network state", "add it to exchange()")
            local_buffer = name in buffers and (group.buffers == "local" or not value.is_floating_point())
            if group.mode != "frozen" and (name in kept or local_buffer):
                group = LOCAL
            self.group_of[name] = group
        self.down = tuple(n for n, g in self.group_of.items() if g.mode in ("average", "server"))
        self.up = tuple(n for n, g in self.group_of.items() if g.mode == "average")
        self.local = tuple(n for n, g in self.group_of.items() if g.mode == "local")
        self.frozen = tuple(n for n, g in self.group_of.items() if g.mode == "frozen")

    @property
    def weighting(self) -> str | None:
        """``examples`` or ``uniform`` where all averaged groups agree, else None."""
        found = {self.group_of[name].weight for name in self.up}
        return found.pop() if len(found) == 1 else None

    def bytes_by_group(self, names: Iterable[str]) -> dict[str, int]:
        """Payload bytes of `names`, by group."""
        total: dict[str, int] = {}
        for name in names:
            group = self.group_of[name].name
            total[group] = total.get(group, 0) + self.sizes[name]
        return total

    def frozen_hash(self, state: Mapping[str, Tensor]) -> str:
        """Hash of the frozen state, equal on every participant or the run is refused."""
        return hash_tensors({name: state[name] for name in self.frozen}) if self.frozen else ""


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names, types, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return digest.hexdigest()


def _patterns(group: Group) -> tuple[str, ...]:
    return tuple(part for member in group.members for part in (member, f"{member}.*"))


def _matches(networks: nn.ModuleDict, names: list[str], patterns: Iterable[str]) -> set[str]:
    kept: set[str] = set()
    for pattern in patterns:
        if pattern == "norm":
            found = {
                f"{path}.{name}"
                for path, module in networks.named_modules()
                if isinstance(module, _NORM_LAYERS)
                for name in module.state_dict()
            }
        else:
            found = {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            raise ConfigError(
                "exchange.local", pattern, "a pattern that matches some state", f"names look like {names[0]!r}"
            )
        kept |= found
    return kept
