"""Probes of the method's features, before round 1 and at every evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from flwr.app import Message, RecordDict
from torch import Tensor, nn

from fedlab.config import Config
from fedlab.errors import ConfigError
from fedlab.method import Task
from fedlab.probes import ConfiguredProbe, check_sets, run_probes
from fedlab.protocol.instructions import Instructions
from fedlab.protocol.messages import ARRAYS, FITTED, SUMS, array_record, required, to_numpy, to_record
from fedlab.server.contexts import Contexts
from fedlab.server.evaluation import Evaluation, on_server, with_values
from fedlab.server.messaging.delivery import Delivery
from fedlab.server.messaging.directory import ClientDirectory
from fedlab.server.setup import ServerSetup

PROBE = "query.probe"
"""Type of the messages that ask clients for the sums of probes."""


class Probing:
    """The probes of one run.

    Args:
        setup: the run.
        task: facts about the job.
        networks: the server's networks by role.
        contexts: seeds torch's global generator.
        directory: who is who.
        delivery: sends messages and collects the replies.
        participants: clients that may train, whose samples probes are fitted to.

    Raises:
        ConfigErrors: samples that probes ask for are not there.
    """

    def __init__(
        self,
        setup: ServerSetup,
        task: Task,
        networks: nn.ModuleDict,
        contexts: Contexts,
        directory: ClientDirectory,
        delivery: Delivery,
        participants: Sequence[int],
    ) -> None:
        self._setup, self._networks, self._contexts = setup, networks, contexts
        self._directory, self._delivery, self._participants = directory, delivery, frozenset(participants)
        self._probes = setup.components.probes
        self._mergeable = {one: probe for one in self._probes if (probe := one.mergeable) is not None}
        check_sets(self._probes, setup.data, task.num_classes)

    def on_server(self, round: int, evaluation: Evaluation) -> Evaluation:
        """The evaluation with the values of the probes on the server's own samples.

        Args:
            round: after which the evaluation is; 0 before the first.
            evaluation: as it is without probes.

        Raises:
            ConfigError: a metric of the method has the name of a probe's.
        """
        setup = self._setup
        if len(self._mergeable) == len(self._probes):
            return evaluation
        with self._contexts.draws(round, "probes"):
            size, seed = setup.config.evaluation.batch_size, setup.config.seed
            values = run_probes(self._probes, setup.method, self._networks, setup.data, size, seed)
        return on_server(evaluation, _united(evaluation.server, values), setup.data)

    def on_clients(
        self,
        evaluation: Evaluation,
        clients: Sequence[int],
        arrays: Mapping[str, Tensor],
        instructions: Instructions,
    ) -> Evaluation:
        """The evaluation with the values of the probes on the clients' own samples.

        Clients are asked twice: for the sums to which a probe is fitted, and for what the fitted probe counts on their
        test samples. Only clients that may train take part in the fit.

        Args:
            evaluation: as it is without these probes.
            clients: clients that are evaluated.
            arrays: network state that is sent to clients.
            instructions: for the clients.
        """
        if not self._mergeable:
            return evaluation
        training = [client for client in clients if client in self._participants]
        answers = self._ask(training, arrays, instructions, {})
        fitted = {
            f"{one.metric}/{name}": values
            for one, probe in self._mergeable.items()
            for name, values in probe.solve(_of(one, _total(answers.values()))).items()
        }
        tested = [client for client in clients if self._directory.tested(client)]
        counted = self._ask(tested, arrays, instructions, fitted)
        profiles = {client: self._directory.profile(client) for client in counted}
        values = {profiles[client].name: self._values(counts) for client, counts in counted.items()}
        pooled = _total(counts for client, counts in counted.items() if not profiles[client].unseen)
        unseen = [profile.name for profile in profiles.values() if profile.unseen]
        return with_values(evaluation, values, self._values(pooled), unseen)

    def _ask(
        self,
        clients: Sequence[int],
        arrays: Mapping[str, Tensor],
        instructions: Instructions,
        fitted: Mapping[str, np.ndarray],
    ) -> dict[int, Mapping[str, np.ndarray]]:
        """The clients' sums of all probes, by client."""
        content = RecordDict({ARRAYS: to_record(arrays), **({FITTED: to_record(fitted)} if fitted else {})})
        messages = [Message(content, self._directory.node(client), PROBE) for client in clients]
        replies = self._delivery.carry(messages, instructions, "probe").answers
        return {
            self._directory.client(reply.metadata.src_node_id): to_numpy(required(array_record, reply.content, SUMS))
            for reply in replies
        }

    def _values(self, counts: Mapping[str, np.ndarray]) -> dict[str, float]:
        values: dict[str, float] = {}
        for one, probe in self._mergeable.items():
            values |= one.named(probe.values(_of(one, counts)))
        return values


def _of(one: ConfiguredProbe, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The sums of one probe."""
    prefix = f"{one.metric}/"
    return {name.removeprefix(prefix): values for name, values in sums.items() if name.startswith(prefix)}


def _total(sums: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    total: dict[str, np.ndarray] = {}
    for found in sums:
        for name, values in found.items():
            total[name] = total[name] + values if name in total else values
    return total


def check_probing(config: Config, probes: Sequence[ConfiguredProbe]) -> None:
    """Refuse probes on the clients' samples in a run with differential privacy, unless it allows what is not counted.

    Raises:
        ConfigError: a probe would send sums of training samples, which the guarantee does not cover.
    """
    if config.privacy is None or config.privacy.settings.get("allow_unaccounted"):
        return
    for one in probes:
        if one.mergeable is not None:
            expected = "no probe on the clients' samples, because their sums leave the clients without noise"
            raise ConfigError(f"{one.key}.on", "clients", expected, "set it to server, or remove it")


def _united(measured: Mapping[str, float], probed: Mapping[str, float]) -> dict[str, float]:
    """The values of the method and those of the probes.

    Raises:
        ConfigError: two have one name.
    """
    if twice := sorted(measured.keys() & probed.keys()):
        raise ConfigError("probes", twice[0], "a name that no metric of the method has", "set the probe's suffix")
    return {**measured, **probed}
