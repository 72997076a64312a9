"""Callbacks: objects that follow a run on the server and may end it early."""

from __future__ import annotations

from fedlab.callbacks.base import Callback, CallbackContext
from fedlab.callbacks.configured import CALLBACKS, GIVEN, ConfiguredCallback, check_callbacks, make_callbacks

__all__ = [
    "CALLBACKS",
    "GIVEN",
    "Callback",
    "CallbackContext",
    "ConfiguredCallback",
    "check_callbacks",
    "make_callbacks",
]
