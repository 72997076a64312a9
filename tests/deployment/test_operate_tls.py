"""Mistakes in the encryption are told from a server that is not there."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedlab.deployment import certificates, flower
from fedlab.deployment.flower import DeploymentError
from fedlab.deployment.operate import is_healthy, tls_problem
from fedlab.deployment.project import Folder


@contextmanager
def listening(context: ssl.SSLContext | None) -> Iterator[int]:
    """A server that takes connections, encrypted or plain, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                    if context is None:
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                        connection.close()
                    else:
                        context.wrap_socket(connection, server_side=True).close()
                except ssl.SSLError:
                    continue
                except OSError:
                    return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)  # closing alone would let the waiting thread take one connection more
        thread.join()


def made(path: Path) -> Folder:
    folder = Folder(path)
    folder.certificates.mkdir(parents=True)
    certificates.make_authority(folder.authority, folder.authority_key)
    certificates.make_server(
        folder.authority, folder.authority_key, folder.server_certificate, folder.server_key, ("127.0.0.1",)
    )
    return folder


def served(folder: Folder) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder.server_certificate, folder.server_key)
    return context


def test_a_certificate_of_another_authority_and_a_plain_server(tmp_path: Path) -> None:
    ours, theirs = made(tmp_path / "ours"), made(tmp_path / "theirs")
    with listening(served(ours)) as port:
        assert tls_problem(ours, port) == ""
    with listening(served(theirs)) as port:
        assert not is_healthy(ours, port)
        assert "the encrypted connection (TLS) fails" in tls_problem(ours, port)
        assert "fedlab deploy renew" in tls_problem(ours, port)
    with listening(None) as port:
        assert "the encrypted connection (TLS) fails" in tls_problem(ours, port)
    assert tls_problem(ours, port) == "", "nothing listens there any more"


@pytest.mark.parametrize(
    ("said", "tls"),
    [
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", True),
        ("Ssl handshake failed: SSL_ERROR_SSL", True),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number", True),
        ("Connection refused", False),
        ("the class titles are unknown", False),
    ],
)
def test_words_of_flower_that_mean_the_encryption(said: str, tls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Done:
        stdout, stderr = '{"success": false, "error-message": "%s"}' % said, ""  # noqa: UP031  braces of JSON

    monkeypatch.setattr(flower.subprocess, "run", lambda *arguments, **options: Done)
    with pytest.raises(DeploymentError) as caught:
        flower.call("ls", "loop")
    assert ("mistake in the encryption (TLS)" in str(caught.value)) == tls
