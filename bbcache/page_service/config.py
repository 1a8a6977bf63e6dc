"""The settings of a page service, one row for each key."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import Any, Final

from bbcache.errors import ConfigError
from bbcache.setting_rows import (
    add_keys_to_docstring,
    check_settings,
    instance,
    integer,
    seconds,
    setting,
)

DEFAULT_PORT: Final = 64000  # Neon's
_MAX_PORT: Final = 65535
_LEAST_MESSAGE_SIZE_BYTES: Final = 1024


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


def _timeout(text: str, default_s: float) -> Any:
    return setting(seconds(1e-9, 1e6), default_s, text)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageServiceConfig:
    """Settings of one service. Immutable, hence thread-safe.

    Raises:
        ConfigError: (a `ValueError`) for a bad value, by key, value and range.
    """

    listen: Address = setting(
        instance("an Address", Address),
        Address("127.0.0.1", DEFAULT_PORT),
        "the address where clients connect",
    )
    max_connections: int = setting(
        integer(1, unit="clients"),
        1000,
        "clients at once; one more closes the connection that has been silent longest, first of "
        "all one without a valid token yet",
    )
    max_message_size_bytes: int = setting(
        integer(_LEAST_MESSAGE_SIZE_BYTES, unit="bytes"),
        64 * 1024,
        "size of one message of a client, a token included",
    )
    handshake_timeout_s: float = _timeout("time from the connect to the first command", 10.0)
    message_timeout_s: float = _timeout("time from the first byte of a message to its last", 10.0)
    idle_timeout_s: float = _timeout("time from one message to the next", 600.0)
    send_timeout_s: float = _timeout("time for the client to take a piece of 1 MiB", 60.0)
    wait_lsn_timeout_s: float = _timeout("time for the timeline to reach the LSN", 300.0)
    allow_unauthenticated: bool = setting(
        instance("a bool", bool), default=False, text="listen beyond loopback without tokens"
    )
    allow_cleartext_tokens: bool = setting(
        instance("a bool", bool),
        default=False,
        text="listen beyond loopback with tokens, without TLS",
    )

    def __post_init__(self) -> None:
        check_settings(self)

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


add_keys_to_docstring(PageServiceConfig)
