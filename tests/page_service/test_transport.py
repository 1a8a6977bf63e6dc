"""A client's socket: what another thread may do to it meanwhile."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from bbcache.page_service.errors import ShutdownError
from bbcache.page_service.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bbcache.page_service.errors import PageServiceError


class _InterruptedTransport(Transport):
    """Interrupted between the question whether it was and the look at its socket."""

    @property
    def interruption(self) -> PageServiceError | None:
        known = super().interruption
        self.interrupt(ShutdownError("the page service ends"))
        return known


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection."""
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def test_a_client_that_has_hung_up_is_gone(pair: tuple[socket.socket, socket.socket]) -> None:
    """Its end of the stream is seen, and not before it is there."""
    ours, theirs = pair
    transport = Transport(ours, send_timeout_s=60)
    assert not transport.is_client_gone()
    theirs.close()
    assert transport.is_client_gone()


def test_an_interruption_is_no_client_that_is_gone(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """Not even where it comes while the socket is looked at, on which it looks alike."""
    transport = _InterruptedTransport(pair[0], send_timeout_s=60)
    assert not transport.is_client_gone()
    assert transport.interruption is not None
