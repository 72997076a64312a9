"""Certificates and keys: whom they convince, and who may read them."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedlab.deployment import certificates
from fedlab.deployment.private import check_private, write_private
from fedlab.errors import ConfigError


@pytest.fixture
def made(tmp_path: Path) -> Path:
    authority(tmp_path)
    server(tmp_path, "fl.lab.org", "10.1.2.3", "2001:db8::1")
    return tmp_path


def authority(folder: Path) -> None:
    certificates.make_authority(folder / "ca.crt", folder / "ca.key")


def server(folder: Path, *hosts: str) -> None:
    files = [folder / name for name in ("ca.crt", "ca.key", "server.pem", "server.key")]
    certificates.make_server(*files, hosts)  # type: ignore[call-arg,misc,arg-type]


def accepted(trusted: Path, folder: Path, host: str) -> bool:
    """Whether a client that trusts an authority accepts a server under a name."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / "server.pem", folder / "server.key")
    asking = ssl.create_default_context(cafile=str(trusted))
    asking.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            serving.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        asking.wrap_socket(ours, server_hostname=host).close()
        return True
    except ssl.SSLCertVerificationError:
        return False
    finally:
        ours.close()
        thread.join()


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "superlink", "gateway", "fl.lab.org", "10.1.2.3", "2001:db8::1"]
)
def test_the_server_is_accepted_under_each_of_its_names(made: Path, host: str) -> None:
    assert accepted(made / "ca.crt", made, host)


def test_it_is_accepted_under_no_other_name_and_by_nobody_elses_authority(made: Path, tmp_path: Path) -> None:
    assert not accepted(made / "ca.crt", made, "other.lab.org")
    (tmp_path / "other").mkdir()
    authority(tmp_path / "other")
    assert not accepted(tmp_path / "other" / "ca.crt", made, "localhost")


def test_it_lives_as_long_as_tls_libraries_accept(made: Path) -> None:
    left = certificates.expiry(made / "server.pem") - datetime.now(UTC)
    assert timedelta(days=824) < left < timedelta(days=825)
    assert certificates.names(made / "server.pem")[:2] == ["localhost", "127.0.0.1"]


def test_a_new_certificate_has_the_old_key(made: Path) -> None:
    key, certificate = (made / "server.key").read_bytes(), (made / "server.pem").read_bytes()
    server(made, "new.lab.org")
    assert (made / "server.key").read_bytes() == key
    assert (made / "server.pem").read_bytes() != certificate
    assert accepted(made / "ca.crt", made, "new.lab.org")


def test_keys_of_nodes_are_what_flower_reads(tmp_path: Path) -> None:
    certificates.make_node_key(tmp_path / "berlin", tmp_path / "berlin.pub")
    private = load_ssh_private_key((tmp_path / "berlin").read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(private.curve, ec.SECP384R1)
    public = load_ssh_public_key((tmp_path / "berlin.pub").read_bytes())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert public.public_numbers() == private.public_key().public_numbers()


def test_keys_are_for_their_owner_only_and_never_overwritten(made: Path) -> None:
    before = os.umask(0)  # the most careless setting
    try:
        certificates.make_node_key(made / "node", made / "node.pub")
    finally:
        os.umask(before)
    for name in ("ca.key", "server.key", "node"):
        assert stat.S_IMODE((made / name).stat().st_mode) == 0o600
        check_private(made / name)
        with pytest.raises(FileExistsError):
            write_private(made / name, "other")
    with pytest.raises(FileExistsError):
        authority(made)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused(made: Path, mode: int) -> None:
    (made / "ca.key").chmod(mode)
    with pytest.raises(ConfigError, match="only its owner can read"):
        check_private(made / "ca.key")
    with pytest.raises(ConfigError, match="a key file"):
        check_private(made / "none.key")
