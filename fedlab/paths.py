"""Folders outside the run folder."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder(configured: str | None = None) -> Path:
    """Where reusable results are kept: `configured`, else ``$FEDLAB_CACHE``, else the user's cache folder."""
    chosen = configured or os.environ.get("FEDLAB_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("fedlab-sim"))


def flower_home() -> Path:
    """Flower's folder on this machine (``$FLWR_HOME``, default ``~/.flwr``)."""
    return Path(os.environ.get("FLWR_HOME", "~/.flwr")).expanduser()
