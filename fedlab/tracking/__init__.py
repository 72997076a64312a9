"""The events of a run: one stream that is written to files, TensorBoard, MLflow and the console."""

from __future__ import annotations

from fedlab.tracking.history import SCOPES, History
from fedlab.tracking.tracker import Event, Sink, Tracker

__all__ = ["SCOPES", "Event", "History", "Sink", "Tracker"]
