"""Addresses in words, and the sockets that listen on them."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest
from support.cache_helpers import DEADLINE_S
from support.helpers import count_descriptors

from bbcache.errors import ConfigError
from bbcache.serving.listening import Address, address_of, adopt_listeners, open_listeners

LOOPBACK = Address("127.0.0.1", 0)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:5", "127.0.0.1", 5),
        ("localhost", "localhost", 64000),
        (":5", "127.0.0.1", 5),
        ("[::1]:5", "::1", 5),
        ("[::1]", "::1", 64000),
        ("[::]:7", "::", 7),
        ("0.0.0.0:0", "0.0.0.0", 0),  # noqa: S104 - not listened on
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    """Host and port, each of which may be left out."""
    assert Address.from_str(text) == Address(host, port)


@pytest.mark.parametrize(
    "text", ["", "a:b", "::1", "a:65536", "[::1", "[::1]5", "a:", "a:-1", "[::1]:"]
)
def test_what_is_no_address(text: str) -> None:
    """It is named."""
    with pytest.raises(ConfigError, match="is not an address such as"):
        Address.from_str(text)


def can_connect(host: str, port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection((host, port), DEADLINE_S).close()
    except ConnectionRefusedError:
        return False
    return True


def test_all_addresses_are_listened_on() -> None:
    """Each has a socket of its own, which takes no part in a wait."""
    with ExitStack() as opened:
        for listener in open_listeners([LOOPBACK, LOOPBACK]):
            opened.enter_context(listener)
            assert not listener.getblocking()
            assert can_connect("127.0.0.1", address_of(listener).port)


def test_both_families_have_the_wildcard_of_ipv6() -> None:
    """`[::]` is reached by IPv4, too; `[::1]` is not."""
    (listener,) = open_listeners([Address("::", 0)])
    with listener:
        port = address_of(listener).port
        assert can_connect("127.0.0.1", port)
        assert can_connect("::1", port)
    (listener,) = open_listeners([Address("::1", 0)])
    with listener:
        assert not can_connect("127.0.0.1", address_of(listener).port)


def test_all_or_none() -> None:
    """Where one address is taken, it is named, and no other one is listened on."""
    before = count_descriptors()
    (taken,) = open_listeners([LOOPBACK])
    with taken:
        address = address_of(taken)
        with pytest.raises(ConfigError, match=f"cannot listen on {address}: Address already"):
            open_listeners([LOOPBACK, address])
    assert count_descriptors() <= before


def test_a_host_without_address() -> None:
    """It is named."""
    with pytest.raises(ConfigError, match=r"'no\.such\.host\.invalid' has no address"):
        open_listeners([Address("no.such.host.invalid", 0)])


def test_sockets_of_another_process_are_taken_over() -> None:
    """Descriptors that listen are taken; any other is named in the error."""
    (listener,) = open_listeners([LOOPBACK])
    address = address_of(listener)
    listener.setblocking(True)  # noqa: FBT003 - as systemd gives it
    (adopted,) = adopt_listeners([listener.detach()])
    with adopted:
        assert address_of(adopted) == address
        assert not adopted.getblocking()
        assert not adopted.get_inheritable()
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(ConfigError, match="is not a socket that listens for TCP"):
        adopt_listeners([ours.fileno()])
