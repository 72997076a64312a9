"""A runtime that trains the clients of a chunk as one batch before they are asked one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedlab.clients.corrections import Correction
from fedlab.clients.runtime import ClientRuntime, ClientSetup, MissingSharedError, Trained
from fedlab.clients.trainer import LocalTrainer
from fedlab.clients.vectorized.training import Fitted, VectorizedClients, counts_steps
from fedlab.protocol.instructions import Instructions
from fedlab.seeding import torch_generator


class VectorizedRuntime(ClientRuntime):
    """`ClientRuntime` whose `train` finds the local training done where `vectorize` has been called.

    Args:
        setup: what to serve.
        device: where to compute.
    """

    def __init__(self, setup: ClientSetup, device: torch.device) -> None:
        super().__init__(setup, device)
        self._ready: dict[int, Fitted | Exception] = {}
        self._seconds = 0.0

    def vectorize(
        self,
        versions: Mapping[int, int | None],
        instructions: Instructions,
        arrays: Mapping[str, np.ndarray],
        shared: Mapping[str, np.ndarray],
        settings: Mapping[str, object],
    ) -> None:
        """Train clients as one batch, for `train` to hand out; a client like no other is left to `train`.

        Args:
            versions: of the clients' states.
            instructions: as for `train`.
            arrays: as for `train`.
            shared: as for `train`.
            settings: as for `train`.

        Raises:
            torch.OutOfMemoryError: the device has no room for so many. What else goes wrong, `train` raises.
        """
        self._ready = {}
        for clients in self._alike(versions, instructions):
            try:
                with self._draws(clients[0], instructions, "together"):
                    chosen = {client: versions[client] for client in clients}
                    fitted = self._cohort(chosen, instructions, arrays, shared, settings).fit()
            except MissingSharedError:  # each client says so by itself
                return
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                self._ready |= dict.fromkeys(clients, error)
            else:
                self._ready |= {client: f.error or f for client, f in zip(clients, fitted, strict=True)}

    def train(
        self,
        client: int,
        instructions: Instructions,
        arrays: Mapping[str, np.ndarray],
        shared: Mapping[str, np.ndarray],
        settings: Mapping[str, object],
        version: int | None,
    ) -> Trained:
        """See `ClientRuntime.train`."""
        self._seconds = 0.0
        trained = super().train(client, instructions, arrays, shared, settings, version)
        return replace(trained, metrics={**trained.metrics, "seconds": trained.metrics["seconds"] + self._seconds})

    def _fit(self, trainer: LocalTrainer) -> None:
        ready = self._ready.pop(trainer.client, None)
        if ready is None:
            super()._fit(trainer)
            return
        if isinstance(ready, Exception):
            raise ready
        with torch.no_grad():
            for name, value in ready.tensors.items():
                self._live[name].copy_(value)
        if ready.state.changed:
            trainer.state.update(ready.state)
        trainer.effort = ready.effort
        for name, figure in ready.logged:
            trainer.log(name, figure)
        if trainer.correction is not None:
            trainer.correction = _Done(ready)
        self._seconds = ready.seconds

    def _alike(self, versions: Mapping[int, int | None], instructions: Instructions) -> Iterator[list[int]]:
        """Clients that can go together: two or more, of equally many steps where the schedule counts them."""
        training = self._stages.training(instructions.plan)
        counting = counts_steps(self.method, training) and training.local_steps is None
        alike: dict[int, list[int]] = {}
        for client in versions:
            full, rest = divmod(self.setup.federated.num_train(client), training.batch_size)
            batches = full + (rest > 0 and not training.drop_last)
            alike.setdefault(batches if counting else 0, []).append(client)
        yield from (clients for clients in alike.values() if len(clients) > 1)

    def _cohort(
        self,
        versions: Mapping[int, int | None],
        instructions: Instructions,
        arrays: Mapping[str, np.ndarray],
        shared: Mapping[str, np.ndarray],
        settings: Mapping[str, object],
    ) -> VectorizedClients:
        exchange = self.exchanges.enter(instructions.plan)
        varying = [name for name in self._live if name not in exchange.fixed]
        stack = {name: self._live[name].new_empty((len(versions), *self._live[name].shape)) for name in varying}
        trainers, generators = [], []
        for row, (client, version) in enumerate(versions.items()):
            state, tensors = self.store.load(client, version), self._receive(client, instructions, shared)
            self._load(exchange, arrays, state)
            for name in varying:
                stack[name][row] = self._live[name]
            trainers.append(self._trainer(client, instructions, state, exchange, tensors, None))
            purpose = (
                "global",
                "client",
                client,
                instructions.round,
                "train",
            )  # as `_draws` seeds the global generator
            generators.append(torch_generator(self.setup.config.seed, *purpose, device=self.device))
        averaged = list(self._averaged_parameters(exchange))
        return VectorizedClients(self.networks, trainers, generators, stack, averaged, arrays, settings)


class _Done(Correction):
    """A correction whose work has been done.

    Args:
        fitted: by whom.
    """

    def __init__(self, fitted: Fitted) -> None:
        self._fitted = fitted

    def finish(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        return self._fitted.arrays, self._fitted.figures
