"""Profiles: what the server knows of a client before the client does any work."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord

from fedlab.config import TrainingConfig
from fedlab.data.federated import FederatedData
from fedlab.errors import DataError, FedLabError, RefusedError
from fedlab.method import Method
from fedlab.server.participation.devices import planned

Described = tuple[Mapping[str, tuple[str, tuple[int, ...]]], tuple[str, ...], int, tuple[str, ...]]
"""Columns, names of the classes, number of clients and vocabulary, as `Profile` has them."""


@dataclass(frozen=True)
class Profile:
    """What the server knows of a client.

    Args:
        client: its id.
        name: its name in the partition.
        train: its weight in averages, which is its number of training samples unless the method overrides `examples`.
        test: number of test samples.
        columns: dtype and shape of a sample, by column.
        classes: names of the classes.
        clients: number of registered clients of the partition.
        unseen: whether the client never trains.
        vocabulary: the words that the numbers of a text column stand for; empty if there is no text.
        assets: hash of each network among the assets that it holds, by name.
    """

    client: int
    name: str
    train: int
    test: int
    columns: Mapping[str, tuple[str, tuple[int, ...]]]
    classes: tuple[str, ...]
    clients: int
    unseen: bool = False
    vocabulary: tuple[str, ...] = ()
    assets: Mapping[str, str] = field(default_factory=dict)

    @property
    def described(self) -> Described:
        """The arguments of `fedlab.assembly.make_task` that depend on the data."""
        return self.columns, self.classes, self.clients, self.vocabulary


def stated_profile(record: ConfigRecord) -> Profile:
    """The profile that a client sent as a record.

    Raises:
        FedLabError: something is missing, or is no value that a client can have.
    """
    columns = json.loads(_text(record, "columns", _LONGEST))
    if not isinstance(columns, dict):
        raise _wrong("columns")
    return Profile(
        client=_count(record, "client"),
        name=_text(record, "name", _LONGEST_NAME),
        train=_count(record, "train"),
        test=_count(record, "test"),
        columns={_named(name): _column(described) for name, described in columns.items()},
        classes=_texts(record, "classes"),
        clients=_count(record, "clients"),
        unseen=bool(record.get("unseen")),
        vocabulary=_texts(record, "vocabulary"),
        assets=_hashes(record),
    )


_LONGEST, _LONGEST_NAME = 2**20, 1000  # characters
_MOST = 2**40  # samples, clients and elements of one sample: far more than there are anywhere


def _wrong(name: str) -> FedLabError:
    return FedLabError(f"its profile states no usable {name!r}")


def _count(record: ConfigRecord, name: str) -> int:
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MOST:
        raise _wrong(name)
    return value


def _text(record: ConfigRecord, name: str, longest: int) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= longest:
        raise _wrong(name)
    return value


def _texts(record: ConfigRecord, name: str) -> tuple[str, ...]:
    values = record.get(name)
    if not isinstance(values, list) or not all(isinstance(value, str) and len(value) <= _LONGEST for value in values):
        raise _wrong(name)
    return tuple(map(str, values))


def _named(name: str) -> str:
    if len(name) > _LONGEST_NAME:
        raise _wrong("columns")
    return name


def _column(described: object) -> tuple[str, tuple[int, ...]]:
    """Type and shape of a column, as JSON has them."""
    if isinstance(described, list) and len(described) == 2 and isinstance(described[1], list):
        dtype, shape = described
        whole = all(isinstance(size, int) and 0 <= size < _MOST for size in shape)
        if isinstance(dtype, str) and dtype.isidentifier() and whole and math.prod(shape) < _MOST:
            return dtype, tuple(shape)
    raise _wrong("columns")


def _hashes(record: ConfigRecord) -> dict[str, str]:
    """The hash of each asset, by name; a client that holds none states none."""
    if "assets" not in record:
        return {}
    hashes = json.loads(_text(record, "assets", _LONGEST))
    if not isinstance(hashes, dict):
        raise _wrong("assets")
    if not all(isinstance(value, str) and len(name) + len(value) <= _LONGEST_NAME for name, value in hashes.items()):
        raise _wrong("assets")
    return hashes


def unlike(profiles: Sequence[Profile]) -> list[Profile]:
    """The clients whose data is of another kind than that of most clients; empty if there is no such majority."""
    kinds = [(_columns(of), of.classes, of.clients, of.vocabulary) for of in profiles]
    usual, count = Counter(kinds).most_common(1)[0]
    return [of for of, kind in zip(profiles, kinds, strict=True) if kind != usual] if 2 * count > len(kinds) else []


def known_profiles(federated: FederatedData, method: Method) -> Callable[[int], Profile] | None:
    """A function that makes the profiles that simulated clients would send.

    It is None if the method overrides `examples`, because only the clients can then compute their weights, or has
    assets, whose hashes the clients' processes have to compute.
    """
    if method.overrides("examples") or method.overrides("assets"):
        return None
    facts: dict[str, Any] = {
        "columns": federated.columns,
        "classes": federated.class_names,
        "vocabulary": federated.vocabulary,
    }

    def profile(client: int) -> Profile:
        return Profile(
            client=client,
            name=federated.partition.names[client],
            train=federated.num_train(client),
            test=federated.num_test(client),
            clients=federated.num_clients,
            unseen=client in federated.unseen,
            **facts,
        )

    return profile


def check_alike(profiles: Sequence[Profile]) -> None:
    """Refuse clients whose data is of another kind than that of the first one.

    Nodes compare their data with what the configuration says. What it does not say can be compared only here.

    Raises:
        RefusedError: the clients, each with what it has and what the first one has.
    """
    refusals = []
    for profile in profiles[1:]:
        first = profiles[0]
        for what, ours, theirs in (
            ("columns", _columns(profile), _columns(first)),
            ("classes", ", ".join(profile.classes), ", ".join(first.classes)),
            ("number of clients", profile.clients, first.clients),
            ("vocabulary", f"{len(profile.vocabulary):,} words", f"the {len(first.vocabulary):,} words"),
        ):
            differ = profile.vocabulary != first.vocabulary if what == "vocabulary" else ours != theirs
            if differ:
                expected = f"{theirs}, as on {first.name!r}"
                refusals.append(str(DataError(f"{profile.name!r}: {what}", ours, expected)))
    if refusals:
        fix = "write what all have to have into data.source (classes, columns, vocabulary), and change the other nodes"
        raise RefusedError(refusals, fix)


def same_assets(profiles: Iterable[Profile], server: Mapping[str, str]) -> dict[str, str]:
    """Refuse participants that have different weights under the name of one asset.

    Args:
        profiles: the profiles of the clients.
        server: the hashes of the assets that the server holds, by name.

    Returns:
        The hash of each asset that somebody holds, by name.

    Raises:
        RefusedError: the participants that differ from the first one that holds an asset.
    """
    known = {name: (value, "the server") for name, value in server.items()}
    refusals = []
    for profile in profiles:
        for name, value in profile.assets.items():
            first, owner = known.setdefault(name, (value, repr(profile.name)))
            if value != first:
                expected = f"the weights of this asset on {owner}, whose hash is {first}"
                error = DataError(f"{profile.name!r}: asset {name}", f"weights with hash {value}", expected)
                refusals.append(str(error))
    if refusals:
        fix = "give all of them the same file, or give other weights another name"
        raise RefusedError(refusals, fix)
    return {name: value for name, (value, _) in known.items()}


def _columns(profile: Profile) -> str:
    described = (f"{name} {dtype} {list(shape)}" for name, (dtype, shape) in sorted(profile.columns.items()))
    return ", ".join(described)


MEASURED = ("train", "evaluate")
"""Types of messages whose work is counted in batches, because clients handle them batch by batch."""


def num_batches(kind: str, profile: Profile, training: TrainingConfig, evaluation_size: int) -> float:
    """Number of batches that a client has to process for a message. The engine's placement uses it.

    Args:
        kind: type of the message, one of `MEASURED`.
        profile: profile of the client.
        training: training section of this round.
        evaluation_size: batch size of evaluations.
    """
    if kind == "train":
        return float(planned(training, profile.train, 0, 0).steps)
    return float(-(-profile.test // evaluation_size))
