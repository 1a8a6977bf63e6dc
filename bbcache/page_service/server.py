"""The page service: it listens, and its threads serve all clients."""

from __future__ import annotations

import logging
import os
import socket
import ssl
from collections.abc import Sequence
from typing import Final, Self

from prometheus_client import CollectorRegistry

from bbcache import lifecycle
from bbcache.page_service.auth.permission import Verifier
from bbcache.page_service.auth.tls import Certificate
from bbcache.page_service.clients import Clients
from bbcache.page_service.config import Address, PageServiceConfig
from bbcache.page_service.errors import (
    ShutdownError,
    TooManyConnectionsError,
)
from bbcache.page_service.metrics import ServiceMetrics
from bbcache.page_service.service import Service
from bbcache.page_service.session import Session, Turn
from bbcache.page_service.source import BasebackupSource
from bbcache.serving.listening import address_of, open_listeners
from bbcache.serving.poller import Poller
from bbcache.serving.workers import Workers

_EXIT_TIMEOUT_S: Final = 10.0
_LINGER_S: Final = 0.005  # the next command of a busy client comes within it
_LOGINS_AT_ONCE: Final = 2 * (os.cpu_count() or 1)  # their steps wait for nothing
_SPARE_THREADS: Final = 2  # for clients that their first command gives a place, or refuses one

log = logging.getLogger(__name__)


class PageService:
    """Gives basebackups to PostgreSQL clients. Thread-safe.

    Close it, or use it in a ``with`` block. At the exit of the interpreter it is closed
    in time for its threads. In a forked child it is inert, and has no sockets.

    Args:
        source: where archives come from.
        config: the settings.
        verifier: verifies tokens; None allows every client everything.
        tls: a context, or a certificate, of which each new connection takes the context of
            that moment. Clients must use TLS then. None without TLS. A context needs
            ``set_alpn_protocols(["postgresql"])`` for clients that begin with TLS.
        registry: for the metrics; None for Prometheus' default registry.
        listeners: sockets that listen already, in the place of the addresses of `config`.

    Attributes:
        config: the same.

    Raises:
        ConfigError: other machines could connect, which the settings do not allow; or the
            registry has the metrics of another service.
    """

    def __init__(
        self,
        source: BasebackupSource,
        config: PageServiceConfig,
        *,
        verifier: Verifier | None = None,
        tls: ssl.SSLContext | Certificate | None = None,
        registry: CollectorRegistry | None = None,
        listeners: Sequence[socket.socket] = (),
    ) -> None:
        self.config = config
        self._listeners = listeners
        self._addresses: tuple[Address, ...] = tuple(map(address_of, listeners))
        config.check_exposure(
            has_tokens=verifier is not None,
            has_tls=tls is not None,
            addresses=self._addresses or config.addresses,
        )
        self._clients = Clients(config.max_connections, config.max_pending_logins)
        self._metrics = ServiceMetrics(registry, lambda: len(self._clients))
        self._login_workers: Workers[Session] = Workers(
            _LOGINS_AT_ONCE, self._serve, name="bbcache-login"
        )
        self._workers: Workers[Session] = Workers(
            config.max_connections + _SPARE_THREADS,
            self._serve,
            name="bbcache-client",
            group_of=lambda session: session.tenant_id,
            take=self._take,
        )
        self._poller: Poller[Session] = Poller(self._give, self._accept, "bbcache-poller")
        self._service = Service(
            source,
            config,
            self._metrics,
            self._clients,
            verifier,
            (lambda: tls.context if isinstance(tls, Certificate) else tls) if tls else None,
            self._workers.must_yield,
        )
        self._generation = lifecycle.generation()

    def start(self) -> Address:
        """Listen, and serve in the background.

        Returns:
            The first address, with the port that it has got.

        Raises:
            ConfigError: it cannot listen there.
        """
        listeners = self._listeners or open_listeners(self.config.addresses)
        self._addresses = tuple(map(address_of, listeners))
        lifecycle.close_in_children(self)
        self._login_workers.start()
        self._workers.start()
        self._poller.start(listeners)
        lifecycle.close_at_exit(self)
        log.info("the page service listens on %s", ", ".join(map(str, self._addresses)))
        return self.address

    @property
    def address(self) -> Address:
        """The first address that it listens on, once started."""
        return self._addresses[0]

    @property
    def addresses(self) -> tuple[Address, ...]:
        """All addresses that it listens on, once started."""
        return self._addresses

    @property
    def is_serving(self) -> bool:
        """Whether clients can connect."""
        return self._poller.is_accepting

    @property
    def connection_count(self) -> int:
        """How many clients are connected."""
        return len(self._clients)

    def drain(self, timeout_s: float | None) -> bool:
        """Let every client finish the command that runs, but begin nothing new.

        Args:
            timeout_s: how long to wait for them; None waits without limit.

        Returns:
            Whether all are gone.
        """
        if self._is_inherited():
            return True
        self._poller.stop_accepting()
        self._clients.end(_shutdown(), is_immediate=False)
        return self._clients.wait_empty(timeout_s)

    def begin_close(self) -> None:
        """End every connection soon, whatever it does; waits for nothing."""
        if self._is_inherited():
            return
        self._poller.stop_accepting()
        self._clients.end(_shutdown(), is_immediate=True)

    def close(self, timeout: float | None = None) -> None:
        """End every connection, whatever it does, and wait for the threads.

        Args:
            timeout: seconds to wait at most; None waits without limit.
        """
        if self._is_inherited():
            return
        self.begin_close()
        if not self._clients.wait_empty(timeout):
            log.warning("%d connections have not ended in time", len(self._clients))
        self._poller.close(timeout)  # first, since it gives connections to the workers
        if all([self._login_workers.close(timeout), self._workers.close(timeout)]):
            self._metrics.close()
            lifecycle.forget(self)

    def close_inherited(self) -> None:
        """See `bbcache.lifecycle.ThreadOwner`."""
        self._poller.close_inherited()
        self._clients.close_inherited()

    def _is_inherited(self) -> bool:
        """Whether this is a forked child, and the service its parent's."""
        return self._generation != lifecycle.generation()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close(_EXIT_TIMEOUT_S)

    def _accept(self, sock: socket.socket, peer: str) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        session = Session(self._service, sock, peer)
        if self._workers.is_short:
            session.say_farewell(TooManyConnectionsError("no thread can be begun"), 0.0)
            session.close()
            return
        self._clients.add(session)
        self._metrics.refresh()
        self._watch(session)

    def _give(self, session: Session) -> None:
        """Have a session served by a thread of its own pool."""
        (self._workers if session.is_logged_in else self._login_workers).add(session)

    def _take(self) -> Session | None:
        """Return the next session that is logged in and has input, for a worker that is free."""
        session = self._poller.take(_LINGER_S)
        while session is not None and not session.is_logged_in:
            self._login_workers.add(session)
            # Strangers without end must not keep the last thread from clients that wait for it.
            session = None if self._workers.is_short else self._poller.take(_LINGER_S)
        return session

    def _serve(self, session: Session) -> None:
        """Serve a turn of a session, in a thread of the pool."""
        turn = session.serve()
        if turn is Turn.WAIT:
            self._watch(session)
        elif turn is Turn.MORE:
            self._poller.rest(session)

    def _watch(self, session: Session) -> None:
        try:
            self._poller.watch(session)
        except OSError as error:
            session.close()
            log.warning("a client cannot be watched: %s", error.strerror)


def _shutdown() -> ShutdownError:
    return ShutdownError("the page service ends")
