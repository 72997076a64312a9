"""Which state travels: a method's exchange groups applied to its networks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from fedlab.errors import ConfigError
from fedlab.method.base import Method
from fedlab.method.types import Group, Plan
from fedlab.storage.hashing import hash_tensors

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
            normalization layer.

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
            if (group.mode == "average" and (name in kept or local_buffer)) or (
                group.mode == "server" and name in kept
            ):
                group = LOCAL
            self.group_of[name] = group
        self.down = self._of("average", "server")
        self.up = self._of("average")
        self.averaged = tuple(dict.fromkeys(self.group_of[name].name for name in self.up))
        self.needs = {group.name: group.asset for group in groups if group.asset}
        self.once = self._of("once")
        self.local = self._of("local")
        self.frozen = self._of("frozen")
        self.rest = self._of("rest")
        self.fixed = self._of("server", "once", "frozen", "rest")
        trained = {name.partition(".")[0] for name in set(state) - set(self.fixed)}
        self.fixed_roles = tuple(role for role in networks if role not in trained)

    def _of(self, *modes: str) -> tuple[str, ...]:
        return tuple(name for name, group in self.group_of.items() if group.mode in modes)

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


class Exchanges:
    """A method's exchange over one set of networks, in whatever stage a round's plan says.

    Args:
        networks: networks by role, as built.
        method: says what travels.
        local: patterns of state names that always stay on the client.

    Raises:
        ConfigError: see `Exchange`.
    """

    def __init__(self, networks: nn.ModuleDict, method: Method, local: Iterable[str] = ()) -> None:
        self._networks, self._method, self._local = networks, method, tuple(local)
        self._trainable = {name for name, p in networks.named_parameters() if p.requires_grad}
        self._made: dict[tuple[Group, ...], Exchange] = {}

    def __iter__(self) -> Iterator[Exchange]:
        """Those asked for so far."""
        return iter(self._made.values())

    def of(self, plan: Plan) -> Exchange:
        """The exchange of a round with this plan."""
        groups = tuple(self._method.exchange(plan))
        if groups not in self._made:
            self._made[groups] = Exchange(self._networks, groups, self._local)
        return self._made[groups]

    def over(self, plans: Iterable[Plan]) -> tuple[Exchange, ...]:
        """The different exchanges of rounds with these plans."""
        return tuple(dict.fromkeys(map(self.of, plans)))

    def enter(self, plan: Plan) -> Exchange:
        """The exchange of a round with this plan; only state that it trains requires gradients from now on."""
        exchange = self.of(plan)
        fixed = set(exchange.fixed)
        for name, p in self._networks.named_parameters():
            p.requires_grad_(name in self._trainable and name not in fixed)
        return exchange


def personalized(exchanges: Iterable[Exchange]) -> frozenset[str]:
    """Names of the state that is local in some of the exchanges of a run, and not in others."""
    local = [frozenset(exchange.local) for exchange in exchanges]
    return frozenset().union(*local) - frozenset.intersection(*local) if local else frozenset()


def lasting(exchanges: Iterable[Exchange]) -> frozenset[str]:
    """Names of the state that no round of a run is meant to change, because no exchange has it trained or moved."""
    still = [frozenset((*exchange.once, *exchange.frozen, *exchange.rest)) for exchange in exchanges]
    return frozenset.intersection(*still) if still else frozenset()


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
