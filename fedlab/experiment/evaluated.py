"""The metrics of a run that has none yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedlab.config import Config
from fedlab.errors import NotEvaluatedError


class NoEvaluation(dict[str, Any]):
    """Empty; whatever is asked of it says why there is nothing and how to get it.

    Args:
        path: the run's folder.
        config: its configuration.
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
