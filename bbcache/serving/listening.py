"""Addresses to listen on, and the sockets that listen there."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from bbcache.arguments import check_passable
from bbcache.errors import ConfigError

DEFAULT_PORT: Final = 64000  # Neon's
_BACKLOG: Final = 1024
_MAX_PORT: Final = 65535
_ADDRESS: Final = re.compile(
    r"(?:\[(?P<ipv6>[^\[\]]+)\]|(?P<host>[^\[\]:]*))(?::(?P<port>[0-9]{1,5}))?"
)


@dataclass(frozen=True, slots=True)
class Address:
    """An address to listen on.

    Attributes:
        host: a name or a numeric address; ``::`` is every address of both families.
        port: the port; 0 takes any free one.
    """

    host: str
    port: int

    @classmethod
    def from_str(cls, text: str, default_port: int = DEFAULT_PORT) -> Address:
        """Parse ``HOST``, ``HOST:PORT``, ``:PORT`` (of loopback) or ``[IPV6]:PORT``.

        Raises:
            ConfigError: for anything else, such as the empty text of an unset variable.
        """
        found = _ADDRESS.fullmatch(text)
        if not text or found is None or int(found["port"] or default_port) > _MAX_PORT:
            raise ConfigError(f"{text!r} is not an address such as 127.0.0.1:{default_port}")
        host = found["ipv6"] or found["host"] or "127.0.0.1"
        return cls(host, int(found["port"] or default_port))

    def resolve(self) -> tuple[socket.AddressFamily, str]:
        """Look up the first family and numeric address of the host.

        Raises:
            ConfigError: the host has none.
        """
        check_passable("the host of an address", self.host, ConfigError)
        try:
            found = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"{self.host!r} has no address: {error}") from error
        family, _, _, _, address = found[0]
        return family, str(address[0])

    def is_loopback(self) -> bool:
        """Whether only this machine can connect to it."""
        _, numeric = self.resolve()
        return ipaddress.ip_address(numeric.partition("%")[0]).is_loopback

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def open_listeners(addresses: Iterable[Address]) -> list[socket.socket]:
    """Open a listening, non-blocking socket for each address.

    Raises:
        ConfigError: one of them cannot be listened on; then none is open.
    """
    with ExitStack() as opened:
        listeners = [opened.enter_context(_open(address)) for address in addresses]
        opened.pop_all()
    return listeners


def adopt_listeners(fds: Iterable[int]) -> list[socket.socket]:
    """Take over sockets that another process listens on, such as systemd's.

    Raises:
        ConfigError: a descriptor is not a listening socket of TCP.
    """
    listeners = []
    for fd in fds:
        os.set_inheritable(fd, False)  # noqa: FBT003 - the name says it
        try:
            listener = socket.socket(fileno=fd)
            is_listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as error:
            raise ConfigError(f"descriptor {fd} is not a socket: {error.strerror}") from error
        if not is_listening or listener.family not in (socket.AF_INET, socket.AF_INET6):
            listener.detach()  # it is not ours to close
            raise ConfigError(f"descriptor {fd} is not a socket that listens for TCP")
        listener.settimeout(0)
        listeners.append(listener)
    return listeners


def address_of(listener: socket.socket) -> Address:
    """Return the address that a socket listens on, with the port that it has got."""
    return Address(*listener.getsockname()[:2])


def _open(address: Address) -> socket.socket:
    family, host = address.resolve()
    try:
        listener = socket.create_server(
            (host, address.port), family=family, backlog=_BACKLOG, dualstack_ipv6=host == "::"
        )
    except (OSError, ValueError) as error:  # ValueError: the machine has no IPv6
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"cannot listen on {address}: {reason}") from error
    listener.settimeout(0)
    return listener
