"""The page service: it listens, and serves all clients."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Final, Self

from prometheus_client import CollectorRegistry

from bbcache import lifecycle
from bbcache.page_service import inherited
from bbcache.page_service.auth.tls import Certificate
from bbcache.page_service.command_log import CommandLog
from bbcache.page_service.config import Address, PageServiceConfig
from bbcache.page_service.connections import Connection, Connections
from bbcache.page_service.errors import PageServiceError, ShutdownError
from bbcache.page_service.listener import Listener
from bbcache.page_service.lookout import Lookout
from bbcache.page_service.metrics import Ending, ServiceMetrics
from bbcache.page_service.protocol import backend as replies
from bbcache.page_service.session import Session, Verifier
from bbcache.page_service.source import BasebackupSource
from bbcache.page_service.transport import Transport

_EXIT_TIMEOUT_S: Final = 10.0

log = logging.getLogger(__name__)


class PageService:
    """Gives basebackups to PostgreSQL clients. Thread-safe.

    Close it, or use it in a ``with`` block. At the exit of the interpreter it is closed
    in time for its threads. In a forked child it is inert, and has no sockets.

    Args:
        source: where archives come from.
        config: the settings.
        verifier: proves tokens; None lets everyone have everything.
        tls: how TLS is spoken, which clients then must: a context that stays, or a
            certificate, whose context each new connection asks for; None where it is not.
        registry: for the metrics; None for Prometheus' default registry.
        clock: seconds that only grow.
        wall_clock: seconds since 1970, for the expiry of tokens.

    Raises:
        ConfigError: it would be open to strangers, which the settings do not allow; or
            the registry has the metrics of another service.
    """

    def __init__(
        self,
        source: BasebackupSource,
        config: PageServiceConfig,
        *,
        verifier: Verifier | None = None,
        tls: ssl.SSLContext | Certificate | None = None,
        registry: CollectorRegistry | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        config.check_exposure(has_tokens=verifier is not None, has_tls=tls is not None)
        self._source = source
        self._config = config
        self._verifier = verifier
        self._tls = tls
        self._clock = clock
        self._wall_clock = wall_clock
        self._connections = Connections(config.max_connections)
        self._metrics = ServiceMetrics(registry, lambda: len(self._connections))
        self._command_log = CommandLog()
        self._lookout = Lookout(
            config.max_connections, clock, "bbcache-client", self._command_log.catch_up
        )
        self._listener = Listener(config.listen, self._take, "bbcache-accept")
        self._lock = threading.Lock()  # guards _is_closed
        self._is_closed = False
        self._generation = lifecycle.generation()

    def start(self) -> Address:
        """Listen, and serve in the background.

        Returns:
            Where: with the port that it has got.

        Raises:
            ConfigError: it cannot listen there.
        """
        self._lookout.start()
        inherited.drop_in_children(self)
        try:
            self._listener.start()
        except BaseException:
            self._lookout.close(None)
            raise
        lifecycle.close_at_exit(self)
        log.info("the page service listens on %s", self.address)
        return self.address

    @property
    def address(self) -> Address:
        """Where it listens, once started."""
        return self._listener.address

    @property
    def is_serving(self) -> bool:
        """Whether clients can connect."""
        return self._listener.is_accepting

    @property
    def connection_count(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    def drain(self, timeout_s: float | None) -> bool:
        """Let every client end the command that it is at, but begin nothing new.

        Args:
            timeout_s: how long to wait for them; None waits without limit.

        Returns:
            Whether all are gone.
        """
        if self._is_inherited():
            return True
        self._listener.stop()
        self._connections.end(_shutdown())
        return self._connections.wait_empty(timeout_s)

    def begin_close(self) -> None:
        """End every connection soon, whatever it is at; waits for nobody."""
        if self._is_inherited():
            return
        self._listener.stop()
        self._connections.abort(_shutdown())
        self._lookout.begin_close()

    def close(self, timeout: float | None = None) -> None:
        """End every connection, whatever it is at, and wait for the threads.

        Args:
            timeout: seconds to wait at most; None waits without limit.
        """
        if self._is_inherited():
            return
        self.begin_close()
        is_empty = self._connections.wait_empty(timeout)
        if not is_empty:
            log.warning("%d connections are still at something", len(self._connections))
        self._listener.close(timeout)
        with self._lock:
            is_first, self._is_closed = not self._is_closed, True
        if is_first:
            self._lookout.close(timeout if is_empty else 0)
            self._command_log.catch_up()
            self._metrics.close()
            lifecycle.forget(self)

    def drop_inherited(self) -> None:
        """See `bbcache.page_service.inherited.Owner`."""
        self._listener.drop_inherited()
        self._connections.drop_inherited()
        self._lookout.drop_inherited()

    def _is_inherited(self) -> bool:
        """Whether this is a forked child, and the service its parent's."""
        return self._generation != lifecycle.generation()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close(_EXIT_TIMEOUT_S)

    def _take(self, sock: socket.socket, peer: str) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        leave = self._lookout.leave
        transport = Transport(sock, self._config.send_timeout_s, self._clock, leave)
        try:
            connection = self._connections.add(transport, peer, self._clock())
            self._metrics.refresh()
        except PageServiceError as error:
            self._refuse(transport, error)
            return
        try:
            session = self._session(connection)
            self._lookout.add(session, session.deadline_s)
        except BaseException:
            self._connections.remove(connection)
            raise

    def _session(self, connection: Connection) -> Session:
        return Session(
            connection,
            self._connections,
            self._source,
            self._config,
            self._metrics,
            self._command_log,
            self._verifier,
            self._tls.context if isinstance(self._tls, Certificate) else self._tls,
            self._clock,
            self._wall_clock,
        )

    def _refuse(self, transport: Transport, error: PageServiceError) -> None:
        """Say why, as far as that goes without waiting, and hang up."""
        self._metrics.connections[Ending.REFUSED].inc()
        with contextlib.suppress(PageServiceError):
            transport.send(
                replies.error_response("FATAL", error.sqlstate, error.simple_text()), timeout_s=0
            )
        transport.close()


def _shutdown() -> ShutdownError:
    return ShutdownError("the page service ends")
