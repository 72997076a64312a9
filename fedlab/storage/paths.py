"""Places on the disk: which settings name one and what they are relative to, and FedLab's own folders."""

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
    """Marks a text setting as a place on the disk, so that a relative one is made absolute before a run starts.

    Args:
        kind: ``input`` is a file or folder that is read; ``hub`` is one too, where it exists or can be nothing else,
            and else a name on a hub; ``weights`` may end in ``#ROLE``; ``made`` is a folder that is made where it is
            missing; ``output`` likewise, relative to the current folder whoever names it; ``uri`` may be an address.
    """

    kind: Kind

    def absolute(self, text: str, folder: Path) -> str:
        """The place, where a relative one starts from `folder`; an address and a name on a hub stay as they are."""
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
"""A folder that is made where it is missing."""
OutputPath = Annotated[str, PathKind("output")]
"""A folder that is made where it is missing, relative to the current one even in a file that lies elsewhere."""
UriOrPath = Annotated[str, PathKind("uri")]
"""An address, or a file or folder."""


def _joined(text: str, folder: Path) -> Path:
    path = Path(text).expanduser()
    if path.is_absolute():
        return path
    path = Path.cwd() / folder / path
    # without its `..` two spellings of one place are equal; links are followed, as the system itself would
    return path.resolve() if ".." in path.parts else path


def _looks_local(text: str) -> bool:
    """Whether it can be no name on a hub, which is NAME or OWNER/NAME."""
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
    """Where reusable results are kept: `configured`, else ``$FEDLAB_CACHE``, else the user's cache folder."""
    chosen = configured or os.environ.get("FEDLAB_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("fedlab-sim"))


def flower_home() -> Path:
    """Flower's folder on this machine (``$FLWR_HOME``, default ``~/.flwr``)."""
    return Path(os.environ.get("FLWR_HOME", "~/.flwr")).expanduser()
