"""The events of a run: one stream that is written to files, to the console and to trackers such as TensorBoard."""

from __future__ import annotations

from fedlab.tracking.history import SCOPES, History
from fedlab.tracking.tracker import Event, Sink, Tracker
from fedlab.tracking.trackers import RunTracker, TrackedRun

__all__ = ["SCOPES", "Event", "History", "RunTracker", "Sink", "TrackedRun", "Tracker"]
