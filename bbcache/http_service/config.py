"""The settings of an HTTP service: frozen, validated."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Final

from bbcache.errors import ConfigError
from bbcache.page_service.config import Address

DEFAULT_PORT: Final = 9898  # that of the HTTP API of Neon's pageserver
DEFAULT_ADDRESS: Final = Address("127.0.0.1", DEFAULT_PORT)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpConfig:
    """Settings of one service. Immutable, hence thread-safe.

    Attributes:
        listen: where.
        max_connections: requests at once, each of which has a thread.
        max_request_size_bytes: all that is read of a request.
        timeout_s: for a client to send its request, and again to take the answer.
        allow_unauthenticated: whether to listen beyond loopback: nobody is asked who he is.
        is_loopback: whether only this machine can reach it; found out once.

    Raises:
        ConfigError: (a `ValueError`) it would be open to other machines, which was not
            asked for.
    """

    listen: Address = DEFAULT_ADDRESS
    max_connections: int = 16
    max_request_size_bytes: int = 16 * 1024
    timeout_s: float = 5.0
    allow_unauthenticated: bool = False
    is_loopback: bool = field(init=False)

    def __post_init__(self) -> None:
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
