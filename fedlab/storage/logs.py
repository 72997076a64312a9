"""Files that grow by a line at a time, such as the logs of processes that run for months."""

from __future__ import annotations

from pathlib import Path


def put_aside(path: Path, longest: int) -> None:
    """Rename a file that has become too long to ``NAME.1``, so that the next line begins a new one.

    An older file of that name is replaced.

    Args:
        path: the file, which need not exist.
        longest: bytes above which it is renamed.
    """
    if path.is_file() and path.stat().st_size > longest:
        path.replace(path.with_name(f"{path.name}.1"))
