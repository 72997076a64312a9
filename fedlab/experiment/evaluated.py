"""The metrics of a run that has not been evaluated yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedlab.config import Config
from fedlab.errors import NotEvaluatedError


class NoEvaluation(dict[str, Any]):
    """An empty mapping in which looking up any key raises an error that says why there are no metrics.

    Args:
        path: the run folder.
        config: the run's configuration.

    Raises:
        NotEvaluatedError: a key is looked up with ``[]``.
    """

    def __init__(self, path: Path, config: Config) -> None:
        super().__init__()
        self.path, self.config = path, config

    def __missing__(self, key: str) -> Any:
        rounds, every = self.config.federation.rounds, self.config.evaluation.every
        raise NotEvaluatedError(
            f"{self.path} has no metrics yet: it ended before its first evaluation\n"
            f"  expected: evaluation every {every} of {rounds} rounds and after the last (evaluation.every)\n"
            f"  to do:    fedlab resume {self.path}"
        )
