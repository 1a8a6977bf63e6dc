"""The clients of a service: how many there may be, and which one is disconnected for a new one.

A client takes one of the places when it has logged in. Clients without a place are counted
apart, so that a stranger takes none. Each tenant has a share of the places, which binds only
when a client of another tenant finds none. A client whose token names no tenant belongs to
the tenant of its last command; where no place is free, it has to give one first.
"""

from __future__ import annotations

import hmac
import itertools
import threading
import time
from collections import Counter
from collections.abc import Collection
from typing import Final, Protocol

from bbcache.ids import TenantId
from bbcache.page_service.errors import (
    IdleTimeoutError,
    PageServiceError,
    TooManyConnectionsError,
)

_MAX_PROCESS_ID: Final = 2**31 - 1
SOLE_READER_S: Final = 30.0
_ROOM_TIMEOUT_S: Final = 1.0


class Client(Protocol):
    """A session, as the other clients see it.

    Attributes:
        process_id: a client cancels its commands with this number and `secret`.
        secret: likewise.
        tenant_id: the tenant of its token, else of its last command; None before.
        idle_since_s: when it began to wait for a message; None while it is busy.
        busy_since_s: when its last command began, or the sending of an unpublished archive.
        unpublished_bytes: size of the unpublished archive that it is sent; 0 for none.
    """

    process_id: int
    secret: bytes
    tenant_id: TenantId | None
    idle_since_s: float | None
    busy_since_s: float
    unpublished_bytes: int

    def end(self, reason: PageServiceError, *, is_immediate: bool) -> None:
        """End it after its command, or in the middle of it."""
        ...

    def cancel_command(self) -> None:
        """End its command."""
        ...

    def close_inherited(self) -> None:
        """See `bbcache.lifecycle.ThreadOwner`."""
        ...


class Clients:
    """All clients of a service. Thread-safe.

    Args:
        most: places.
        most_pending: how many clients may have none.
    """

    def __init__(self, most: int, most_pending: int) -> None:
        self._most = most
        self._most_pending = most_pending
        self._changed = threading.Condition(threading.Lock())  # guards all that follows
        self._by_id: dict[int, Client] = {}  # all, also those that were told to go
        self._pending: dict[int, Client] = {}  # those without a place, oldest first
        self._placed: dict[int, Client] = {}  # those with one
        self._ending: tuple[PageServiceError, bool] | None = None
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._by_id)

    def new_process_id(self) -> int:
        """Return the number of the next client."""
        return next(self._numbers) & _MAX_PROCESS_ID

    def add(self, client: Client) -> None:
        """Add a client that has no place; if there are too many, disconnect the oldest."""
        with self._changed:
            self._by_id[client.process_id] = self._pending[client.process_id] = client
            ending, victim = self._ending, None
            if len(self._pending) > self._most_pending:
                victim = self._pending.pop(next(iter(self._pending)))
        if victim is not None:
            reason = IdleTimeoutError("others wait to log in, and this took longest")
            victim.end(reason, is_immediate=True)
        if ending is not None:
            client.end(ending[0], is_immediate=ending[1])

    def place(self, client: Client) -> None:
        """Give a client that has logged in a place, and disconnect another one if none is free.

        If only the place of a busy client can be taken, the client gets no place before its
        tenant is known.

        Raises:
            TooManyConnectionsError: no other client has to make room: the client's own tenant has
                its share, and is busy.
        """
        with self._changed:
            if client.process_id not in self._pending:  # it has a place, or must go
                return
            victim = None
            if len(self._placed) >= self._most:
                victim = _victim(self._placed.values(), client.tenant_id)
                if victim is None and client.tenant_id is None:
                    return
                if victim is None:
                    raise TooManyConnectionsError(
                        f"there are {self._most} connections already\n"
                        "hint: Close idle ones, or raise --max-connections."
                    )
                del self._placed[victim.process_id]
            self._placed[client.process_id] = self._pending.pop(client.process_id)
        if victim is not None:
            reason = TooManyConnectionsError("the connection had to make room for another client")
            victim.end(reason, is_immediate=True)

    def make_room(self, tenant_id: TenantId | None) -> bool:
        """End a client so that a tenant finds room for an unpublished archive; False for none.

        It is the one that is sent its archive for longest, of the tenant that holds the most
        such bytes, if that is more than this tenant holds. The only reader of a tenant has some
        time first: tenants with an archive each would end each other forever.
        """
        with self._changed:
            held: Counter[TenantId | None] = Counter()
            readers = [each for each in self._placed.values() if each.unpublished_bytes]
            for each in readers:
                held[each.tenant_id] += each.unpublished_bytes
            largest = max(held, key=held.__getitem__, default=tenant_id)
            if largest == tenant_id or held[largest] <= held[tenant_id]:
                return False
            theirs = [each for each in readers if each.tenant_id == largest]
            victim = min(theirs, key=lambda each: each.busy_since_s)
            if len(theirs) == 1 and time.monotonic() < victim.busy_since_s + SOLE_READER_S:
                return False
            del self._placed[victim.process_id]
        reason = "archives that are not published have no room, and this tenant has the most"
        victim.end(TooManyConnectionsError(reason), is_immediate=True)
        with self._changed:
            self._changed.wait_for(lambda: victim.process_id not in self._by_id, _ROOM_TIMEOUT_S)
        return True

    def remove(self, client: Client) -> None:
        """Forget a client that has ended."""
        with self._changed:
            for clients in (self._by_id, self._pending, self._placed):
                clients.pop(client.process_id, None)
            self._changed.notify_all()

    def cancel(self, process_id: int, secret: bytes) -> bool:
        """Cancel the command of the client with this number and secret; False without one."""
        client = self._by_id.get(process_id)
        if client is None or not hmac.compare_digest(client.secret, secret):
            return False
        client.cancel_command()
        return True

    def end(self, reason: PageServiceError, *, is_immediate: bool) -> None:
        """End all clients, now and later: after their commands, or in the middle of them."""
        with self._changed:
            self._ending = reason, is_immediate
            clients = [*self._by_id.values()]
        for client in clients:
            client.end(reason, is_immediate=is_immediate)

    def wait_empty(self, timeout_s: float | None) -> bool:
        """Wait until there are none; False if that took longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._by_id, timeout_s)

    def close_inherited(self) -> None:
        """See `bbcache.lifecycle.ThreadOwner`."""
        for client in list(self._by_id.values()):
            client.close_inherited()


def _victim(others: Collection[Client], tenant_id: TenantId | None) -> Client | None:
    """Choose the client that makes room for one of a tenant; None if the tenant has its share.

    The tenant with the most connections is first, and of its clients those that are idle. An
    idle client is chosen if its tenant has as many connections as the newcomer's will have, and
    a busy one only if its tenant has more. A newcomer whose tenant is not known yet takes no
    place of a busy client.
    """
    counts = Counter(each.tenant_id for each in others)
    wanted = counts[tenant_id] + 1
    candidates = []
    for each in others:
        count, idle_since_s = counts[each.tenant_id], each.idle_since_s
        if idle_since_s is not None and (each.tenant_id == tenant_id or count >= wanted):
            candidates.append((-count, 0, idle_since_s, each.process_id, each))
        elif tenant_id is not None and count > wanted:
            candidates.append((-count, 1, each.busy_since_s, each.process_id, each))
    return min(candidates)[-1] if candidates else None
