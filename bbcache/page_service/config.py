"""The settings of a page service: frozen, validated."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import Final

from bbcache.errors import ConfigError

DEFAULT_PORT: Final = 64000  # Neon's
_MAX_PORT: Final = 65535
_LEAST_MESSAGE_SIZE_BYTES: Final = 1024
_MOST_S: Final = 1e6


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen.

    Attributes:
        host: a name or an address.
        port: 0 for any that is free.
    """

    host: str
    port: int

    @classmethod
    def from_str(cls, text: str, default_port: int = DEFAULT_PORT) -> Address:
        """Parse ``HOST``, ``HOST:PORT``, ``:PORT`` (of loopback) or ``[IPV6]:PORT``.

        Raises:
            ConfigError: for anything else.
        """
        bracketed, bracket, rest = text.partition("]")
        host, colon, port = (bracketed[1:], rest[:1], rest[1:]) if bracket else text.rpartition(":")
        if not bracket and not colon:
            host, port = text, ""
        is_bracketed = bool(bracket) and text.startswith("[") and (not rest or colon == ":")
        is_plain = not bracket and "[" not in host and ":" not in host
        number = (port or str(default_port)) if port or not colon else ""
        is_number = number.isascii() and number.isdecimal()
        if not (is_bracketed or is_plain) or not is_number or int(number) > _MAX_PORT:
            raise ConfigError(f"{text!r} is no address such as 127.0.0.1:{default_port}")
        return cls(host or "127.0.0.1", int(number))

    def resolve(self) -> tuple[socket.AddressFamily, str]:
        """The first family and numeric address of the host.

        Raises:
            ConfigError: the host has none.
        """
        try:
            found = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"{self.host!r} has no address: {error}") from error
        family, _, _, _, address = found[0]
        return family, str(address[0])

    def is_loopback(self) -> bool:
        """Whether nobody outside of this machine can reach it."""
        _, numeric = self.resolve()
        return ipaddress.ip_address(numeric.partition("%")[0]).is_loopback

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PageServiceConfig:
    """Settings of one service. Immutable, hence thread-safe.

    Attributes:
        listen: where.
        max_connections: clients at once. One more makes the one that has been silent
            longest go, first of all one that has not proved who it is.
        max_message_size_bytes: the longest message of a client, a token included.
        handshake_timeout_s: from the connect to the first command.
        message_timeout_s: from the first byte of a message to its last.
        idle_timeout_s: from one message to the next.
        send_timeout_s: for the client to take a piece of 1 MiB.
        wait_lsn_timeout_s: for the timeline to reach the LSN asked for; Neon's default.
        allow_unauthenticated: whether to listen beyond loopback without tokens.
        allow_cleartext_tokens: whether to take tokens beyond loopback without TLS.

    Raises:
        ConfigError: (a `ValueError`) for a bad value, by name, value and range.
    """

    listen: Address = Address("127.0.0.1", DEFAULT_PORT)
    max_connections: int = 1000
    max_message_size_bytes: int = 64 * 1024
    handshake_timeout_s: float = 10.0
    message_timeout_s: float = 10.0
    idle_timeout_s: float = 600.0
    send_timeout_s: float = 60.0
    wait_lsn_timeout_s: float = 300.0
    allow_unauthenticated: bool = False
    allow_cleartext_tokens: bool = False

    def __post_init__(self) -> None:
        _check_int("max_connections", self.max_connections, 1)
        _check_int("max_message_size_bytes", self.max_message_size_bytes, _LEAST_MESSAGE_SIZE_BYTES)
        for key in ("handshake", "message", "idle", "send", "wait_lsn"):
            name = f"{key}_timeout_s"
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value <= _MOST_S:
                raise ConfigError(
                    f"{name} is {value!r}, but must be a number of seconds above 0, "
                    f"at most {_MOST_S:g}"
                )

    def check_exposure(self, *, has_tokens: bool, has_tls: bool) -> None:
        """Refuse to listen where strangers could come, unless that was asked for.

        Args:
            has_tokens: whether clients must prove who they are.
            has_tls: whether TLS is spoken.

        Raises:
            ConfigError: it would be open, or tokens would travel in clear.
        """
        if self.listen.is_loopback():
            return
        if not has_tokens and not self.allow_unauthenticated:
            raise ConfigError(
                f"{self.listen} is open to other machines, and no token is asked for\n"
                "hint: Name keys with --auth-keys, or say --allow-unauthenticated: everyone "
                "who can connect can then read every tenant's data."
            )
        if has_tokens and not has_tls and not self.allow_cleartext_tokens:
            raise ConfigError(
                f"{self.listen} is open to other machines, and tokens would travel in clear\n"
                "hint: Name a certificate with --tls-cert, or say --allow-cleartext-tokens: "
                "everyone on the way can then take the tokens, and read the data."
            )


def _check_int(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} is {value!r}, but must be an int of at least {least}")
