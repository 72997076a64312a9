"""Which client holds which assets of the method, as ``data.holds`` says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from fnmatch import fnmatchcase

from fedlab.config import DataConfig
from fedlab.errors import ConfigError, ConfigErrors, InputError, did_you_mean

_NAMED = 3


class Holdings:
    """The assets that each client holds.

    Args:
        config: the section ``data``.
        clients: the names of all clients, by client id.
        assets: the names of the method's assets.
    """

    def __init__(self, config: DataConfig, clients: Sequence[str], assets: Sequence[str]) -> None:
        self._config, self._clients, self._assets = config, clients, tuple(assets)

    def of(self, client: int) -> tuple[str, ...]:
        """The names of the assets that a client holds, in the order of the method's assets."""
        if not self._config.holds:
            return self._assets
        pattern = self._pattern(self._clients[client])
        held = () if pattern is None else self._config.holds[pattern]
        return tuple(name for name in self._assets if name in held)

    @property
    def server(self) -> tuple[str, ...]:
        """The names of the assets that the server holds, in the order of the method's assets."""
        return tuple(name for name in self._assets if name in self._config.server_holds)

    def different(self, clients: Iterable[int]) -> dict[tuple[str, ...], list[int]]:
        """What clients hold, each with the clients that hold exactly this, in the given order."""
        found: dict[tuple[str, ...], list[int]] = {}
        for client in clients:
            found.setdefault(self.of(client), []).append(client)
        return found

    def check(self, training: Collection[int], lacks: Callable[[Sequence[str]], str]) -> None:
        """Check what the configuration says of assets.

        Args:
            training: ids of the clients that may train.
            lacks: `Method.lacks`.

        Raises:
            ConfigErrors: an asset that the method does not have, a pattern that is no client's first, or a client that
                lacks what it needs to train.
        """
        config = self._config
        errors = [
            error for pattern, names in config.holds.items() for error in self._unknown(f"holds.{pattern}", names)
        ]
        errors += [*self._unknown("server_holds", config.server_holds), *self._unknown("assets", config.assets)]
        errors += self._unmatched()
        if not errors and self._assets:
            errors += self._lacking(training, lacks)
        if errors:
            raise ConfigErrors(errors)

    def unused(self, training: Iterable[int]) -> list[str]:
        """Warnings about assets that neither a client that may train nor the server holds."""
        held = {name for names in self.different(training) for name in names}.union(self.server)
        return [
            f"nobody who takes part holds the asset {name!r} (data.holds), so nothing is learned from it"
            for name in self._assets
            if name not in held
        ]

    def _pattern(self, client: str) -> str | None:
        """The first pattern that matches a client's name."""
        return next((pattern for pattern in self._config.holds if fnmatchcase(client, pattern)), None)

    def _unknown(self, key: str, names: Iterable[str]) -> list[InputError]:
        expected = f"an asset of the method: {', '.join(self._assets)}" if self._assets else "a method that has assets"
        fix = "" if self._assets else "remove the key, or choose another method"
        return [
            ConfigError(f"data.{key}", name, expected, fix or did_you_mean(name, self._assets))
            for name in names
            if name not in self._assets
        ]

    def _unmatched(self) -> list[InputError]:
        """Errors about patterns that decide nothing, because they match no client or an earlier one always does."""
        if not self._config.holds:
            return []
        first = set(map(self._pattern, self._clients))
        errors: list[InputError] = []
        for pattern in self._config.holds:
            if pattern in first:
                continue
            if any(fnmatchcase(client, pattern) for client in self._clients):
                expected = "a pattern that is the first to match some client; earlier patterns match all of its clients"
                fix = "write it before them"
            else:
                expected, fix = "names of clients, or patterns of their names", did_you_mean(pattern, self._clients)
            errors.append(ConfigError("data.holds", pattern, expected, fix))
        return errors

    def _lacking(self, training: Collection[int], lacks: Callable[[Sequence[str]], str]) -> list[InputError]:
        errors: list[InputError] = []
        for held, clients in self.different(training).items():
            if needed := lacks(held):
                named = ", ".join(repr(self._clients[client]) for client in clients[:_NAMED])
                more = f" and {len(clients) - _NAMED:,} more" if len(clients) > _NAMED else ""
                given = f"{', '.join(held) or 'nothing'} on {named}{more}"
                fix = "give it to these clients, or leave them out of the training with data.unseen"
                errors.append(ConfigError("data.holds", given, f"{needed}, which every training client needs", fix))
        return errors
