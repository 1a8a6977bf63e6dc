"""A client's socket: how long a client may take, and how a connection ends."""

from __future__ import annotations

import select
import socket
import threading
from typing import TYPE_CHECKING

import pytest
from page_service.certificates import certificate
from support.cache_helpers import DEADLINE_S, MIB, Worker

from bbcache.page_service.cancellation import Cancellation
from bbcache.page_service.errors import DisconnectedError, ShutdownError
from bbcache.page_service.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two ends of a connection."""
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sock.settimeout(DEADLINE_S)
    yield ours, theirs
    ours.close()
    theirs.close()


def test_a_client_that_has_hung_up_is_gone(pair: Pair) -> None:
    """Its end of the stream is seen, and not before it is there."""
    ours, theirs = pair
    transport = Transport(ours, DEADLINE_S)
    assert not transport.is_client_gone()
    theirs.close()
    assert transport.is_client_gone()


def test_an_end_of_the_session_is_no_client_that_is_gone(pair: Pair) -> None:
    """Not even where it comes while the socket is looked at, on which it looks alike."""
    transport = Transport(pair[0], DEADLINE_S)

    def is_client_gone() -> bool:
        cancellation.end_session(ShutdownError("the page service ends"), is_immediate=False)
        transport.stop_reading()
        return transport.is_client_gone()

    cancellation = Cancellation(is_client_gone)
    cancellation.check_command()
    assert transport.is_client_gone()
    with pytest.raises(ShutdownError):
        cancellation.check_session()


def test_a_client_has_its_time_for_each_mib(pair: Pair) -> None:
    """One that takes a little now and then is too slow."""
    ours, theirs = pair
    transport = Transport(ours, 0.3)
    is_over = threading.Event()

    def drip() -> None:
        while not is_over.wait(0.01):
            theirs.recv(1000)

    dripping = Worker(drip)
    with pytest.raises(DisconnectedError, match="does not take"):
        transport.send(bytes(8 * MIB))
    is_over.set()
    ours.close()
    dripping.result()


def test_a_wait_is_looked_at(pair: Pair) -> None:
    """An error that is raised while the client takes nothing ends the wait."""

    def check(waited_s: float) -> None:
        assert waited_s > 0
        raise ShutdownError("the page service ends")

    transport = Transport(pair[0], DEADLINE_S, check)
    with pytest.raises(ShutdownError):
        transport.send(bytes(8 * MIB))
    with pytest.raises(DisconnectedError):  # it would be taken for the rest of the message
        transport.send(b"an error")
    transport.close()
    received = bytearray()
    while piece := pair[1].recv(1 << 16):
        received += piece
    assert not received.strip(b"\0")


def test_a_farewell_waits_for_nobody(pair: Pair) -> None:
    """Where the client takes nothing, it is over at once."""
    transport = Transport(pair[0], DEADLINE_S)
    with pytest.raises(DisconnectedError):
        transport.send(bytes(8 * MIB), timeout_s=0)


def test_tls_ends_with_a_close_notify(pair: Pair, tmp_path: Path) -> None:
    """Without it a client cannot tell the end from an attack, and libpq reports a failure."""
    server, trusting = certificate(tmp_path)
    ours, theirs = pair
    transport = Transport(ours, DEADLINE_S)

    def client() -> bytes:
        with trusting.wrap_socket(
            theirs, server_hostname="127.0.0.1", suppress_ragged_eofs=False
        ) as sock:
            sock.send(b"x")
            return sock.recv(1)

    receiving = Worker(client)
    transport.begin_tls(server)
    while transport.receive() is None:
        assert select.select([transport], [], [], DEADLINE_S)[0]
    transport.close()
    assert receiving.result() == b""
