"""Scalars and pictures for TensorBoard."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from fedlab.errors import ConfigError
from fedlab.tracking.table import rows
from fedlab.tracking.tracker import Event


def check_tensorboard() -> None:
    """Raise ConfigError where the package is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "tracking.tensorboard",
            True,
            "the package tensorboard",
            "pip install tensorboard, or set tracking.tensorboard: false",
        )


class TensorBoardSink:
    """Writes event files.

    Args:
        target: folder for TensorBoard's files.
        root: folder that the paths of figures start from.
        resumed: the round after which the run continues, 0 if it begins again; TensorBoard then hides later rounds.
    """

    def __init__(self, target: Path, root: Path, resumed: int | None = None) -> None:
        check_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        first = None if resumed is None else resumed + 1 if resumed else 0
        self._writer, self._root = SummaryWriter(str(target), purge_step=first), root

    def write(self, event: Event) -> None:
        when = event["time"]
        found = list(rows(event))
        for row in found:
            self._writer.add_scalar(row.tag, row.value, row.round, walltime=when)
        if event["event"] == "figure":
            with Image.open(self._root / event["path"]) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self._writer.add_image(event["name"], pixels, event["round"], walltime=when, dataformats="HWC")
        elif not found:
            return
        self._writer.flush()  # its own thread would keep up to two minutes of a killed run

    def close(self) -> None:
        self._writer.close()
