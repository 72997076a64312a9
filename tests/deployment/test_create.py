"""What `fedlab deploy init`, `renew` and `remove` write, keep and refuse."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedlab.config import Config, parse
from fedlab.deployment import certificates
from fedlab.deployment.create import Asked, init, remove, renew
from fedlab.deployment.handover import read_hand_over
from fedlab.deployment.processes import programs, remember
from fedlab.deployment.project import Folder, check_host, find
from fedlab.errors import FedLabError

DEMONSTRATION = Asked(nodes=2, form="processes", simulate_partition=True)
HERE = Asked(form="processes")
ELSEWHERE = Asked(form="processes", hosts=("fl.lab.org", "10.0.0.7"))


def divided() -> Config:
    source = {"name": "digits", "domains": ["synth"], "train_per_domain": 20, "test_per_domain": 10}
    return parse(
        Config, {"method": "supervised", "data": {"source": source, "partition": [{"name": "iid", "clients": 2}]}}
    )


def sites(*names: str, listed: bool = False, **more: Any) -> Config:
    sources = {name: {"name": "folder", "path": f"/data/{name}", "size": 16} for name in names}
    source = {"name": "sites", "sites": list(names) if listed else sources, "classes": ["cat", "dog"], **more}
    return parse(Config, {"method": "supervised", "data": {"source": source, "partition": ["site"]}})


def content(folder: Folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder.path)): path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def test_a_demonstration(tmp_path: Path) -> None:
    folder, new = init(divided(), tmp_path / "made", DEMONSTRATION)
    assert new == ["node-0", "node-1"]
    settings = folder.federation()
    assert settings.simulate_partition
    assert settings.local
    assert settings.address == "127.0.0.1:8443"
    assert not any(settings.sites.values())
    remember(folder, {"node-0": "1", "node-1": "2"})
    nodes = [program for program in programs(folder) if program.name.startswith("node-")]
    assert [node.command[-1] for node in nodes] == [
        f'partition-id={client} state-dir="{folder.state / "nodes" / f"node-{client}"}"' for client in (0, 1)
    ]


def test_private_files_are_private(tmp_path: Path) -> None:
    folder, _ = init(sites("berlin", "lyon"), tmp_path / "made", ELSEWHERE)
    private = {"certificates/ca.key", "certificates/server.key", "keys/berlin", "keys/lyon"}
    private |= {"hand-over/berlin.fedlab", "hand-over/lyon.fedlab"}
    for name in private:
        assert stat.S_IMODE((folder.path / name).stat().st_mode) == 0o600, name
    for name in (".", "certificates", "keys", "hand-over"):
        assert stat.S_IMODE((folder.path / name).stat().st_mode) == 0o700, name
    held = [name for name, text in content(folder).items() if b"PRIVATE KEY" in text]
    assert set(held) == private


def test_nodes_on_this_machine_have_the_data_of_the_configuration(tmp_path: Path) -> None:
    folder, _ = init(sites("berlin", "lyon"), tmp_path / "made", HERE)
    assert yaml.safe_load(folder.node_file("lyon").read_text()) == {
        "site": "lyon",
        "data": {"name": "folder", "path": "/data/lyon", "size": 16},
        "state": str(folder.state / "nodes" / "lyon"),
    }
    assert not list((folder.path / "hand-over").iterdir())
    assert [program.name for program in programs(folder)] == ["superlink", "gateway"]  # the others are not known yet
    remember(folder, {"lyon": "1"})
    assert [program.name for program in programs(folder)] == ["superlink", "gateway", "node-lyon"]
    assert programs(folder)[-1].command[-1] == f'node-file="{folder.node_file("lyon")}"'


def test_there_is_no_way_without_tls_and_keys_of_nodes(tmp_path: Path) -> None:
    folder, _ = init(sites("berlin"), tmp_path / "made", HERE)
    remember(folder, {"berlin": "1"})
    superlink, gateway, node = programs(folder)
    for program in (superlink, gateway, node):
        assert "--insecure" not in program.command
    assert {"--enable-supernode-auth", "--ssl-certfile", "--ssl-keyfile"} <= set(superlink.command)
    assert superlink.command[1:3] == ("--host", "127.0.0.1")  # others reach the gateway only
    assert {"--root-certificates", "--auth-supernode-private-key"} <= set(node.command)
    assert node.command[node.command.index("--superlink") + 1] == "127.0.0.1:8443"
    assert gateway.command[gateway.command.index("--superlink") + 1] == "127.0.0.1:8444"


@pytest.mark.parametrize("listed", [True, False])
def test_sites_elsewhere_get_one_file_each(tmp_path: Path, listed: bool) -> None:
    folder, _ = init(
        sites("berlin", "lyon", listed=listed, columns={"image": [3, 16, 16]}), tmp_path / "made", ELSEWHERE
    )
    given = read_hand_over(folder.hand_over("lyon"))
    assert (given.site, given.superlink) == ("lyon", "fl.lab.org:8443")
    assert given.key.encode() == folder.key("lyon").read_bytes()
    assert given.ca.encode() == folder.authority.read_bytes()
    assert given.agreed == {"classes": ["cat", "dog"], "columns": {"image": [3, 16, 16]}}
    assert given.data["name"] == "folder"
    assert [program.name for program in programs(folder)] == ["superlink", "gateway"]
    gateway = programs(folder)[1].command
    assert gateway[gateway.index("--host") + 1] == "0.0.0.0"
    assert {"fl.lab.org", "10.0.0.7"} <= set(certificates.names(folder.server_certificate))
    text = folder.hand_over("lyon").read_bytes()
    assert folder.authority_key.read_bytes() not in text
    assert folder.key("berlin").read_bytes() not in text


def test_a_second_init_adds_sites_and_touches_nothing_else(tmp_path: Path) -> None:
    folder, _ = init(sites("berlin"), tmp_path / "made", HERE)
    before = content(folder)
    _, new = init(sites("berlin", "lyon"), folder.path, HERE)
    assert new == ["lyon"]
    after = content(folder)
    assert {name for name in before if before[name] != after[name]} == {"deployment.yaml"}
    assert set(after) - set(before) == {"keys/lyon", "keys/lyon.pub", "nodes/lyon/node.yaml"}
    assert list(folder.federation().sites) == ["berlin", "lyon"]
    _, new = init(sites("berlin", "lyon"), folder.path, Asked())
    assert new == []
    assert content(folder) == after


def test_sets_of_the_server_get_a_file(tmp_path: Path) -> None:
    held = {"public": {"name": "folder", "path": "/data/public"}}
    folder, _ = init(sites("berlin", server=held), tmp_path / "made", HERE)
    assert yaml.safe_load(folder.server_file.read_text()) == {"data": held}
    assert programs(folder)[0].environment["FEDLAB_SERVER"] == str(folder.server_file)


def test_a_certificate_is_renewed_for_further_names(tmp_path: Path) -> None:
    folder, _ = init(sites("berlin", listed=True), tmp_path / "made", ELSEWHERE)
    before = content(folder)
    renew(folder, ["new.lab.org"])
    after = content(folder)
    assert {name for name in before if before[name] != after[name]} == {"deployment.yaml", "certificates/server.pem"}
    assert "new.lab.org" in certificates.names(folder.server_certificate)
    assert folder.federation().hosts == ("fl.lab.org", "10.0.0.7", "new.lab.org")
    with pytest.raises(FedLabError, match="host"):
        renew(folder, ["http://x"])


def test_a_site_is_removed_with_its_keys(tmp_path: Path) -> None:
    folder, _ = init(sites("berlin", "lyon"), tmp_path / "made", HERE)
    remove(folder, "lyon")
    assert list(folder.federation().sites) == ["berlin"]
    assert not [name for name in content(folder) if "lyon" in name]
    with pytest.raises(FedLabError, match="not the only site"):
        remove(folder, "berlin")
    with pytest.raises(FedLabError, match=r"SITE = 'berln'(.|\n)*did you mean 'berlin'"):
        remove(folder, "berln")


@pytest.mark.parametrize(
    ("config", "asked", "told"),
    [
        (divided(), Asked(), "data.source = 'digits'(.|\n)*--simulate-partition"),
        (divided(), Asked(simulate_partition=True), "--nodes"),
        (sites("a"), Asked(simulate_partition=True), "--simulate-partition = True(.|\n)*a source that is divided"),
        (sites("a"), Asked(nodes=3), "--nodes = 3(.|\n)*lists 1 sites"),
        (sites("a"), Asked(nodes=3, sites=("a",)), "either --site or --nodes"),
        (sites("berlin"), Asked(sites=("berln",)), "--site = 'berln'(.|\n)*did you mean 'berlin'"),
        (sites("berlin"), Asked(sites=("../x",)), "--site = '../x'(.|\n)*letters, digits"),
        (sites("a", "b", listed=True), Asked(), "data.source.sites.a(.|\n)*data.source.sites.b(.|\n)*--host"),
        (sites("a"), Asked(hosts=("https://x", "lab.org:99")), "--host = 'https://x'(.|\n)*--host = 'lab.org:99'"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_written(
    tmp_path: Path, config: Config, asked: Asked, told: str
) -> None:
    with pytest.raises(FedLabError, match=told):
        init(config, tmp_path / "made", asked)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (Asked(form="containers"), "--processes or --containers = 'containers'(.|\n)*processes, as this folder"),
        (Asked(port=99), "--port = 99(.|\n)*8443"),
        (Asked(hosts=("x.org",)), "--host = 'x.org'(.|\n)*fedlab deploy renew"),
    ],
)
def test_a_folder_stays_what_it_is(tmp_path: Path, asked: Asked, told: str) -> None:
    folder, _ = init(sites("a"), tmp_path / "made", HERE)
    before = content(folder)
    with pytest.raises(FedLabError, match=told):
        init(sites("a"), folder.path, asked)
    assert content(folder) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("a year of work")
    with pytest.raises(FedLabError, match="an empty folder"):
        init(sites("a"), tmp_path, HERE)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("host", ["lab.org", "a", "fl-1.lab.org", "10.0.0.1", "2001:db8::1", "localhost"])
def test_hosts(host: str) -> None:
    check_host(host)


@pytest.mark.parametrize(
    "host", ["", "10.0.0.300", "1.2", "a b", "-a.org", "a_b.org", "x/y", "[::1]", "lab.org:8443", "a" * 300]
)
def test_no_hosts(host: str) -> None:
    with pytest.raises(FedLabError, match="the name or IP address of a host"):
        check_host(host)


def test_commands_find_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FedLabError, match="fedlab deploy init"):
        find(None)
    folder, _ = init(sites("a"), tmp_path / "deployment", HERE)
    assert find(None) == folder
    monkeypatch.chdir(folder.path)
    assert find(None) == folder
    with pytest.raises(FedLabError, match="--folder"):
        find(tmp_path)


def test_files_of_assets_go_to_the_nodes_and_the_server_that_run_here(tmp_path: Path) -> None:
    assets = {"uni": "/weights/uni", "conch": "/weights/conch"}
    config = sites("berlin", "lyon").with_overrides({"data.assets": assets, "data.server_holds": ["conch"]})
    folder, _ = init(config, tmp_path / "here", HERE)
    assert yaml.safe_load(folder.node_file("lyon").read_text())["assets"] == assets
    assert yaml.safe_load(folder.server_file.read_text())["assets"] == assets
    folder, _ = init(config, tmp_path / "elsewhere", ELSEWHERE)
    assert yaml.safe_load(folder.server_file.read_text())["assets"] == {"conch": "/weights/conch"}
    assert "/weights" not in folder.hand_over("lyon").read_text()
