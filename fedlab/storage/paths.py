"""Paths in settings and what they are relative to, and the folders that FedLab and Flower use by default."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import platformdirs

Kind = Literal["input", "hub", "weights", "made", "output", "uri"]
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


@dataclass(frozen=True)
class PathKind:
    """Marks a text setting as a path, so that a relative path is made absolute before a run starts.

    Args:
        kind: ``input`` is a file or folder that is read. ``hub`` is a name on a hub, unless such a file or folder
            exists or the text cannot be a name on a hub. ``weights`` is a file or folder, which may be followed by
            ``#ROLE``. ``made`` is a folder that is created if it does not exist. ``output`` is one too, but it is
            relative to the current folder even if a file elsewhere names it. ``uri`` is a path or an address.
    """

    kind: Kind

    def absolute(self, text: str, folder: Path) -> str:
        """Make a path absolute, relative to `folder`. Addresses and names on a hub are returned as they are."""
        if not text:
            return text
        if self.kind == "uri":
            return _absolute_uri(text, folder)
        if self.kind == "hub" and not _looks_local(text) and not (folder / text).exists():
            return text
        if self.kind == "weights" and not _joined(text, folder).exists():
            place, mark, role = text.rpartition("#")
            return f"{_joined(place, folder)}#{role}" if mark and place else str(_joined(text, folder))
        return str(_joined(text, folder))


InputPath = Annotated[str, PathKind("input")]
"""A file or folder that is read."""
HubPath = Annotated[str, PathKind("hub")]
"""A name on a hub, or a file or folder that is read."""
WeightsPath = Annotated[str, PathKind("weights")]
"""A file or a run folder, which may be followed by ``#ROLE``."""
MadePath = Annotated[str, PathKind("made")]
"""A folder that is created if it does not exist."""
OutputPath = Annotated[str, PathKind("output")]
"""A folder that is created if it does not exist; relative to the current folder, also in a file elsewhere."""
UriOrPath = Annotated[str, PathKind("uri")]
"""An address, or a file or folder."""


def _joined(text: str, folder: Path) -> Path:
    path = Path(text).expanduser()
    if path.is_absolute():
        return path
    path = Path.cwd() / folder / path
    # Two spellings of one path are equal once `..` is resolved. That follows links, as the system itself does.
    return path.resolve() if ".." in path.parts else path


def _looks_local(text: str) -> bool:
    """Whether a text cannot be a name on a hub, which is NAME or OWNER/NAME."""
    return text.startswith((".", "~", "/")) or text.count("/") > 1 or "\\" in text


def _absolute_uri(text: str, folder: Path) -> str:
    if text.startswith("sqlite:///"):
        return f"sqlite:///{_joined(text.removeprefix('sqlite:///'), folder)}"
    if text.startswith("file:") and not text.startswith("file:/"):
        return f"file://{_joined(text.removeprefix('file:'), folder)}"
    if _SCHEME.match(text) or text == "databricks":
        return text
    return str(_joined(text, folder))


def cache_folder(configured: str | None = None) -> Path:
    """The folder of reusable results: `configured`, else ``$FEDLAB_CACHE``, else in the user's cache folder."""
    chosen = configured or os.environ.get("FEDLAB_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("fedlab-sim"))


def flower_home() -> Path:
    """Flower's folder on this machine (``$FLWR_HOME``, default ``~/.flwr``)."""
    return Path(os.environ.get("FLWR_HOME", "~/.flwr")).expanduser()
