"""The contexts that a method's hooks on the server are given."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from fedlab.assembly import server_holding
from fedlab.method import FigureContext, Plan, ServerContext, Task
from fedlab.seeding import global_generators
from fedlab.server.messaging.directory import ClientDirectory, ClientNames
from fedlab.server.messaging.shared import state_in
from fedlab.server.setup import ServerSetup
from fedlab.server.state import ServerState


class Contexts:
    """Makes the contexts of one run.

    Args:
        setup: of the run.
        task: facts about the job.
        networks: the server's networks by role.
        state: what lasts on the server.
        directory: who is who.
        device: that the server works on.

    The attribute ``holding`` is what the server holds of the method's assets.
    """

    def __init__(
        self,
        setup: ServerSetup,
        task: Task,
        networks: nn.ModuleDict,
        state: ServerState,
        directory: ClientDirectory,
        device: torch.device,
    ) -> None:
        self._setup, self._task, self._networks, self._state = setup, task, networks, state
        self._directory, self._device = directory, device
        self.holding = server_holding(setup.components, task, device, setup.cache.folder if setup.cache else None)

    def work(
        self,
        round: int,
        plan: Plan,
        before: Mapping[str, Tensor] | None = None,
        results: Mapping[int, Mapping[str, Tensor]] | None = None,
    ) -> ServerContext:
        """The context of the server's part of a round.

        Args:
            round: its number; 0 before the first.
            plan: of the round.
            before: the state that was sent to the clients.
            results: what clients sent beside the weights, by client id.
        """
        setup, config = self._setup, self._setup.config
        return ServerContext(
            before=before or {},
            after=self._state.network,
            shared=self._state.shared,
            private=self._state.private,
            data=setup.data,
            results=results or {},
            batch_size=config.evaluation.batch_size,
            task=self._task,
            networks=self._networks,
            training=setup.components.stages.training(plan),
            device=self._device,
            seed=config.seed,
            round=round,
            rounds=config.federation.rounds,
            plan=plan,
            cache=setup.cache,
            holding=self.holding,
        )

    def figures(self, round: int) -> FigureContext:
        """What pictures and artifacts are made of, after a round."""
        setup, shared = self._setup, self._state.shared
        states, test = setup.client_states, setup.client_test
        return FigureContext(
            task=self._task,
            round=round,
            batch_size=setup.config.evaluation.batch_size,
            shared={name: shared[name].cpu() for name in shared if state_in(name) is None},
            private={name: value.cpu() for name, value in self._state.private.items()},
            networks=self._networks.eval(),
            data=setup.data,
            client_names=ClientNames(self._directory),
            client_state=lambda client: states.latest(client) if states is not None else None,
            client_test=lambda client: test(client) if test is not None else None,
            denormalize=setup.denormalize,
            seed=setup.config.seed,
            holding=self.holding,
        )

    def draws(self, round: int, phase: str) -> AbstractContextManager[None]:
        """Seed torch's global generator by the run's seed, the round and the phase, and restore it afterwards."""
        return global_generators(self._setup.config.seed, "global", "server", round, phase, device=self._device)
