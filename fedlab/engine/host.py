"""One machine of a Ray cluster, called there over ssh: ``python -m fedlab.engine.host about | start OPTION… | stop``.

``about`` prints a JSON object: ``versions`` of the software by name, ``nodes``, the number of Ray's nodes on the
machine, and ``address``, that of the machine. ``start`` passes its options to ``ray start``. ``stop`` ends all of Ray
that this user has started on the machine. The exit code is that of Ray's own command.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from fedlab.engine.members import versions

_RAY = (sys.executable, "-m", "ray.scripts.scripts")


def about() -> dict[str, Any]:
    """What `main` prints for ``about``."""
    from ray._private.services import find_node_ids, get_node_ip_address

    return {"versions": versions(), "nodes": len(find_node_ids()), "address": get_node_ip_address()}


def main(arguments: Sequence[str]) -> int:
    """Carry one command out.

    Args:
        arguments: the command and its options.
    """
    command, *options = arguments
    if command == "about":
        sys.stdout.write(json.dumps(about()) + "\n")
        return 0
    # the environment, in which Ray's reports of its use are off, is what importing fedlab has made of it
    quiet = ["--disable-usage-stats", "--include-dashboard", "false"] if "--head" in options else []
    child = subprocess.Popen([*_RAY, command, *options, *quiet])
    # with --block Ray's command lives as long as its processes: who ends this program ends them
    before = signal.signal(signal.SIGTERM, lambda number, frame: child.terminate())
    try:
        return child.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
