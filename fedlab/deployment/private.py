"""Files that only their owner may read: keys, and what holds keys."""

from __future__ import annotations

import os
from pathlib import Path

from fedlab.errors import ConfigError

FILE_MODE, FOLDER_MODE = 0o600, 0o700


def private_folder(path: Path) -> Path:
    """Create a folder that only its owner can look into; one that exists is closed to others."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(FOLDER_MODE)
    return path


def write_private(path: Path, content: str | bytes) -> None:
    """Write a new file that only its owner can read. It is never readable by others, not even while it is written.

    Raises:
        FileExistsError: there is such a file; keys are not overwritten.
    """
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE), "wb") as file:
        os.fchmod(file.fileno(), FILE_MODE)  # whatever the user's umask is
        file.write(content.encode() if isinstance(content, str) else content)


def check_private(path: Path) -> None:
    """Refuse a key that others can read.

    Raises:
        ConfigError: there is no such file, or its mode gives others access.
    """
    if not path.is_file():
        raise ConfigError(str(path), "missing", "a key file", "restore it from a copy, or make the project anew")
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise ConfigError(str(path), oct(mode), "a file that only its owner can read", f"chmod 600 {path}")
