from __future__ import annotations

import importlib.util
import io
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedlab.config import Config, parse
from fedlab.errors import ConfigError
from fedlab.storage.runfolder import RunFolder
from fedlab.tracking.table import rows
from fedlab.tracking.trackers import TrackedRun
from fedlab.tracking.trackers.tensorboard import TensorBoard

Stream = list[dict[str, Any]]


def test_scalars_and_pictures_come_back_from_the_event_file(root: Path, stream: Stream) -> None:
    config = parse(Config, {"method": "supervised", "data": {"source": "digits"}})
    sink = TensorBoard(TensorBoard.Settings(), "tracking.tensorboard")
    sink.open(TrackedRun(RunFolder(root), config))
    for event in stream:
        sink.write(event)
    board = EventAccumulator(str(root / "tensorboard")).Reload()  # before close: nothing waits in a buffer
    assert set(board.Tags()["scalars"]) == {row.tag for event in stream for row in rows(event)}
    (mean,) = board.Scalars("accuracy/mean")
    assert (mean.step, mean.value, mean.wall_time) == (2, 0.625, stream[-2]["time"])
    first, second = board.Scalars("train/ce")
    assert (first.step, second.step) == (1, 2)
    assert math.isnan(first.value)
    assert second.value == pytest.approx(0.7071)
    (picture,) = board.Images("virtual")
    assert picture.step == 0
    image = Image.open(io.BytesIO(picture.encoded_image_string)).convert("RGB")
    assert (image.size, image.getpixel((1, 2))) == ((2, 3), (255, 0, 0))
    sink.close()


def test_a_missing_package_is_an_error_that_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    tracker = TensorBoard(TensorBoard.Settings(), "tracking.tensorboard")
    with pytest.raises(ConfigError, match=r"tracking\.tensorboard.*\n.*\n.*pip install tensorboard"):
        tracker.check()
