"""When the server writes a checkpoint, and what it holds."""

from __future__ import annotations

from dataclasses import replace

from flwr.serverapp import Grid

from fedlab.config.recorded import deciding
from fedlab.method import NotFiniteError, Task
from fedlab.server.messaging.directory import ClientDirectory
from fedlab.server.messaging.shared import ranges
from fedlab.server.records import RunWriter
from fedlab.server.setup import ServerSetup
from fedlab.server.snapshot import changing, client_versions, snapshot
from fedlab.server.state import ServerState


class Checkpoints:
    """Writes the checkpoints of one run.

    A simulation writes one every ``tracking.checkpoint_every`` rounds and after the last one. In a deployment a round
    takes seconds at least, and a server may be ended at any time, so one is written after every round; of those that
    ``checkpoint_every`` does not ask for, only the last two stay.

    Args:
        setup: the run.
        task: facts about the job.
        state: what lasts on the server.
        grid: the grid, which keeps the versions of the clients' states in a simulation.
        directory: the clients.
        writer: writes into the run folder.
    """

    def __init__(
        self,
        setup: ServerSetup,
        task: Task,
        state: ServerState,
        grid: Grid,
        directory: ClientDirectory,
        writer: RunWriter,
    ) -> None:
        self._setup, self._task, self._state, self._grid = setup, task, state, grid
        self._every_round, self._writer, self._directory = directory.deployed, writer, directory
        self._configuration = deciding(setup.config.model_dump(mode="json"))

    def after(self, round: int, last: bool) -> None:
        """Write the checkpoint of a round that has ended, if there is to be one.

        Args:
            round: the round.
            last: whether it is the last one that is carried out.

        Raises:
            NotFiniteError: the server's state holds NaN, which no later round could mend.
        """
        self._refuse_nan(round)
        wanted = last or self._is_wanted(round)
        if not (wanted or self._every_round):
            return
        content, task = snapshot(self._state), self._task
        facts = {
            **content.facts,
            "seed": self._setup.config.seed,
            "data": self._setup.data_fingerprint,
            "configuration": self._configuration,
            "client_versions": client_versions(self._grid, self._state.versions),
            "columns": task.columns,
            "class_names": list(task.class_names),
            "vocabulary": list(task.vocabulary),
            "clients": task.num_clients,
        }
        if self._directory.deployed:
            facts["members"] = ranges(self._directory.clients)
        self._writer.checkpoint(round, replace(content, facts=facts), passing=not wanted)
        before = self._state.checkpoints
        self._state.checkpointed(round)
        for old in set(before) - set(self._state.checkpoints):
            if self._every_round and not self._is_wanted(old):
                self._writer.remove_checkpoint(old)

    def _refuse_nan(self, round: int) -> None:
        """Refuse to go on with NaN, every round and not only before a checkpoint, to name the round that made it."""
        found = [name for name, value in changing(self._state) if value.is_floating_point() and value.isnan().any()]
        if found:
            kept = f"the last checkpoint is of round {self._state.checkpoints[-1]}" if self._state.checkpoints else ""
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise NotFiniteError(
                f"the server's state is not a number (NaN) after round {round}, in {found[0]}{more}, so that no "
                f"checkpoint is written{'; ' * bool(kept)}{kept}. Clients with NaN are refused before, so look at "
                f"{type(self._setup.method).__name__}.server_update() and the strategy, or lower their learning rates."
            )

    def _is_wanted(self, round: int) -> bool:
        return round % self._setup.config.tracking.checkpoint_every == 0
