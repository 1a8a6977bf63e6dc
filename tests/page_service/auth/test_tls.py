"""A certificate from files: which ones are refused, and reading it again."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

import pytest
from page_service.certificates import write_certificate
from support.cache_helpers import DEADLINE_S, Worker

from bbcache.errors import ConfigError
from bbcache.page_service.auth.tls import Certificate

if TYPE_CHECKING:
    from pathlib import Path


def shake_hands(
    server: ssl.SSLContext, client: ssl.SSLContext, host: str = "localhost"
) -> str | None:
    """The version that two contexts agree on."""
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.settimeout(DEADLINE_S)

    def accept() -> None:
        try:
            server.wrap_socket(ours, server_side=True).close()
        except OSError:
            ours.close()

    worker = Worker(accept)
    try:
        with client.wrap_socket(theirs, server_hostname=host) as sock:
            return sock.version()
    finally:
        theirs.close()
        worker.result()


def trusting(cert: Path) -> ssl.SSLContext:
    """The context of a client that trusts a certificate."""
    return ssl.create_default_context(cafile=str(cert))


def test_a_certificate_in_two_files_or_one(tmp_path: Path) -> None:
    """Either is read."""
    files = write_certificate(tmp_path)
    both = tmp_path / "both.pem"
    both.write_bytes(files.cert.read_bytes() + files.key.read_bytes())
    for certificate in (Certificate(*files), Certificate(both)):
        assert shake_hands(certificate.context, trusting(files.cert)) == "TLSv1.3"


def test_old_versions_are_refused(tmp_path: Path) -> None:
    """1.2 is the oldest."""
    files = write_certificate(tmp_path)
    context = Certificate(*files).context
    client = trusting(files.cert)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert shake_hands(context, client) == "TLSv1.2"
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_reading_it_anew(tmp_path: Path) -> None:
    """New connections get the new one; a broken file changes nothing."""
    files = write_certificate(tmp_path)
    certificate = Certificate(*files)
    old = trusting(files.cert)
    files.cert.write_bytes(b"broken")
    with pytest.raises(ConfigError):
        certificate.reload()
    assert shake_hands(certificate.context, old)
    write_certificate(tmp_path)
    certificate.reload()
    assert shake_hands(certificate.context, trusting(files.cert))
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(certificate.context, old)


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    """A key of another certificate, no PEM, a passphrase, no file: each is refused by name."""
    files = write_certificate(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    text = rf"^cannot use {files.cert} and .* as certificate and key: .*\nhint: Both are PEM"
    with pytest.raises(ConfigError, match=text):
        Certificate(files.cert, write_certificate(other).key)
    with pytest.raises(ConfigError, match=text):
        Certificate(files.cert, write_certificate(tmp_path, passphrase=b"secret").key)
    with pytest.raises(ConfigError, match=r"^cannot use .*server.key as certificate and key: "):
        Certificate(files.key)
    with pytest.raises(ConfigError, match=r"^cannot read .*: No such file"):
        Certificate(tmp_path / "nothing")
