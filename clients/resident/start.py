"""Starts Flower's ``flwr-clientapp``, the process of a message, without modules that it does not need.

Flower's package of this command imports the SuperNode's command too, and with it a web server and a database. That
takes longer than all the rest of the process's start, and every message pays for it. Here the same command is called
with a stand-in for that module.

A SuperExec starts ``flwr-clientapp`` by its name, so that `install` writes a program of this name into a folder that
comes first in ``PATH``.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from types import ModuleType

PROGRAM = "flwr-clientapp"
_MODULE = "fedlab.clients.resident.start"  # this one; its name is another where it is run
_PACKAGE, _NOT_NEEDED = "flwr.supernode.cli", "flower_supernode"


def install(folder: Path) -> None:
    """Write the program into a folder, which is made if it does not exist.

    Raises:
        DiskFullError: there is no room for it.
    """
    from fedlab.storage.runfolder import write_atomic

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PROGRAM
    # -P, because the folder in which a node was started must not hide installed modules
    write_atomic(path, f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m {_MODULE} "$@"\n')
    path.chmod(0o755)


def main() -> None:
    """What ``flwr-clientapp`` does."""
    name = f"{_PACKAGE}.{_NOT_NEEDED}"
    stand_in = ModuleType(name)
    setattr(stand_in, _NOT_NEEDED, None)
    sys.modules[name] = stand_in
    from flwr.supernode.cli import flwr_clientapp

    del sys.modules[name]
    flwr_clientapp()


if __name__ == "__main__":
    main()
