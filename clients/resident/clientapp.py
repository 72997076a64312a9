"""Starts Flower's ``flwr-clientapp``, the process of a message, without modules that it does not need.

Flower's package of this command imports the SuperNode's command too, and with it a web server and a database. That
takes longer than all the rest of the process's start, and every message pays for it. Here the same command is called
with a stand-in for that module.
"""

from __future__ import annotations

import sys
from types import ModuleType

_PACKAGE, _NOT_NEEDED = "flwr.supernode.cli", "flower_supernode"


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
