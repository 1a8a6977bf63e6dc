"""Who is connected: limits, who must go, whose command is to be cancelled, the end."""

from __future__ import annotations

import hmac
import itertools
import os
import threading
from typing import Final

from bbcache.page_service.errors import (
    CanceledError,
    DisconnectedError,
    IdleTimeoutError,
    PageServiceError,
    ShutdownError,
    TooManyConnectionsError,
)
from bbcache.page_service.transport import Transport

_SECRET_SIZE_BYTES: Final = 4  # that of protocol 3.0
_MAX_PROCESS_ID: Final = 2**31 - 1
_GOING_TIMEOUT_S: Final = 0.1  # so long a newcomer waits for those that were told to go


class Connection:
    """One client, as far as others are concerned with it.

    Attributes:
        transport: its socket.
        peer: its address, for the log.
        process_id: what it may cancel its commands with.
        secret: likewise.
        is_let_in: whether it has proved who it is.
        waiting_since_s: since when nothing was done but wait for its next message; None
            while there is something to do.
        is_canceled: whether it has asked for the end of its command.
    """

    def __init__(self, transport: Transport, peer: str, process_id: int, now_s: float) -> None:
        self.transport = transport
        self.peer = peer
        self.process_id = process_id
        self.secret = os.urandom(_SECRET_SIZE_BYTES)
        self.is_let_in = False
        self.waiting_since_s: float | None = now_s
        self.is_canceled = False

    def check_cancelled(self) -> None:
        """Return where the client still wants what it has asked for.

        Raises:
            CanceledError: it has asked for the end of its command.
            DisconnectedError: it is gone.
            ShutdownError: the service does not wait any longer.
        """
        if self.is_canceled:
            raise CanceledError("canceling statement due to user request")
        if self.transport.is_aborted:
            raise ShutdownError("the page service ends")
        if self.transport.is_client_gone():
            raise DisconnectedError("the client is gone")


class Connections:
    """All connections of a service. Thread-safe.

    Args:
        most: how many there may be.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._changed = threading.Condition()  # guards all that follows
        self._by_id: dict[int, Connection] = {}
        self._ending: PageServiceError | None = None
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        """How many there are."""
        with self._changed:
            return len(self._by_id)

    def add(self, transport: Transport, peer: str, now_s: float) -> Connection:
        """A new connection; where there are too many, another one goes for it.

        The one to go is the one that has been silent longest, among those that have not
        proved who they are if there are any. Where as many as there may be are on their
        way out, this waits a moment for them: the kernel keeps who comes meanwhile.

        Raises:
            TooManyConnectionsError: all others are at something.
            ShutdownError: the service ends.
        """
        with self._changed:
            self._changed.wait_for(lambda: len(self._by_id) < 2 * self._most, _GOING_TIMEOUT_S)
            if self._ending is not None:
                raise type(self._ending)(*self._ending.args)
            living = [one for one in self._by_id.values() if one.transport.interruption is None]
            is_full = len(living) >= self._most
            victim = _longest_silent(living) if is_full else None
            if (is_full and victim is None) or len(self._by_id) >= 2 * self._most:
                raise TooManyConnectionsError(f"there are {self._most} connections already")
            process_id = next(self._numbers) & _MAX_PROCESS_ID
            connection = Connection(transport, peer, process_id, now_s)
            self._by_id[process_id] = connection
        if victim is not None:
            victim.transport.interrupt(
                IdleTimeoutError(f"{self._most} connections are too many, and this was silent")
            )
        return connection

    def remove(self, connection: Connection) -> None:
        """The connection has ended."""
        with self._changed:
            self._by_id.pop(connection.process_id, None)
            self._changed.notify_all()

    def cancel(self, process_id: int, secret: bytes) -> bool:
        """Cancel the command of the connection that was told these; False where none was."""
        with self._changed:
            connection = self._by_id.get(process_id)
        if connection is None or not hmac.compare_digest(connection.secret, secret):
            return False
        connection.is_canceled = True
        return True

    def end(self, reason: PageServiceError) -> None:
        """Take no new ones, and let each end what it is at, but begin nothing."""
        with self._changed:
            self._ending = reason
            living = [*self._by_id.values()]
        for connection in living:
            connection.transport.interrupt(reason)

    def abort(self, reason: PageServiceError) -> None:
        """End all of them, whatever they are at."""
        with self._changed:
            self._ending = reason
            living = [*self._by_id.values()]
        for connection in living:
            connection.transport.abort(reason)

    def drop_inherited(self) -> None:
        """See `bbcache.page_service.inherited.Owner`."""
        for connection in list(self._by_id.values()):
            connection.transport.drop_inherited()

    def wait_empty(self, timeout_s: float | None) -> bool:
        """Wait until there are none; False where that took longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._by_id, timeout_s)


def _longest_silent(living: list[Connection]) -> Connection | None:
    silent = [(one.is_let_in, one.waiting_since_s, one.process_id, one) for one in living]
    candidates = [each for each in silent if each[1] is not None]
    return min(candidates, key=lambda each: each[:3])[3] if candidates else None
