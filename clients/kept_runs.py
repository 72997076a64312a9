"""Keeps a node's disk from filling up with the client states of runs that are over.

A node cannot know which runs are over: any of them may be resumed. So it keeps the runs that it has used last.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

log = logging.getLogger(__name__)


def forget_old_runs(folder: Path, current: str, kept: int) -> list[str]:
    """Remove what the runs that have not been used for the longest time have left on this node.

    Args:
        folder: of all runs on the node, with a folder for each.
        current: the folder of the run that begins now or goes on; it stays.
        kept: number of runs that stay, with this one.

    Returns:
        Names of the folders that were removed.
    """
    others = [path for path in folder.iterdir() if path.is_dir() and path.name != current]
    others.sort(key=lambda path: (_last_used(path), path.name), reverse=True)
    forgotten = []
    for path in others[kept - 1 :]:
        try:
            shutil.rmtree(path)
        except OSError as error:  # the run that begins now can do without the room
            log.warning("the states of run %s cannot be removed: %s", path.name, error)
            continue
        log.info("the states of run %s were removed: %d later runs are kept (kept_runs)", path.name, kept)
        forgotten.append(path.name)
    return forgotten


def _last_used(folder: Path) -> int:
    """When something in a folder was last written, in nanoseconds."""
    found = [folder.stat().st_mtime_ns]
    for path in folder.rglob("*"):
        try:
            found.append(path.stat().st_mtime_ns)
        except FileNotFoundError:  # another run of this node has replaced a state meanwhile
            continue
    return max(found)
