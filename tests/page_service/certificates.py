"""Certificates for the tests, made new each time."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from bbcache.page_service.auth.tls import Certificate

if TYPE_CHECKING:
    from pathlib import Path


class CertificateFiles(NamedTuple):
    """A certificate that is its own root, and its key."""

    cert: Path
    key: Path


def write_certificate(directory: Path, *, passphrase: bytes | None = None) -> CertificateFiles:
    """Write a new one for localhost and its address, in the place of what is there."""
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    hosts = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, None)
    )
    files = CertificateFiles(directory / "server.crt", directory / "server.key")
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    files.cert.write_bytes(cert.public_bytes(Encoding.PEM))
    return files


def certificate(directory: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts of a server with a certificate for loopback, and of a client that trusts it."""
    files = write_certificate(directory)
    return Certificate(*files).context, ssl.create_default_context(cafile=str(files.cert))
