"""The settings of a page service, one row for each key."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from bbcache.errors import ConfigError
from bbcache.serving.listening import DEFAULT_PORT, Address
from bbcache.setting_rows import (
    Kind,
    add_keys_to_docstring,
    check_settings,
    instance,
    integer,
    optional,
    seconds,
    setting,
)

__all__ = ["ADDRESSES", "DEFAULT_PORT", "Address", "PageServiceConfig"]


def _is_addresses(value: object) -> bool:
    several = (value,) if isinstance(value, Address) else value
    return isinstance(several, tuple) and all(isinstance(each, Address) for each in several)


ADDRESSES: Final = Kind("an Address, or a tuple of them", _is_addresses)


def _timeout(text: str, default_s: float) -> Any:
    return setting(seconds(), default_s, text)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageServiceConfig:
    """Settings of one service. Immutable, hence thread-safe.

    Raises:
        ConfigError: (a `ValueError`) for a bad value, by key, value and range.
    """

    listen: Address | tuple[Address, ...] = setting(
        ADDRESSES, Address("127.0.0.1", DEFAULT_PORT), "the addresses where clients connect"
    )
    max_connections: int = setting(
        integer(1, unit="clients"),
        1000,
        "clients that are logged in at once; one more takes the place of an idle client, or of "
        "a client whose tenant has more than its share",
    )
    max_pending_logins: int = setting(
        integer(1, unit="clients"),
        250,
        "clients besides that have not logged in yet; one more takes the place of the oldest",
    )
    max_fullbackup_size_bytes: int | None = setting(
        optional(integer(1, unit="bytes")),
        None,
        "size of all `fullbackup` archives together, from their first byte until the client has "
        "them",
        default_text="none: only the disk limits it",
    )
    handshake_timeout_s: float = _timeout("time from the connect to the end of the login", 10.0)
    idle_timeout_s: float = _timeout("time from one message to the end of the next", 600.0)
    send_timeout_s: float = _timeout("time that the client may take for each MiB", 60.0)
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
        if not self.addresses:
            raise ConfigError("listen has no address\nhint: Name one, such as 127.0.0.1:64000.")

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The addresses of `listen`, as a tuple."""
        return (self.listen,) if isinstance(self.listen, Address) else self.listen

    def check_exposure(
        self, *, has_tokens: bool, has_tls: bool, addresses: Iterable[Address] | None = None
    ) -> None:
        """Refuse to listen where strangers could connect, unless that was asked for.

        Args:
            has_tokens: whether clients need a token.
            has_tls: whether clients use TLS.
            addresses: where the service listens; None for `addresses`.

        Raises:
            ConfigError: the data would be open, or tokens would travel in clear text.
        """
        for address in self.addresses if addresses is None else addresses:
            if not address.is_loopback():
                self._check_exposed(address, has_tokens=has_tokens, has_tls=has_tls)

    def _check_exposed(self, address: Address, *, has_tokens: bool, has_tls: bool) -> None:
        if not has_tokens and not self.allow_unauthenticated:
            raise ConfigError(
                f"{address} is open to other machines, and no token is asked for\n"
                "hint: Name keys with --auth-keys, or say --allow-unauthenticated: anyone "
                "who can connect can then read every tenant's data."
            )
        if has_tokens and not has_tls and not self.allow_cleartext_tokens:
            raise ConfigError(
                f"{address} is open to other machines, and tokens would travel in clear text\n"
                "hint: Name a certificate with --tls-cert, or say --allow-cleartext-tokens: "
                "anyone on the network between can then take the tokens, and read the data."
            )


add_keys_to_docstring(PageServiceConfig)
