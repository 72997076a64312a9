"""The compose projects: what every container may do, see and be reached by. Nothing is started here."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedlab.config.yamltree import load_yaml
from fedlab.deployment.compose import Project, examples, federation, node, ray, text, write

DOCKER = Path(__file__).parents[2] / "docker"
SITES = {"berlin": "/srv/berlin", "lyon": None}
PROJECTS = {
    "federation": federation(SITES, server_data="/srv/public"),
    "organizer": federation({}, name="study"),
    "demonstration": federation({"one": None}, node_config={"one": 'partition-id=0 state-dir="/state"'}, gpus=True),
    "node": node("berlin", "study.example.org:8443", "/srv/berlin", gpus=True),
    "ray": ray(),
}


@pytest.fixture(params=PROJECTS)
def project(request: pytest.FixtureRequest) -> Project:
    return PROJECTS[request.param]


def _binds(service: Project) -> list[Project]:
    return [volume for volume in service["volumes"] if volume["type"] == "bind"]


def _variables(tree: Any) -> Iterator[str]:
    yield from re.findall(r"\$\{([A-Z_]+)", text(tree))


def test_no_container_has_more_rights_than_it_needs(project: Project) -> None:
    for name, service in project["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["init"], name
        assert service["mem_limit"].startswith("${FEDLAB_"), name
        assert service["user"] == "${FEDLAB_UID:-10001}:${FEDLAB_GID:-10001}", name
        assert "privileged" not in service, name
        assert "cap_add" not in service, name
        assert "network_mode" not in service, name


def test_all_but_the_driver_are_restarted_and_watched(project: Project) -> None:
    for name, service in project["services"].items():
        if name == "driver":
            assert service["profiles"] == ["driver"]
            assert service["restart"] == "no"
        else:
            assert service["restart"] == "unless-stopped", name
            assert service["healthcheck"]["test"][0] == "CMD", name


def test_what_is_mounted_from_the_host_must_exist_and_cannot_be_changed(project: Project) -> None:
    for name, service in project["services"].items():
        for bind in _binds(service):
            assert bind["bind"] == {"create_host_path": False}, name
            assert bind.get("read_only") or bind["target"] == "/project/runs", name
        named = [volume["source"] for volume in service["volumes"] if volume["type"] == "volume"]
        assert len(named) + len(_binds(service)) == len(service["volumes"]), name
        assert set(named) <= set(project["volumes"]), name
        assert set(service["networks"]) <= set(project["networks"]), name


def test_keys_are_files_and_each_goes_to_the_one_container_that_uses_it() -> None:
    services = PROJECTS["federation"]["services"]
    mounted = {name: {bind["source"] for bind in _binds(service)} for name, service in services.items()}
    assert {name for name, files in mounted.items() if "./certificates/server.key" in files} == {"superlink", "gateway"}
    assert {name for name, files in mounted.items() if "./keys/berlin" in files} == {"berlin-node"}
    assert {name for name, files in mounted.items() if "/srv/berlin" in files} == {"berlin-client"}
    assert {name for name, files in mounted.items() if "./nodes/berlin/node.yaml" in files} == {"berlin-client"}
    assert {name for name, files in mounted.items() if "/srv/public" in files} == {"server"}
    for files in mounted.values():
        assert not any(file.endswith(("ca.key", "certificates", "keys")) for file in files)
    for service in services.values():
        assert not re.search("key|secret|password|token", " ".join(service["environment"]), re.IGNORECASE)


def test_only_the_gateway_can_be_reached_from_other_machines(project: Project) -> None:
    published = {name: service["ports"] for name, service in project["services"].items() if "ports" in service}
    if "superlink" not in project["services"]:
        assert published == {}
        return
    assert published == {
        "superlink": ["127.0.0.1:${FEDLAB_CONTROL_PORT:-8000}:8000"],
        "gateway": ["${FEDLAB_PORT:-8443}:8443"],
    }


@pytest.mark.parametrize("name", ["federation", "demonstration", "node"])
def test_the_container_with_the_data_reaches_its_own_supernode_and_nothing_else(name: str) -> None:
    project = PROJECTS[name]
    clients = [service for service in project["services"] if service.endswith("-client")]
    assert clients
    for client in clients:
        site = client.removesuffix("-client")
        assert project["services"][client]["networks"] == [f"{site}-net"]
        assert project["networks"][f"{site}-net"] == {"internal": True}
        on_it = {who for who, service in project["services"].items() if f"{site}-net" in service["networks"]}
        assert on_it == {client, f"{site}-node"}
        supernode = project["services"][f"{site}-node"]["command"]
        assert supernode[supernode.index("--host") + 1] == "runtime", "it would serve the other sites' network as well"


def test_tls_and_authentication_of_nodes_are_on() -> None:
    services = PROJECTS["federation"]["services"]
    superlink, supernode = services["superlink"]["command"], services["berlin-node"]["command"]
    assert {"--enable-supernode-auth", "--ssl-certfile", "--ssl-keyfile", "--ssl-ca-certfile"} <= set(superlink)
    assert {"--auth-supernode-private-key", "--root-certificates"} <= set(supernode)
    outside = [services[name]["command"] for name in ("superlink", "server", "berlin-node", "lyon-node")]
    assert not any("--insecure" in command for command in outside)
    assert supernode[supernode.index("--superlink") + 1] == "gateway:8443"
    assert services["berlin-node"]["depends_on"] == {"gateway": {"condition": "service_healthy"}}


def test_a_node_is_told_where_its_file_or_its_partition_is() -> None:
    given = {name: PROJECTS[name]["services"] for name in ("federation", "demonstration")}
    assert given["federation"]["berlin-node"]["command"][-1] == 'node-file="/fedlab/node.yaml"'
    assert given["demonstration"]["one-node"]["command"][-1] == 'partition-id=0 state-dir="/state"'
    assert _binds(given["demonstration"]["one-client"]) == []


def test_the_server_is_given_its_own_data_only_where_it_has_some() -> None:
    with_data, without = (PROJECTS[name]["services"]["server"] for name in ("federation", "organizer"))
    assert with_data["environment"]["FEDLAB_SERVER"] == "/fedlab/server.yaml"
    assert "FEDLAB_SERVER" not in without["environment"]
    assert with_data["environment"]["FEDLAB_RUNS"] == without["environment"]["FEDLAB_RUNS"] == "/runs"
    assert {"type": "volume", "source": "runs", "target": "/runs"} in without["volumes"]


def test_gpus_go_to_the_containers_that_compute() -> None:
    with_gpus = {name for name, service in PROJECTS["demonstration"]["services"].items() if "deploy" in service}
    assert with_gpus == {"server", "one-client"}
    assert "deploy" not in PROJECTS["federation"]["services"]["server"]


def test_a_site_may_have_a_name_that_no_project_may_have() -> None:
    assert node("St.Gallen", "a:1")["name"] == "fedlab-st-gallen"


def test_no_service_of_a_second_site_shadows_one_of_the_federation() -> None:
    services = federation({"core": None, "fleet": None, "superlink": None, "server": None})
    assert len(services["services"]) == 3 + 2 * 4
    assert {"core", "fleet", "core-net", "fleet-net"} <= set(services["networks"])


@pytest.mark.parametrize("name", examples())
def test_the_files_in_the_repository_are_what_is_written(name: str, tmp_path: Path) -> None:
    write(examples()[name], tmp_path / name)
    assert (DOCKER / name).read_text() == (tmp_path / name).read_text(), "run `make compose`"


def test_a_project_survives_the_way_through_yaml(project: Project) -> None:
    assert load_yaml(text(project)) == project


def test_the_example_of_env_names_all_variables_and_their_defaults() -> None:
    shown = dict(
        line.split("=", 1) for line in (DOCKER / ".env.example").read_text().splitlines() if line[:1].isalpha()
    )
    assert set(shown) == set(_variables(examples()))
    for name, default in re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", text(examples())):
        assert shown[name] == default


@pytest.mark.parametrize("name", examples())
def test_compose_accepts_the_files(name: str) -> None:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("no docker compose on this machine")
    command = ["docker", "compose", "--env-file", str(DOCKER / ".env.example"), "-f", str(DOCKER / name)]
    done = subprocess.run([*command, "--profile", "*", "config", "-q"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
