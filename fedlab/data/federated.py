"""The data of all clients: the samples are stored once, and a client's part is prepared when it is needed."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fedlab.config import DataConfig
from fedlab.data.held import VALIDATION, hold_out, hold_validation
from fedlab.data.normalize import check_statistics, denormalizer
from fedlab.data.partition.drift import Drift, Split, make_drifts
from fedlab.data.partition.partition import ClientPart, Partition, Steps, make_steps, partition, summary
from fedlab.data.partition.ragged import Ragged
from fedlab.data.partition.roles import role_warnings, unseen_clients, untested_clients, unused_samples
from fedlab.data.samples import Dataset, Samples
from fedlab.data.server_sets import ServerSets, normalized
from fedlab.errors import DataError
from fedlab.seeding import derive_seed, numpy_generator
from fedlab.tracking.left_out import LeftOut

_CACHE_BYTES, _CACHE_CLIENTS = 512 * 2**20, 1024
_Stages = tuple[float, ...]


@dataclass(frozen=True)
class ClientData:
    """One client's samples, images corrupted as the partition says and normalized.

    Args:
        id: FedLab client id.
        name: from the partition.
        train: ``image`` as float32 (n, C, H, W).
        test: likewise.
        validation: training samples that are held back; none unless ``data.validation`` asks for them.
    """

    id: int
    name: str
    train: Samples
    test: Samples
    validation: Samples

    @property
    def fingerprint(self) -> str:
        """Hash of the training samples as the client sees them, and of validation samples if it has any."""
        if not len(self.validation):
            return self.train.fingerprint
        both = f"{self.train.fingerprint}{self.validation.fingerprint}"
        return hashlib.blake2b(both.encode(), digest_size=16).hexdigest()

    @property
    def nbytes(self) -> int:
        parts = (self.train, self.test, self.validation)
        return sum(values.nbytes for part in parts for values in part.columns.values())


class FederatedData:
    """A data set and its partition among the clients.

    When it is pickled, the prepared parts are left out, and the arrays are passed as out-of-band buffers.

    Args:
        dataset: samples as the source delivers them; ``data.held`` is applied to them here.
        config: held-out sets, partition and normalization.
        seed: the run's seed.
        steps: the partition's steps; made of `config` where they are not given.
        drifts: likewise.
        present: on a node of a deployment, the only client whose samples are here; None where those of all are.

    Raises:
        DataError: the partition is impossible, or the data is empty.
        ConfigError: statistics that do not fit the data.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: DataConfig,
        seed: int,
        *,
        steps: Steps | None = None,
        drifts: Sequence[Drift] | None = None,
        present: int | None = None,
    ) -> None:
        if not len(dataset.train):
            raise DataError("data.source", dataset.name, "a data set with training samples; this one has none")
        dataset = hold_out(dataset, config.held, config.validation)
        self.dataset, self.config, self.seed, self.present = dataset, config, seed, present
        if "image" in dataset.train.columns:
            check_statistics(config, dataset.train["image"].shape[1], dataset.train.domain_names)
        self._server = ServerSets(dataset.server, config)
        steps = make_steps(config.partition) if steps is None else steps
        self._divided = held = partition(dataset, steps, seed)
        self._by_site = steps.by_site
        # what is drawn among clients must not depend on samples that are on other machines
        elsewhere = (np.arange(len(held)) != present) & (present is not None)
        self.untrained = frozenset(np.flatnonzero((held.train.sizes == 0) & ~elsewhere).tolist())
        """Clients that hold test samples only: owners and domains that do not occur in train."""
        held, self._validation = hold_validation(held, dataset.train, config.validation, everybody=present is None)
        chosen = unseen_clients(config.unseen, held.names, seed, self.untrained)
        self.unseen = chosen | self.untrained
        tested = np.where(elsewhere, 1, held.test.sizes)
        untested = untested_clients(config.test_clients, self.unseen, tested, seed)
        self.partition = held.without_tests(untested) if len(untested) else held
        if chosen and not tested[list(chosen)].any():
            raise DataError(
                "data.unseen", config.unseen, "unseen clients that have test samples", "choose other clients"
            )
        self._drifts = tuple(make_drifts(config.drift) if drifts is None else drifts)
        for drift in self._drifts:
            drift.check(dataset, self.partition)
        self._ready: OrderedDict[int, tuple[_Stages, ClientData]] = OrderedDict()
        self._ready_bytes = 0

    @property
    def columns(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Every column's dtype and shape per sample, as clients see it: images are float32."""
        return {
            name: ("float32" if name == "image" else values.dtype.name, values.shape[1:])
            for name, values in self.dataset.train.columns.items()
        }

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """What the source, the partition, the roles of clients and the drift left out, counted."""
        return (*self.dataset.left_out, *self._unused)

    @cached_property
    def _unused(self) -> tuple[LeftOut, ...]:
        return unused_samples(
            self.dataset, self._divided, self.partition, self.unseen, self._seen() if self._drifts else None
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the samples and their division, as sentences."""
        return (
            *self.dataset.warnings,
            *role_warnings(self.partition, self.untrained, self.unseen),
            *self._unvalidated(),
        )

    def _unvalidated(self) -> Iterator[str]:
        """A warning about training clients that cannot hold validation samples back."""
        lacking = np.flatnonzero((self._validation.sizes == 0) & (self.partition.train.sizes > 0))
        count = len(set(lacking.tolist()) - self.unseen)
        if self.config.validation is not None and count:
            what = "sample" if self.config.validation.by == "sample" else "owner"
            who = "1 client has" if count == 1 else f"{count:,} clients have"
            yield f"{who} no validation samples, because there is a single training {what} (data.validation)"

    @property
    def held_back(self) -> tuple[str, ...]:
        """What ``data.held`` and ``data.validation`` hold back, as sentences."""
        sets = self.dataset.server
        told = [
            f"held out for the server: {name}, {len(sets[name]):,} {wanted.split} samples, which the clients "
            + ("keep" if wanted.keep else "do not have")
            for name, wanted in self.config.held.items()
        ]
        if self.config.validation is None:
            return tuple(told)
        if VALIDATION in sets and VALIDATION not in self.config.held:
            told.append(f"held out for the server: {VALIDATION}, {len(sets[VALIDATION]):,} samples")
        return (*told, f"held back by the clients for validation: {len(self._validation.order):,} training samples")

    @property
    def num_clients(self) -> int:
        return len(self.partition)

    @property
    def num_classes(self) -> int:
        return self.dataset.train.num_classes

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return self.dataset.vocabulary

    @property
    def server_fingerprint(self) -> str:
        """Hash of the samples the server holds, as the configuration normalizes them."""
        return self._server.fingerprint

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.dataset.train.class_names

    def num_train(self, client: int) -> int:
        """Training samples a client sees in a round."""
        return len(self.part(client, 1, "train").train) if self._drifts else self.partition.train.size(client)

    def num_test(self, client: int) -> int:
        """Test samples a client sees in a round."""
        return len(self.part(client, 1, "test").test) if self._drifts else self.partition.test.size(client)

    def part(self, client: int, round: int, split: Split) -> ClientPart:
        """The part of its samples that a client sees in a round; test samples may drift differently."""
        part = self.partition[client]
        for depth, drift in enumerate(self._drifts):
            rng = numpy_generator(self.seed, "drift", depth, client)
            part = drift.at(drift.stage(round, split), part, client, self.dataset, rng)
        return part

    def client(self, client: int, round: int = 0) -> ClientData:
        """A client's data in a round; it depends only on data, configuration, seed and round.

        The data of the most recently used clients is kept, for the round last asked for: at most 1,024 clients and
        half a gigabyte.
        """
        splits: tuple[Split, Split] = ("train", "test")
        stages = tuple(drift.stage(round, split) for drift in self._drifts for split in splits)
        ready = self._ready.get(client)
        if ready is not None and ready[0] == stages:
            self._ready.move_to_end(client)
            return ready[1]
        if ready is not None:
            self._ready_bytes -= self._ready.pop(client)[1].nbytes
        seen, tested = (self.part(client, round, split) for split in splits)
        train = self._prepare(client, seen.train, seen.corruption, "train")
        test = self._prepare(client, tested.test, tested.corruption, "test")
        validation = self._prepare(client, self._validation[client], seen.corruption, "train")
        data = ClientData(client, seen.name, train, test, validation)
        self._ready[client] = stages, data
        self._ready_bytes += data.nbytes
        while len(self._ready) > 1 and (self._ready_bytes > _CACHE_BYTES or len(self._ready) > _CACHE_CLIENTS):
            self._ready_bytes -= self._ready.popitem(last=False)[1][1].nbytes
        return data

    def _seen(self) -> dict[str, int]:
        """Numbers of samples that clients see in one round; drift does not change them from round to round."""
        clients = range(self.num_clients)
        training = [client for client in clients if client not in self.unseen]
        return {"training": sum(map(self.num_train, training)), "test": sum(map(self.num_test, clients))}

    def at(self, round: int) -> Partition:
        """What all clients see in a round. If test samples drift differently, the corruption is that of training."""
        if not self._drifts:
            return self.partition
        seen = [self.part(client, round, "train") for client in range(self.num_clients)]
        tested = [self.part(client, round, "test").test for client in range(self.num_clients)]
        return Partition(
            Ragged.joined([part.train for part in seen]),
            Ragged.joined(tested),
            self.partition.names,
            [part.corruption for part in seen],
            self.partition.fingerprint,
        )

    def summary(self, rounds: int) -> dict[str, Any]:
        """What each client sees in round 1, in the form of `fedlab.data.partition.partition.summary`.

        If the data drifts, ``drift`` has a mapping for the first, the middle and the last of the rounds, each
        with ``round``, ``train`` (counts by client and class), ``corruption`` of each client and ``skew``. If samples
        are held back, ``held`` says so in sentences.
        """
        told = summary(self.at(1), self.dataset, self.unseen)
        if self.held_back:
            told["held"] = list(self.held_back)
        if self._drifts:
            told["drift"] = [self._moment(round) for round in sorted({1, (1 + rounds) // 2, rounds})]
        return told

    def facts(self, rounds: int) -> dict[str, Any]:
        """The `summary`, with ``data`` and ``fingerprint``: the identity of the samples and of their partition."""
        data = self.dataset
        told = {"name": data.name, "fingerprint": data.fingerprint, "train": len(data.train), "test": len(data.test)}
        held = {name: len(samples) for name, samples in data.server.items()}
        return {**self.summary(rounds), "data": {**told, "server": held}, "fingerprint": self.partition.fingerprint}

    def _moment(self, round: int) -> dict[str, Any]:
        told = summary(self.at(round), self.dataset)
        by_client = {key: [client[key] for client in told["clients"]] for key in ("train", "corruption")}
        return {"round": round, **by_client, "skew": told["skew"]}

    def server(self, name: str) -> Samples:
        """Samples the server holds, normalized as the clients' are.

        Raises:
            DataError: the data set has none of that name.
        """
        return self._server[name]

    def denormalize(self, images: Any) -> Any:
        """Normalized images → [0, 1], clipped; for pictures."""
        return denormalizer(self.config)(images)

    def _prepare(self, client: int, indices: np.ndarray, corruption: tuple[str, int] | None, split: Split) -> Samples:
        """Samples of one split as a client sees them."""
        samples, numbers = getattr(self.dataset, split), indices
        chosen = samples.select(indices)
        if self._by_site:
            # a node neither knows where its samples are among those of all sites, nor the other sites' owners
            numbers = indices - getattr(self._divided, split).offsets[client]
            chosen = _with_own_owners(chosen, self.partition.names[client])
        if corruption is not None and len(chosen) and "image" in chosen.columns:
            from fedlab.data.corruptions import corrupt

            # corruption belongs to the data, not to the run: the same picture is spoilt alike under every seed
            seed = derive_seed(0, "corruption", split)
            images = corrupt(chosen["image"], *corruption, seed, numbers)
            chosen = chosen.with_columns({**chosen.columns, "image": images})
        return normalized(chosen, self.config)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": OrderedDict(), "_ready_bytes": 0}


def _with_own_owners(samples: Samples, site: str) -> Samples:
    """Samples of one site, whose owners' codes stand for the owners of this site only."""
    own = [code for code, name in enumerate(samples.group_names) if name.startswith(f"{site}/")]
    if not own:
        return samples
    names = tuple(samples.group_names[code] for code in own)
    columns = {**samples.columns, "group": samples["group"] - own[0]}
    return Samples(columns, samples.class_names, samples.domain_names, names, check=False)
