"""What is known of a client before it works."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord

from fedlab.config import TrainingConfig
from fedlab.data.federated import FederatedData
from fedlab.method import Method
from fedlab.server.participation.devices import planned


@dataclass(frozen=True)
class Profile:
    """A client's facts: weight, test samples, columns, class names and vocabulary, registered clients of its partition.

    An unseen client never trains.
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


def stated_profile(record: ConfigRecord) -> Profile:
    """What a client says of itself."""
    facts: dict[str, object] = dict(record)
    classes, vocabulary = facts["classes"], facts["vocabulary"]
    assert isinstance(classes, list)
    assert isinstance(vocabulary, list)
    return Profile(
        client=int(str(facts["client"])),
        name=str(facts["name"]),
        train=int(str(facts["train"])),
        test=int(str(facts["test"])),
        columns={name: (dtype, tuple(shape)) for name, (dtype, shape) in json.loads(str(facts["columns"])).items()},
        classes=tuple(str(name) for name in classes),
        clients=int(str(facts["clients"])),
        unseen=bool(facts["unseen"]),
        vocabulary=tuple(str(word) for word in vocabulary),
    )


def known_profiles(federated: FederatedData, method: Method) -> Callable[[int], Profile] | None:
    """What simulated clients would say of themselves; None where the method's weights must be computed by them."""
    if method.overrides("examples"):
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


MEASURED = ("train", "evaluate")
"""Types of messages that a client handles batch by batch, so that its work is counted in batches."""


def num_batches(kind: str, profile: Profile, training: TrainingConfig, evaluation_size: int) -> float:
    """Batches a client's message makes it work through, for the engine's placement.

    Args:
        kind: type of the message, one of `MEASURED`.
        profile: of the client.
        training: local training in this round.
        evaluation_size: batch size of evaluations.
    """
    if kind == "train":
        return float(planned(training, profile.train, 0, 0).steps)
    return float(-(-profile.test // evaluation_size))
