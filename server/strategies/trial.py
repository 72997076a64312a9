"""A round of one client as an averaging strategy sees it, without a grid."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from flwr.app import Message

from fedlab.engine.execution import node_of, set_task_identity
from fedlab.method.exchange import Exchange
from fedlab.protocol.messages import ARRAYS, CONFIG, REDUCE, array_record, config_record, required, to_numpy
from fedlab.server.strategies.average import AveragingStrategy
from fedlab.server.strategies.rounds import Arrays, Cohort, TrainingRound


class Trial:
    """Sends one client what the strategy sends, and averages its reply.

    Args:
        strategy: one of FedLab's own strategies.
        exchange: what travels.
        arrays: network state that is sent.
        trained: names of the parameters that are trained.
        client: the client.
        examples: number of its training samples.
        round: the round.
    """

    def __init__(
        self,
        strategy: AveragingStrategy,
        exchange: Exchange,
        arrays: Arrays,
        trained: Collection[str],
        client: int,
        examples: int,
        round: int,
    ) -> None:
        set_task_identity()
        told = TrainingRound(
            number=round,
            cohort=Cohort((node_of(client),), (examples,)),
            population=1,
            weight_of={name: exchange.group_of[name].weight for name in exchange.up},
            trained=frozenset(trained),
        )
        self._strategy, self._sent = strategy, strategy.compose(told, arrays)
        self.message: Message = self._sent.messages[0]

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What the client is sent: network state, and what the algorithm sends beside it."""
        return to_numpy(required(array_record, self.message.content, ARRAYS))

    @property
    def settings(self) -> Mapping[str, object]:
        """The strategy's settings for the client."""
        settings = dict(required(config_record, self.message.content, CONFIG))
        settings.pop(REDUCE, None)
        return settings

    def average(self, reply: Message) -> Arrays | None:
        """The new arrays of the server, if this reply is all that came."""
        return self._strategy.combine(self._sent, [reply])
