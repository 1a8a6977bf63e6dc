"""The settings of an HTTP service, one row for each key."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Final

from bbcache.errors import ConfigError
from bbcache.page_service.config import Address
from bbcache.setting_rows import (
    add_keys_to_docstring,
    check_settings,
    instance,
    integer,
    seconds,
    setting,
)

DEFAULT_PORT: Final = 9898  # that of the HTTP API of Neon's pageserver
DEFAULT_ADDRESS: Final = Address("127.0.0.1", DEFAULT_PORT)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpConfig:
    """Settings of one service. Immutable, hence thread-safe.

    Raises:
        ConfigError: (a `ValueError`) for a bad value, by key, value and range; and where
            other machines could connect without `allow_unauthenticated`.
    """

    listen: Address = setting(
        instance("an Address", Address), DEFAULT_ADDRESS, "the address that is served"
    )
    max_connections: int = setting(
        integer(1, unit="requests"), 16, "requests at once, each of which has a thread"
    )
    max_request_size_bytes: int = setting(
        integer(1, unit="bytes"), 16 * 1024, "size of one request, the body included"
    )
    timeout_s: float = setting(
        seconds(1e-9, 1e6),
        5.0,
        "time for a client to send its request, and again to take the answer",
    )
    allow_unauthenticated: bool = setting(
        instance("a bool", bool),
        default=False,
        text="listen beyond loopback: HTTP asks for no token",
    )
    is_loopback: bool = field(init=False)  # whether only this machine can connect; found out once

    def __post_init__(self) -> None:
        check_settings(self)
        object.__setattr__(self, "is_loopback", self.listen.is_loopback())
        if not self.allow_unauthenticated and not self.is_loopback:
            raise ConfigError(
                f"{self.listen} is open to other machines, and HTTP asks nobody who he is\n"
                "hint: Say --allow-unauthenticated-http: everyone who can connect can then see "
                "the status, the metrics, and which tenants and timelines there are."
            )

    def is_welcome(self, host: str | None) -> bool:
        """Whether a request for this Host is taken.

        On loopback only for loopback's own names: a web site whose name has been pointed
        at this machine must not read the page by the browser of someone on it.
        """
        if host is None or not self.is_loopback:
            return True
        name = host.rpartition("]")[0].lstrip("[") if "]" in host else host.partition(":")[0]
        try:
            return name.lower() == "localhost" or ipaddress.ip_address(name).is_loopback
        except ValueError:
            return name == self.listen.host


add_keys_to_docstring(HttpConfig)
