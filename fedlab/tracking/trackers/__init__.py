"""Trackers: where the numbers and pictures of a run are sent while it goes on."""

from __future__ import annotations

from fedlab.tracking.trackers.base import NumberSettings, RunTracker, TrackedRun
from fedlab.tracking.trackers.configured import TRACKERS, check_trackers, make_trackers

__all__ = ["TRACKERS", "NumberSettings", "RunTracker", "TrackedRun", "check_trackers", "make_trackers"]
