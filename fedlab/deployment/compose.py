"""Compose projects: the containers of a federation, of one site, and of a Ray cluster, as plain mappings.

All values that differ from place to place are variables of the project's ``.env``, so that nobody edits the YAML. The
files in ``docker/`` are examples of what these functions return; ``python -m fedlab.deployment.compose docker`` writes
them.

A federation has these networks::

    outside --> gateway --- core --- superlink --- server      (this machine --> superlink, to submit runs)
                   |
                 fleet
                   |
                SITE-node --- SITE-net --- SITE-client, which holds the data

Only the gateway can be reached from other machines. The network of a site is internal: the container with the data
reaches that site's SuperNode, and no other container or machine.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedlab.config.yamltree import dump_yaml
from fedlab.deployment.flower import LOOKS
from fedlab.deployment.processes import node_config as node_settings
from fedlab.storage.runfolder import write_atomic

Project = dict[str, Any]

USER_ID = 10001
"""User and group of the image."""

_SUPERLINK_PORT, _GATEWAY_PORT, _NODE_PORT, _HEALTH_PORT, _RAY_PORT, _RAYLET_PORT = 8000, 8443, 9094, 9095, 6379, 6380
_CERTIFICATES, _KEY, _NODE_FILE, _SERVER_FILE = (
    "/fedlab/certificates", "/fedlab/key", "/fedlab/node.yaml", "/fedlab/server.yaml",
)  # fmt: skip
_CA = f"{_CERTIFICATES}/ca.crt"
_PROJECT = "/project"  # the image's working directory; the driver of a Ray cluster sees the current folder there

_FLOWER = {
    "FLWR_HOME": "/state/flower",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    **LOOKS,
}
# everything that a library writes beside the run lies on the volume, because the root file system is read-only
_COMPUTING = {
    "FEDLAB_CACHE": "/state/cache",
    "HF_HOME": "/state/huggingface",
    "MPLCONFIGDIR": "/state/matplotlib",
}
# without these, Ray reports its use, and starts workers at the lowest priority
_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}

_HEADER = "# Written by FedLab (fedlab/deployment/compose.py). What may differ is in .env; see docker/README.md.\n"


def federation(
    sites: Mapping[str, str | None],
    *,
    name: str = "fedlab",
    node_config: Mapping[str, str] | None = None,
    server_data: str | None = None,
    gpus: bool = False,
) -> Project:
    """The containers of the organizer's machine: SuperLink, gateway and server, and those of sites that are run here.

    The files lie in the project's folder: ``certificates/``, ``keys/SITE``, ``nodes/SITE/node.yaml`` and, with
    `server_data`, ``server.yaml``.

    Args:
        sites: name of each site that is run on this machine → the folder that its containers see as ``/data``, or None.
            There are none if all sites run on machines of their own.
        name: name of the compose project, in lower case.
        node_config: Flower's node configuration by site, for sites that have no ``node.yaml``.
        server_data: folder that the server sees as ``/data``; ``server.yaml`` says what is in it.
        gpus: whether the containers that compute get all GPUs of the machine.
    """
    given = node_config or {}
    mounts = [_mount("./certificates/ca.crt", _CA)]
    tls = [
        *mounts,
        _mount("./certificates/server.pem", f"{_CERTIFICATES}/server.pem"),
        _mount("./certificates/server.key", f"{_CERTIFICATES}/server.key"),
    ]
    services: Project = {
        "superlink": _service(
            _superlink_command(),
            networks=["core"],
            ports=[f"127.0.0.1:${{FEDLAB_CONTROL_PORT:-{_SUPERLINK_PORT}}}:{_SUPERLINK_PORT}"],
            volumes=[*tls, _volume("superlink", "/state")],
            healthy=_https_health(_SUPERLINK_PORT),
            memory="${FEDLAB_LINK_MEMORY:-4g}",
        ),
        "gateway": _service(
            [
                *("python", "-m", "fedlab.deployment.gateway", "--host", "0.0.0.0", "--port", str(_GATEWAY_PORT)),
                *("--superlink", f"superlink:{_SUPERLINK_PORT}", "--certificates", _CERTIFICATES),
            ],
            networks=["core", "fleet"],
            ports=[f"${{FEDLAB_PORT:-{_GATEWAY_PORT}}}:{_GATEWAY_PORT}"],
            volumes=tls,
            healthy=_https_health(_GATEWAY_PORT),
            after={"superlink": "service_healthy"},
            memory="${FEDLAB_LINK_MEMORY:-4g}",
        ),
        "server": _service(
            _superexec_command("--root-certificates", _CA, "--runtime-api-address", f"superlink:{_SUPERLINK_PORT}"),
            networks=["core"],
            volumes=[
                *mounts,
                *([_mount(server_data, "/data"), _mount("./server.yaml", _SERVER_FILE)] if server_data else []),
                _volume("server", "/state"),
                _volume("runs", "/runs"),
            ],
            environment={
                **_FLOWER,
                **_COMPUTING,
                "FEDLAB_RUNS": "/runs",
                **({"FEDLAB_SERVER": _SERVER_FILE} if server_data else {}),
            },
            healthy=_port_health(_HEALTH_PORT),
            after={"superlink": "service_healthy"},
            memory="${FEDLAB_SERVER_MEMORY:-8g}",
            gpus=gpus,
        ),
    }
    for site, data in sites.items():
        files = {"ca": "./certificates/ca.crt", "key": f"./keys/{site}", "node": f"./nodes/{site}/node.yaml"}
        services |= _site(site, f"gateway:{_GATEWAY_PORT}", "fleet", files, data, given.get(site), gpus)
        services[f"{site}-node"]["depends_on"] = {"gateway": {"condition": "service_healthy"}}
    return _project(name, services, ["core", "fleet"], sites, ["superlink", "server", "runs"])


def node(
    site: str,
    superlink: str,
    data: str | None = None,
    *,
    name: str | None = None,
    node_config: str | None = None,
    gpus: bool = False,
) -> Project:
    """The two containers of a site on its own machine: SuperNode and client. They only open connections to `superlink`.

    The files lie in the project's folder: ``ca.crt``, ``key`` and ``node.yaml``.

    Args:
        site: name of the site.
        superlink: public address of the organizer's gateway, ``HOST:PORT``.
        data: folder that the client sees as ``/data``, or None.
        name: name of the compose project, in lower case; None is made of the site's.
        node_config: Flower's node configuration, for a site that has no ``node.yaml``.
        gpus: whether the client gets all GPUs of the machine.
    """
    files = {"ca": "./ca.crt", "key": "./key", "node": "./node.yaml"}
    services = _site(site, superlink, "fleet", files, data, node_config, gpus)
    named = name or "fedlab-" + re.sub("[^a-z0-9_-]", "-", site.lower())
    return _project(named, services, ["fleet"], [site], [])


def ray(*, name: str = "fedlab-ray") -> Project:
    """A Ray cluster on this machine: a head that starts no clients, workers, and a driver that carries a run out.

    The folder from which compose is called is the driver's current folder. Its subfolder ``runs`` must exist, and all
    containers share it, because clients keep their tensors in the run folder.

    Args:
        name: name of the compose project, in lower case.
    """
    start = ["ray", "start", "--block", "--disable-usage-stats", "--node-manager-port", str(_RAYLET_PORT)]

    def part(command: Sequence[str], memory: str, *more: Project, **settings: Any) -> Project:
        volumes = [*more, _mount("./runs", f"{_PROJECT}/runs", writable=True), _volume("cache", "/state")]
        service = _service(
            command, networks=["ray"], volumes=volumes, environment={**_RAY, **_COMPUTING}, memory=memory, **settings
        )
        return {**service, "shm_size": "${FEDLAB_RAY_SHM:-3g}"}

    head = part(
        [*start, "--head", "--port", str(_RAY_PORT), "--num-cpus", "0", "--include-dashboard", "false"],
        "${FEDLAB_LINK_MEMORY:-4g}",
        healthy=_port_health(_RAY_PORT, _OWN_ADDRESS),
    )
    worker = part(
        [*start, "--address", f"head:{_RAY_PORT}", "--num-cpus", "${FEDLAB_RAY_CPUS:-1}"],
        "${FEDLAB_CLIENT_MEMORY:-8g}",
        healthy=_port_health(_RAYLET_PORT, _OWN_ADDRESS),
        after={"head": "service_healthy"},
    )
    worker["deploy"] = {"replicas": "${FEDLAB_RAY_WORKERS:-2}"}
    driver = part(
        ["--help"],
        "${FEDLAB_SERVER_MEMORY:-8g}",
        _mount(".", _PROJECT),
        after={"head": "service_healthy", "worker": "service_healthy"},
    )
    # started by `docker compose run`, and not by `docker compose up`
    driver |= {"entrypoint": ["fedlab"], "profiles": ["driver"], "restart": "no"}
    return _project(name, {"head": head, "worker": worker, "driver": driver}, ["ray"], [], ["cache"])


def text(project: Project) -> str:
    """A compose project as YAML."""
    return _HEADER + dump_yaml(project)


def write(project: Project, path: Path) -> None:
    """Write a compose project to a file.

    Raises:
        DiskFullError: there is no room for it.
    """
    write_atomic(path, text(project))


def examples() -> dict[str, Project]:
    """The projects in the repository's folder ``docker``, by the names of their files."""
    sites = {f"site-{number}": f"./data/site-{number}" for number in (1, 2, 3)}
    return {
        "compose.yml": federation(sites),
        "compose.node.yml": node("site-1", "${FEDLAB_SUPERLINK:?HOST:PORT of the organizer}", "${FEDLAB_DATA:-./data}"),
        "compose.ray.yml": ray(),
    }


def _superlink_command() -> list[str]:
    return [
        *("flower-superlink", "--host", "0.0.0.0", "--port", str(_SUPERLINK_PORT)),
        *("--isolation", "process", "--enable-supernode-auth", "--database", "/state/superlink.db"),
        *("--ssl-ca-certfile", _CA, "--ssl-certfile", f"{_CERTIFICATES}/server.pem"),
        *("--ssl-keyfile", f"{_CERTIFICATES}/server.key"),
    ]


def _superexec_command(*connection: str) -> list[str]:
    return ["flower-superexec", *connection, "--health-server-address", f"0.0.0.0:{_HEALTH_PORT}"]


def _site(
    site: str,
    superlink: str,
    outside: str,
    files: Mapping[str, str],
    data: str | None,
    node_config: str | None,
    gpus: bool,
) -> Project:
    """A SuperNode and the container in which its client apps run.

    Args:
        site: name of the site, and of the network that the two share.
        superlink: address of the SuperLink or its gateway.
        outside: name of the network over which the SuperNode reaches it.
        files: the host's files ``ca``, ``key`` and ``node``.
        data: folder that the client sees as ``/data``, or None.
        node_config: Flower's node configuration; None refers to the file ``node``.
        gpus: whether the client gets GPUs.
    """
    # The name `runtime` exists only on the site's own network, so the SuperNode serves its client apps on that network
    # alone and not on the one that it shares with the SuperNodes of other sites.
    runtime = f"runtime:{_NODE_PORT}"
    supernode = _service(
        [
            *("flower-supernode", "--superlink", superlink, "--root-certificates", _CA),
            *("--auth-supernode-private-key", _KEY, "--isolation", "process"),
            *("--host", "runtime", "--port", str(_NODE_PORT)),
            *("--node-config", node_config or node_settings(node_file=Path(_NODE_FILE))),
        ],
        networks={outside: {}, f"{site}-net": {"aliases": ["runtime"]}},
        volumes=[_mount(files["ca"], _CA), _mount(files["key"], _KEY), _volume(f"{site}-state", "/state")],
        healthy=_fetch_health(f"http://{runtime}/health"),
        memory="${FEDLAB_LINK_MEMORY:-4g}",
    )
    client = _service(
        _superexec_command("--insecure", "--runtime-api-address", runtime),
        networks=[f"{site}-net"],
        volumes=[
            *([] if node_config else [_mount(files["node"], _NODE_FILE)]),
            *([_mount(data, "/data")] if data else []),
            _volume(f"{site}-state", "/state"),
        ],
        environment={**_FLOWER, **_COMPUTING},
        healthy=_port_health(_HEALTH_PORT),
        after={f"{site}-node": "service_started"},
        memory="${FEDLAB_CLIENT_MEMORY:-8g}",
        gpus=gpus,
    )
    return {f"{site}-node": supernode, f"{site}-client": client}


def _service(
    command: Sequence[str],
    *,
    networks: Sequence[str] | Mapping[str, object],
    volumes: Sequence[Mapping[str, object]],
    memory: str,
    healthy: Project | None = None,
    environment: Mapping[str, str] = _FLOWER,
    ports: Sequence[str] = (),
    after: Mapping[str, str] | None = None,
    gpus: bool = False,
) -> Project:
    service: Project = {
        "image": "${FEDLAB_IMAGE:-fedlab:latest}",
        "command": list(command),
        "user": f"${{FEDLAB_UID:-{USER_ID}}}:${{FEDLAB_GID:-{USER_ID}}}",
        "environment": dict(environment),
        "volumes": [dict(volume) for volume in volumes],
        "networks": dict(networks) if isinstance(networks, Mapping) else list(networks),
    }
    if ports:
        service["ports"] = list(ports)
    if after:
        service["depends_on"] = {other: {"condition": condition} for other, condition in after.items()}
    if healthy:
        service["healthcheck"] = healthy
    if gpus:
        devices = [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
        service["deploy"] = {"resources": {"reservations": {"devices": devices}}}
    return {
        **service,
        # a SuperNode that was killed is refused until the SuperLink has missed it for a minute: it must try again
        "restart": "unless-stopped",
        "init": True,
        "read_only": True,
        "tmpfs": ["/tmp"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "mem_limit": memory,
        "pids_limit": 4096,
        "logging": {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}},
    }


def _project(
    name: str, services: Project, networks: Sequence[str], sites: Iterable[str], volumes: Sequence[str]
) -> Project:
    sites = list(sites)
    return {
        "name": name,
        "services": services,
        "networks": {**{network: {} for network in networks}, **{f"{site}-net": {"internal": True} for site in sites}},
        "volumes": {volume: {} for volume in [*volumes, *(f"{site}-state" for site in sites)]},
    }


def _mount(source: str, target: str, *, writable: bool = False) -> Project:
    # in this form, a source that does not exist is refused; in the short one, it is made as an empty folder
    mount: Project = {"type": "bind", "source": source, "target": target, "bind": {"create_host_path": False}}
    return mount if writable else {**mount, "read_only": True}


def _volume(name: str, target: str) -> Project:
    # in the short form, new versions of compose and old ones of the engine do not understand each other
    return {"type": "volume", "source": name, "target": target}


# an expression for the address under which other containers know this one
_OWN_ADDRESS = "socket.gethostbyname(socket.gethostname())"


def _https_health(port: int) -> Project:
    context = f"ssl.create_default_context(cafile='{_CA}')"
    return _health(
        f"import ssl, urllib.request as u; u.urlopen('https://localhost:{port}/health', timeout=20, context={context})"
    )


def _fetch_health(address: str) -> Project:
    return _health(f"import urllib.request as u; u.urlopen('{address}', timeout=20)")


def _port_health(port: int, host: str = "'localhost'") -> Project:
    return _health(f"import socket; socket.create_connection(({host}, {port}), 20)")


def _health(program: str) -> Project:
    # without site-packages, which take most of the time that a small program needs to start
    test = ["CMD", "python", "-IS", "-c", program]
    return {"test": test, "interval": "5s", "timeout": "30s", "retries": 12, "start_period": "300s"}


if __name__ == "__main__":
    for _name, _example in examples().items():
        write(_example, Path(sys.argv[1]) / _name)
