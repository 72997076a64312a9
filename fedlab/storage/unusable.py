"""Says what lies on the disk and is not used."""

from __future__ import annotations

import logging
from functools import cache

log = logging.getLogger(__name__)


@cache
def warn_once(message: str) -> None:
    """Log a warning, once in the life of this process: the same file is often looked at several times."""
    log.warning("%s", message)
