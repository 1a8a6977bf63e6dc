"""The settings of an HTTP service, one row for each key."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Final

from bbcache.errors import ConfigError
from bbcache.page_service.config import ADDRESSES, Address
from bbcache.setting_rows import (
    add_keys_to_docstring,
    check_settings,
    instance,
    integer,
    seconds,
    setting,
)

_HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:@/]*))(?::[0-9]*)?")
DEFAULT_PORT: Final = 9898  # that of the HTTP API of Neon's pageserver
DEFAULT_ADDRESS: Final = Address("127.0.0.1", DEFAULT_PORT)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpConfig:
    """Settings of one service. Immutable, hence thread-safe.

    Raises:
        ConfigError: (a `ValueError`) for a bad value, by key, value and range; and where
            other machines could connect without `allow_unauthenticated`.
    """

    listen: Address | tuple[Address, ...] = setting(
        ADDRESSES, DEFAULT_ADDRESS, "the addresses that are served"
    )
    max_connections: int = setting(
        integer(1, unit="requests"), 64, "requests at once; one more cuts off the oldest"
    )
    max_request_size_bytes: int = setting(
        integer(1, unit="bytes"), 16 * 1024, "size of one request, the body included"
    )
    timeout_s: float = setting(
        seconds(),
        5.0,
        "time for a client to send its request, and again to take the answer",
    )
    allow_unauthenticated: bool = setting(
        instance("a bool", bool),
        default=False,
        text="listen beyond loopback: HTTP asks for no token",
    )
    is_loopback: bool = field(init=False)  # whether only this machine can connect; looked up once

    def __post_init__(self) -> None:
        check_settings(self)
        exposed = [each for each in self.addresses if not each.is_loopback()]
        object.__setattr__(self, "is_loopback", not exposed)
        if exposed and not self.allow_unauthenticated:
            raise ConfigError(
                f"{exposed[0]} is open to other machines, and HTTP asks for no token\n"
                "hint: Say --allow-unauthenticated-http: anyone who can connect can then see "
                "the status, the metrics, and the ids of tenants and timelines."
            )

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The addresses of `listen`, as a tuple."""
        return (self.listen,) if isinstance(self.listen, Address) else self.listen

    def is_welcome(self, host: str | None) -> bool:
        """Whether a request for this Host is answered.

        On loopback only the names of loopback are: a web site that points its name at this
        machine must not read the page through a browser that runs here.
        """
        if host is None or not self.is_loopback:
            return True
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found[1] or found[2]
        try:
            return name.lower() == "localhost" or ipaddress.ip_address(name).is_loopback
        except ValueError:
            return name in [each.host for each in self.addresses]


add_keys_to_docstring(HttpConfig)
