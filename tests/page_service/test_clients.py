"""Which client is disconnected to make room, and which command a cancel request ends."""

from __future__ import annotations

import itertools
import os
import time

import pytest
from support.cache_helpers import Worker
from support.helpers import wait_until

from bbcache.ids import TenantId
from bbcache.page_service.clients import SOLE_READER_S, Clients
from bbcache.page_service.errors import (
    PageServiceError,
    ShutdownError,
    TooManyConnectionsError,
)

TENANTS = [TenantId.generate() for _ in range(3)]
TIMES = itertools.count(1.0)
ended: list[Fake] = []


class Fake:
    """A session without a socket."""

    def __init__(self, clients: Clients, tenant_id: TenantId | None = None) -> None:
        self.process_id = clients.new_process_id()
        self.secret = os.urandom(4)
        self.tenant_id = tenant_id
        self.busy_since_s = next(TIMES)
        self.idle_since_s: float | None = self.busy_since_s
        self.unpublished_bytes = 0
        self.ending: PageServiceError | None = None
        self.cancelled = 0

    def end(self, reason: PageServiceError, *, is_immediate: bool) -> None:
        """Take note."""
        assert is_immediate in (True, False)
        self.ending = reason
        ended.append(self)

    def cancel_command(self) -> None:
        """Take note."""
        self.cancelled += 1

    def close_inherited(self) -> None:
        """Nothing is open."""


def placed(
    clients: Clients, tenant_id: TenantId | None, *, is_busy: bool = False
) -> tuple[Fake, Fake | None]:
    """A client of a tenant that has logged in, and the one that had to go for it."""
    client = Fake(clients, tenant_id)
    clients.add(client)
    ended.clear()
    clients.place(client)
    if is_busy:
        client.idle_since_s = None
    for victim in ended:
        clients.remove(victim)
    return client, ended[0] if ended else None


def test_a_cancel_needs_both_numbers() -> None:
    """The secret of another client, or a part of it, ends nothing."""
    clients = Clients(2, 2)
    first, second = Fake(clients), Fake(clients)
    clients.add(first)
    clients.add(second)
    for number, secret in (
        *((first.process_id, each) for each in (b"", second.secret, first.secret + b"\0")),
        *((each, first.secret) for each in (0, second.process_id, second.process_id + 1)),
    ):
        assert not clients.cancel(number, secret)
    assert clients.cancel(first.process_id, first.secret)
    assert (first.cancelled, second.cancelled) == (1, 0)


def test_strangers_go_for_strangers() -> None:
    """The oldest that has not logged in goes; those that have stay, however idle."""
    clients = Clients(5, 2)
    idle = [placed(clients, TENANTS[0])[0] for _ in range(5)]
    strangers = [Fake(clients) for _ in range(4)]
    ended.clear()
    for each in strangers:
        clients.add(each)
    assert ended == strangers[:2]
    assert not any(each.ending for each in idle)
    assert len(clients) == 9  # until those that must go have gone


def test_an_idle_client_of_the_largest_tenant_goes_first() -> None:
    """The one that is idle for longest; clients of smaller tenants stay."""
    clients = Clients(4, 1)
    other, _ = placed(clients, TENANTS[1])
    large = [placed(clients, TENANTS[0])[0] for _ in range(3)]
    large[0].idle_since_s = None
    assert placed(clients, TENANTS[2])[1] is large[1]
    assert placed(clients, TENANTS[2])[1] is large[2]
    assert other.ending is None


def test_a_share_binds_only_when_another_tenant_finds_no_place() -> None:
    """A tenant may have all places; then busy clients go for others, up to an equal share."""
    clients = Clients(4, 1)
    large = [placed(clients, TENANTS[0], is_busy=True)[0] for _ in range(4)]
    with pytest.raises(TooManyConnectionsError, match="there are 4 connections already"):
        placed(clients, TENANTS[0])
    assert placed(clients, TENANTS[1], is_busy=True)[1] is large[0]
    assert placed(clients, TENANTS[1], is_busy=True)[1] is large[1]
    with pytest.raises(TooManyConnectionsError):
        placed(clients, TENANTS[1])


def test_a_tenant_with_its_share_takes_no_idle_client_of_a_smaller_one() -> None:
    """Its own busy clients are its own matter."""
    clients = Clients(3, 1)
    modest, _ = placed(clients, TENANTS[1])
    for _ in range(2):
        placed(clients, TENANTS[0], is_busy=True)
    with pytest.raises(TooManyConnectionsError):
        placed(clients, TENANTS[0])
    assert modest.ending is None


def test_a_client_without_a_tenant_is_placed_when_its_tenant_is_known() -> None:
    """It takes an idle place at once, and that of a busy client with its first command."""
    clients = Clients(2, 2)
    busy = [placed(clients, TENANTS[0], is_busy=True)[0] for _ in range(2)]
    newcomer, victim = placed(clients, None)
    assert victim is None
    newcomer.tenant_id = TENANTS[0]
    with pytest.raises(TooManyConnectionsError):
        clients.place(newcomer)
    newcomer.tenant_id = TENANTS[1]
    ended.clear()
    for _ in range(2):
        clients.place(newcomer)
    assert ended == busy[:1]


def test_room_comes_from_the_tenant_that_holds_the_most() -> None:
    """Its slowest reader goes, and none where the tenant itself holds the most."""
    clients = Clients(10, 1)
    for tenant_id, size_bytes in ((0, 10), (0, 10), (1, 15), (2, 0)):
        client, _ = placed(clients, TENANTS[tenant_id])
        client.unpublished_bytes = size_bytes
    assert not clients.make_room(TENANTS[0])
    ended.clear()
    for count in (1, 2):
        waiting = Worker(clients.make_room, TENANTS[2])
        wait_until(lambda count=count: len(ended) == count)  # type: ignore[misc]  # of this turn
        clients.remove(ended[-1])
        assert waiting.result()
    assert [each.tenant_id for each in ended] == TENANTS[:2]
    assert not Clients(1, 1).make_room(TENANTS[0])


def test_the_only_reader_of_a_tenant_has_some_time() -> None:
    """It goes when another tenant finds no room after that, and one of several goes at once."""
    clients = Clients(10, 1)
    only, _ = placed(clients, TENANTS[0])
    only.unpublished_bytes, only.busy_since_s = 10, time.monotonic()
    assert not clients.make_room(TENANTS[1])
    only.busy_since_s -= SOLE_READER_S
    assert clients.make_room(TENANTS[1])
    assert only.ending is not None


def test_a_newcomer_at_the_end_is_ended() -> None:
    """Like all that were there before."""
    clients = Clients(1, 1)
    clients.end(ShutdownError("the page service ends"), is_immediate=False)
    client = Fake(clients)
    clients.add(client)
    assert isinstance(client.ending, ShutdownError)


def test_an_end_is_waited_for() -> None:
    """`wait_empty` returns when the last client has gone."""
    clients = Clients(1, 1)
    client = Fake(clients)
    clients.add(client)
    assert not clients.wait_empty(0)
    waiting = Worker(clients.wait_empty, None)
    clients.remove(client)
    assert waiting.result()
