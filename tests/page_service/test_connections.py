"""Who has to go for whom, and whose command is cancelled by whom."""

from __future__ import annotations

import socket

import pytest
from support.cache_helpers import Worker
from support.helpers import wait_until

from bbcache.page_service import connections as connections_module
from bbcache.page_service.connections import Connections
from bbcache.page_service.errors import CanceledError, ShutdownError, TooManyConnectionsError
from bbcache.page_service.transport import Transport


def test_a_cancel_needs_both_numbers() -> None:
    """Whoever has the secret of another connection, or none, ends nothing."""
    ours, theirs = socket.socketpair()
    others, their_others = socket.socketpair()
    with ours, theirs, others, their_others:
        connections = Connections(2)
        first = connections.add(Transport(ours, 1.0), "peer", 0.0)
        second = connections.add(Transport(others, 1.0), "peer", 0.0)
        for number, secret in (
            *((first.process_id, each) for each in (b"", second.secret, first.secret + b"\0")),
            *((each, first.secret) for each in (0, second.process_id, second.process_id + 1)),
        ):
            assert not connections.cancel(number, secret)
        first.check_cancelled()
        second.check_cancelled()
        assert connections.cancel(first.process_id, first.secret)
        with pytest.raises(CanceledError):
            first.check_cancelled()
        second.check_cancelled()


def test_each_newcomer_at_the_end_has_a_reason_of_its_own() -> None:
    """One that is shared would keep the frames of all."""
    connections = Connections(1)
    connections.end(ShutdownError("the page service ends"))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reasons = []
        for _ in range(2):
            with pytest.raises(ShutdownError, match="the page service ends") as caught:
                connections.add(Transport(ours, 1.0), "peer", 0.0)
            reasons.append(caught.value)
    assert reasons[0] is not reasons[1]


def test_who_is_on_the_way_out_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a moment, before a newcomer is refused for them."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connections = Connections(1)
        first, _ = (connections.add(Transport(ours, 1.0), "peer", 0.0) for _ in range(2))
        with pytest.raises(TooManyConnectionsError):
            connections.add(Transport(ours, 1.0), "peer", 0.0)
        monkeypatch.setattr(connections_module, "_GOING_TIMEOUT_S", 30.0)
        newcomer = Worker(connections.add, Transport(ours, 1.0), "peer", 0.0)
        wait_until(lambda: connections._changed._waiters)  # type: ignore[attr-defined]  # not public
        connections.remove(first)
        assert newcomer.result()
