"""The HTTP service: it listens, and answers each request in a thread of a pool."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Self

from bbcache import lifecycle
from bbcache.http_service.config import HttpConfig
from bbcache.http_service.connection import Connection
from bbcache.http_service.handler import Response
from bbcache.serving.listening import Address, address_of, open_listeners
from bbcache.serving.poller import Poller
from bbcache.serving.workers import Workers

_EXIT_TIMEOUT_S: Final = 10.0
_SPARE_THREADS: Final = 2  # for the newest requests, while the oldest are still ending

log = logging.getLogger(__name__)


class HttpService:
    """Answers requests over HTTP. Thread-safe.

    The newest request is always served: if there are too many, the oldest is cut off.

    Close it, or use it in a ``with`` block. At the exit of the interpreter it is closed
    in time for its threads. In a forked child it is inert, and does not listen.

    Args:
        config: addresses and limits.
        respond: gives the answer to a path and an Accept header; called by many threads.
        listeners: sockets that listen already, in the place of the addresses of `config`.
    """

    def __init__(
        self,
        config: HttpConfig,
        respond: Callable[[str, str], Response],
        listeners: Sequence[socket.socket] = (),
    ) -> None:
        self._config = config
        self._respond = respond
        self._listeners = listeners
        self._addresses: tuple[Address, ...] = ()
        self._lock = threading.Lock()  # guards the next two
        self._connections: dict[int, Connection] = {}  # by identity, oldest first
        self._cut_off: dict[int, Connection] = {}  # by identity, until a worker has closed them
        self._workers: Workers[Connection] = Workers(
            config.max_connections + _SPARE_THREADS,
            self._serve,
            name="bbcache-http",
        )
        self._poller: Poller[Connection] = Poller(
            self._workers.add, self._accept, "bbcache-http-poller"
        )
        self._generation = lifecycle.generation()

    def start(self) -> Address:
        """Listen, and serve in the background.

        Returns:
            The first address, with the port that it has got.

        Raises:
            ConfigError: it cannot listen there.
        """
        listeners = self._listeners or open_listeners(self._config.addresses)
        self._addresses = tuple(map(address_of, listeners))
        lifecycle.close_in_children(self)
        self._workers.start()
        self._poller.start(listeners)
        lifecycle.close_at_exit(self)
        return self.address

    @property
    def address(self) -> Address:
        """The first address that it listens on, once started."""
        return self._addresses[0]

    @property
    def addresses(self) -> tuple[Address, ...]:
        """All addresses that it listens on, once started."""
        return self._addresses

    def begin_close(self) -> None:
        """Take no more requests; waits for nothing."""
        if self._generation == lifecycle.generation():
            self._poller.stop_accepting()

    def close(self, timeout: float | None = None) -> None:
        """Take no more requests; those that run end by themselves, and soon.

        Args:
            timeout: seconds to wait at most for them; None waits without limit.
        """
        if self._generation != lifecycle.generation():
            return
        self._poller.close(timeout)
        if self._workers.close(timeout):
            for connection in self._open_connections():
                self._end(connection)
            lifecycle.forget(self)

    def close_inherited(self) -> None:
        """See `bbcache.lifecycle.ThreadOwner`."""
        self._poller.close_inherited()
        for connection in self._open_connections():
            connection.close_inherited()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close(_EXIT_TIMEOUT_S)

    def _accept(self, sock: socket.socket, peer: str) -> None:
        connection = Connection(sock, peer, self._config, self._respond, time.monotonic())
        oldest = None
        with self._lock:
            self._connections[id(connection)] = connection
            if len(self._connections) > self._config.max_connections:
                oldest = self._connections.pop(next(iter(self._connections)))
                self._cut_off[id(oldest)] = oldest
        if oldest is not None:
            oldest.cut_off()
        self._watch(connection)

    def _serve(self, connection: Connection) -> None:
        try:
            if connection.serve(time.monotonic()):
                self._watch(connection)
                return
        except Exception:
            log.exception("cannot serve a request")
        self._forget(connection)

    def _watch(self, connection: Connection) -> None:
        try:
            self._poller.watch(connection)
        except OSError as error:
            self._end(connection)
            log.warning("a client cannot be watched: %s", error.strerror)

    def _end(self, connection: Connection) -> None:
        connection.close()
        self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        with self._lock:
            self._connections.pop(id(connection), None)
            self._cut_off.pop(id(connection), None)

    def _open_connections(self) -> list[Connection]:
        return [*self._connections.values(), *self._cut_off.values()]
