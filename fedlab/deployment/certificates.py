"""The certificates of a federation: an authority of its own, and the certificate of its server.

Every site is given the authority's certificate and accepts no server that cannot show a certificate signed by it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedlab.deployment.private import write_private

ALWAYS = ("localhost", "127.0.0.1", "superlink", "gateway")
"""Names that the server has on its own machine and among containers."""
SERVER_DAYS = 825
"""Longest life of a server certificate that common TLS libraries accept."""
AUTHORITY_DAYS = 3650
_EARLIER = timedelta(hours=1)  # clocks of other machines may be behind

Key = ec.EllipticCurvePrivateKey


def make_authority(certificate: Path, key: Path) -> None:
    """Write a new certificate authority.

    Args:
        certificate: file of the certificate, which all sites get.
        key: file of its key, which never leaves the organizer.

    Raises:
        FileExistsError: there is one already.
    """
    private = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "FedLab federation")])
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    signed = (
        _certificate(name, name, private, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(private, hashes.SHA384())
    )
    write_private(key, _pem(private))
    _write(certificate, signed)


def make_server(authority: Path, authority_key: Path, certificate: Path, key: Path, hosts: Sequence[str]) -> None:
    """Write a certificate of the server, signed by the federation's authority.

    Args:
        authority: certificate of the authority.
        authority_key: its key.
        certificate: file to write; an existing one is replaced.
        key: file of the server's key; an existing key is used again.
        hosts: names and addresses under which sites reach the server, besides `ALWAYS`.
    """
    issuer = _read(authority)
    signer = serialization.load_pem_private_key(authority_key.read_bytes(), None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{authority_key} is no key of an elliptic curve")
    if not key.is_file():
        write_private(key, _pem(ec.generate_private_key(ec.SECP256R1())))
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{key} is no key of an elliptic curve")
    names = list(dict.fromkeys([*ALWAYS, *hosts]))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "FedLab server")])
    signed = (
        _certificate(subject, issuer.subject, private, SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA384())
    )
    _write(certificate, signed)


def expiry(certificate: Path) -> datetime:
    """When a certificate expires, in UTC."""
    return _read(certificate).not_valid_after_utc


def names(certificate: Path) -> list[str]:
    """Names and addresses for which a server certificate is valid."""
    found = _read(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in found]


def make_node_key(private: Path, public: Path) -> None:
    """Write the pair of keys by which the SuperLink knows a node: P-384, in the format of OpenSSH.

    Raises:
        FileExistsError: there is such a pair already.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    kind = serialization.PrivateFormat.OpenSSH
    write_private(private, key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption()))
    text = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    public.write_bytes(text + b"\n")


def address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that a text is; None if it is a name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _general_name(text: str) -> x509.GeneralName:
    number = address(text)
    return x509.DNSName(text) if number is None else x509.IPAddress(number)


def _certificate(subject: x509.Name, issuer: x509.Name, key: Key, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now - _EARLIER + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _pem(key: Key) -> bytes:
    kind = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())


def _read(certificate: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificate.read_bytes())


def _write(path: Path, certificate: x509.Certificate) -> None:
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
