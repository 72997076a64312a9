"""Scalars and pictures for TensorBoard."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from fedlab.engine.machine import is_installed
from fedlab.errors import ConfigError
from fedlab.tracking.quantiles import readable_rows
from fedlab.tracking.tracker import Event
from fedlab.tracking.trackers.base import NumberSettings, RunTracker, TrackedRun


class TensorBoard(RunTracker):
    """Writes event files for TensorBoard into the run folder."""

    Settings = NumberSettings

    _writer: Any = None

    @property
    def without(self) -> str:
        return "nothing is written for TensorBoard"

    def check(self) -> tuple[str, ...]:
        if not is_installed("tensorboard"):
            fix = "pip install tensorboard, or set tracking.tensorboard: false"
            raise ConfigError(self.key, "tensorboard", "the package tensorboard", fix)
        return ()

    def open(self, run: TrackedRun) -> None:
        self.check()
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard hides the rounds that a resumed run repeats
        first = None if run.resumed is None else run.resumed + 1 if run.resumed else 0
        self._writer, self._root = SummaryWriter(str(run.folder.tensorboard), purge_step=first), run.folder.path

    def write(self, event: Event) -> None:
        when = event["time"]
        found = list(readable_rows(event, self.settings.most_clients))
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
        if self._writer is not None:
            self._writer.close()
