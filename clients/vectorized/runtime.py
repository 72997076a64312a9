"""A runtime that trains the clients of a chunk as one batch before they are asked one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from fedlab.clients.runtime import ClientRuntime
from fedlab.clients.setup import ClientSetup
from fedlab.clients.trainer import LocalTrainer
from fedlab.clients.vectorized.training import Fitted, VectorizedClients, counts_steps
from fedlab.clients.work import LocalWork, MissingSharedError, WorkRequest
from fedlab.errors import FedLabError
from fedlab.method.exchange import Exchange
from fedlab.protocol.instructions import Instructions
from fedlab.seeding import torch_generator


class BatchOutcome:
    """What came of clients that were trained as one batch, until each has been asked for its round.

    Args:
        instructions: what the batch was trained by.
    """

    def __init__(self, instructions: Instructions) -> None:
        self._instructions = instructions
        self._waiting: dict[int, Fitted | Exception] = {}

    @property
    def clients(self) -> frozenset[int]:
        """Those that have not been asked for their round yet."""
        return frozenset(self._waiting)

    def put(self, client: int, fitted: Fitted | Exception) -> None:
        """Keep a client's training, or what ended it."""
        self._waiting[client] = fitted

    def take(self, client: int, instructions: Instructions) -> Fitted | None:
        """A client's training, which is handed out once; None where it was not in the batch.

        Raises:
            FedLabError: the client is asked for other work than the batch did.
            Whatever ended its training.
        """
        fitted = self._waiting.pop(client, None)
        if fitted is not None and instructions != self._instructions:
            raise FedLabError(
                f"client {client} was trained as part of a batch in round {self._instructions.round}, and is now asked "
                f"for round {instructions.round} or by another plan"
            )
        if isinstance(fitted, Exception):
            raise fitted
        return fitted


class VectorizedRuntime(ClientRuntime):
    """`ClientRuntime` whose `train` finds the local training done where `vectorize` has been called before.

    The engine calls `vectorize` once for each chunk of train messages and then `train` for each of its clients. What
    the batch made is held as a `BatchOutcome`, which the next chunk replaces.

    Args:
        setup: what to serve.
        device: where to compute.
    """

    def __init__(self, setup: ClientSetup, device: torch.device) -> None:
        super().__init__(setup, device)
        self._outcome: BatchOutcome | None = None

    def vectorize(self, versions: Mapping[int, int | None], request: WorkRequest) -> None:
        """Train clients as one batch, for `train` to hand out; a client like no other is left to `train`.

        Args:
            versions: of the clients' states.
            request: what `train` will be asked for.

        Raises:
            torch.OutOfMemoryError: the device has no room for so many. What else goes wrong, `train` raises.
        """
        instructions = request.instructions
        outcome = self._outcome = BatchOutcome(instructions)
        for clients in self._alike(versions, instructions):
            try:
                with self._draws(clients[0], instructions, "together"):
                    chosen = {client: versions[client] for client in clients}
                    fitted = self._batched(chosen, request).fit()
            except MissingSharedError:  # each client says so by itself
                return
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                for client in clients:
                    outcome.put(client, error)
            else:
                for client, found in zip(clients, fitted, strict=True):
                    outcome.put(client, found.error or found)

    def _fit(self, trainer: LocalTrainer, exchange: Exchange, request: WorkRequest) -> LocalWork:
        outcome = self._outcome
        fitted = None if outcome is None else outcome.take(trainer.client, request.instructions)
        if fitted is None:
            return super()._fit(trainer, exchange, request)
        with torch.no_grad():
            for name, value in fitted.tensors.items():
                self._live[name].copy_(value)
        if fitted.state.changed:
            trainer.state.update(fitted.state)
        trainer.effort = fitted.effort
        for name, figure in fitted.logged:
            trainer.log(name, figure)
        return LocalWork(lambda: (fitted.arrays, fitted.figures), fitted.seconds)

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

    def _batched(self, versions: Mapping[int, int | None], request: WorkRequest) -> VectorizedClients:
        instructions, arrays = request.instructions, request.arrays
        exchange = self.enter(instructions.plan)
        varying = [name for name in self._live if name not in exchange.fixed]
        stack = {name: self._live[name].new_empty((len(versions), *self._live[name].shape)) for name in varying}
        trainers, generators = [], []
        for row, (client, version) in enumerate(versions.items()):
            state = self.store.load(client, version)
            tensors, starts = self._receive(client, instructions, request.shared)
            self._load(exchange, arrays, state, starts)
            for name in varying:
                stack[name][row] = self._live[name]
            trainers.append(self._trainer(client, instructions, state, exchange, tensors))
            purpose = (
                "global",
                "client",
                client,
                instructions.round,
                "train",
            )  # as `_draws` seeds the global generator
            generators.append(torch_generator(self.setup.config.seed, *purpose, device=self.device))
        averaged = list(self._averaged_parameters(exchange))
        return VectorizedClients(self.networks, trainers, generators, stack, averaged, arrays, request.settings)
