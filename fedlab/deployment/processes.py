"""What runs on this machine without containers: the programs of a project, and how to find and end its processes.

Every process of a project carries the project's folder in its environment, and so do all that it starts. Flower
detaches some of its processes from the group and session of their parent, so that this mark is all that shows where
they belong.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from fedlab.config.node import ALLOW, NODE_FILE, PARTITION_ID, STATE_DIR
from fedlab.deployment.flower import LOOKS
from fedlab.deployment.project import Federation, Folder, Site
from fedlab.errors import MachineError
from fedlab.storage.runfolder import write_atomic

MARK = "FEDLAB_PROJECT"
PROGRAM = "FEDLAB_PROGRAM"
SUPERLINK, GATEWAY, NODE = "superlink", "gateway", "node-"
_GRACE = 10.0  # seconds that processes are given to end by themselves
_PROCESSES = Path("/proc")


@dataclass(frozen=True)
class Program:
    """A program that is to run for as long as the project is up.

    Args:
        name: what it is called in logs and in the status.
        command: the program and its arguments; ``{port}`` in one of them is replaced by a free port.
        environment: variables besides those of the supervisor.
        alone: end what an earlier process of this program has left behind before it is started again.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    alone: bool = False


def check_machine() -> None:
    """Refuse systems on which the processes of a project cannot be found again.

    Raises:
        MachineError: this system does not show the environment of processes.
    """
    if not (_PROCESSES / "self" / "environ").exists():
        raise MachineError("--processes", sys.platform, "Linux, with /proc", "use containers instead: --containers")


def programs(folder: Folder) -> list[Program]:
    """The programs that belong to a project, those that others need first."""
    settings = folder.settings()
    if isinstance(settings, Site):
        key, config = folder.path / "key", node_config(node_file=folder.path / "node.yaml")
        return [_node(folder, settings.site, settings.superlink, folder.path / "ca.crt", key, config)]
    found, known = [_superlink(folder, settings), _gateway(folder, settings)], registered(folder)
    for client, (site, data) in enumerate(settings.sites.items()):
        if settings.simulate_partition:
            config = node_config(client=client, state=folder.state / "nodes" / site)
        elif settings.local and data is not None:
            config = node_config(node_file=folder.node_file(site))
        else:
            continue
        if site not in known:
            continue  # the SuperLink would refuse it
        found.append(_node(folder, site, settings.address, folder.authority, folder.key(site), config))
    return found


def registered(folder: Folder) -> dict[str, str]:
    """Flower's ids of the nodes whose keys the SuperLink knows, by site."""
    try:
        found: dict[str, str] = json.loads(_registered_file(folder).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found


def remember(folder: Folder, known: Mapping[str, str]) -> None:
    """Write what `registered` reads."""
    write_atomic(_registered_file(folder), json.dumps(known, indent=1))


def _registered_file(folder: Folder) -> Path:
    return folder.state / "registered.json"


def node_config(*, node_file: Path | None = None, client: int = 0, state: Path | None = None, allow: str = "") -> str:
    """Flower's ``--node-config`` of a node with its own data, or of one in a demonstration."""
    if node_file is not None:
        return f'{NODE_FILE}="{node_file}"'
    return f'{PARTITION_ID}={client} {STATE_DIR}="{state}"'


def environment(folder: Folder) -> dict[str, str]:
    """Variables of all processes of a project."""
    scripts, settings = [str(folder.programs), str(Path(sys.executable).parent)], folder.settings()
    # whoever submits runs to a federation of this machine alone can run programs on it anyway
    allowed = {ALLOW: "*"} if not isinstance(settings, Site) and settings.local else {}
    return {
        **LOOKS,
        **allowed,
        **os.environ,
        MARK: str(folder.path),
        # Flower starts its own programs by their names
        "PATH": os.pathsep.join([*scripts, os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
    }


def marked(folder: Folder, program: str | None = None) -> list[int]:
    """Ids of all processes of a project, or of one of its programs."""
    return carrying(_marks(folder, program))


def end_all(folder: Folder, program: str | None = None, grace: float = _GRACE) -> None:
    """End all processes of a project, or of one of its programs, and wait until they are gone."""
    end_carrying(_marks(folder, program), grace)


def _marks(folder: Folder, program: str | None) -> dict[str, str]:
    return {MARK: str(folder.path), **({} if program is None else {PROGRAM: program})}


def carrying(variables: Mapping[str, str]) -> list[int]:
    """Ids of all processes but this one that have these variables in their environment."""
    wanted = {f"{name}={value}".encode() for name, value in variables.items()}
    found = []
    for entry in _PROCESSES.glob("[0-9]*/environ"):
        try:
            if wanted <= set(entry.read_bytes().split(b"\0")):
                found.append(int(entry.parent.name))
        except OSError:  # it has ended meanwhile, or is another user's
            continue
    return [pid for pid in found if pid != os.getpid()]


def end_carrying(variables: Mapping[str, str], grace: float = _GRACE) -> None:
    """End all processes that `carrying` finds, and wait until they are gone.

    Args:
        variables: in their environment.
        grace: seconds that they are given to end by themselves, before they are killed.
    """
    for kind, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, math.inf)):
        deadline, told = time.monotonic() + patience, set[int]()
        while left := carrying(variables):
            for pid in set(left) - told:  # the first ones may have started others meanwhile
                with suppress(ProcessLookupError):  # it has ended, as it was about to be told
                    os.kill(pid, kind)
            told.update(left)
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Different ports of this machine that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for held in sockets:
            held.bind(("127.0.0.1", 0))
        return [int(held.getsockname()[1]) for held in sockets]


def is_taken(port: int) -> bool:
    """Whether somebody listens on a port of this machine."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind(("", port))
        except OSError:
            return True
    return False


def _superlink(folder: Folder, settings: Federation) -> Program:
    command = [
        *("flower-superlink", "--host", "127.0.0.1", "--port", str(settings.control_port)),
        *("--ssl-ca-certfile", str(folder.authority)),
        *("--ssl-certfile", str(folder.server_certificate), "--ssl-keyfile", str(folder.server_key)),
        *("--enable-supernode-auth", "--isolation", "subprocess", "--database", str(folder.state / "superlink.db")),
        "--disable-runtime-dependency-installation",
    ]
    variables = {"FLWR_HOME": str(folder.state / "flower"), "FEDLAB_RUNS": str(folder.runs)}
    if folder.server_file.is_file():
        variables["FEDLAB_SERVER"] = str(folder.server_file)
    return Program(SUPERLINK, tuple(command), variables)


def _gateway(folder: Folder, settings: Federation) -> Program:
    host = "127.0.0.1" if settings.local else "0.0.0.0"
    command = [
        *(sys.executable, "-m", "fedlab.deployment.gateway", "--host", host, "--port", str(settings.port)),
        *("--superlink", f"127.0.0.1:{settings.control_port}", "--certificates", str(folder.certificates)),
    ]
    return Program(GATEWAY, tuple(command), alone=True)


def _node(folder: Folder, site: str, superlink: str, authority: Path, key: Path, config: str) -> Program:
    command = [
        *("flower-supernode", "--superlink", superlink, "--root-certificates", str(authority)),
        *("--auth-supernode-private-key", str(key), "--isolation", "subprocess"),
        *("--host", "127.0.0.1", "--port", "{port}", "--node-config", config),
    ]
    home = folder.state / "nodes" / site / "flower"
    return Program(f"{NODE}{site}", tuple(command), {"FLWR_HOME": str(home)}, alone=True)
