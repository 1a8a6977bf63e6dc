"""TLS for a service: its certificate, read from files and read again when they change."""

from __future__ import annotations

import math
import ssl
from pathlib import Path

from bbcache.arguments import check_passable
from bbcache.errors import ConfigError
from bbcache.page_service.transport import ALPN


class Certificate:
    """A certificate and its key, and a context that speaks TLS with them. Thread-safe.

    TLS 1.2 and later; clients are not asked for certificates.

    Args:
        cert_path: PEM: the server's certificate, then the intermediate ones.
        key_path: PEM, without a passphrase; None if it is in the same file.

    Attributes:
        context: for new connections. `reload` makes another one, since a context of OpenSSL
            must not change while other threads use it.
        expires_at_s: when the certificate expires, in seconds since 1970; NaN without
            ``bbcache[serve]``.

    Raises:
        ConfigError: the files cannot be read, or the key is not the certificate's.
    """

    def __init__(self, cert_path: Path, key_path: Path | None = None) -> None:
        for path in filter(None, (cert_path, key_path)):
            check_passable("the path of the certificate or key", path, ConfigError)
        self._cert_path = cert_path
        self._key_path = key_path
        self.context = self._load()

    def reload(self) -> None:
        """Read the files again, for new connections.

        Raises:
            ConfigError: as at the start; the old certificate stays in use.
        """
        self.context = self._load()

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols([ALPN])  # of a client that begins with TLS
        paths = f"{self._cert_path}" + (f" and {self._key_path}" if self._key_path else "")
        try:
            # Without it, OpenSSL would ask for a passphrase on the terminal.
            context.load_cert_chain(self._cert_path, self._key_path, password=lambda: "")
        except ssl.SSLError as error:
            raise ConfigError(
                f"cannot use {paths} as certificate and key: {error.reason or error}\n"
                "hint: Both are PEM; the key must be the certificate's, and have no passphrase."
            ) from error
        except OSError as error:
            raise ConfigError(f"cannot read {paths}: {error.strerror}") from error
        self.expires_at_s = _expiry_s(self._cert_path)
        return context


def _expiry_s(cert_path: Path) -> float:
    """Read when a certificate expires; NaN without the package that reads it."""
    try:
        from cryptography.x509 import load_pem_x509_certificate  # noqa: PLC0415 - an extra
    except ImportError:
        return math.nan
    return load_pem_x509_certificate(cert_path.read_bytes()).not_valid_after_utc.timestamp()
