"""The HTTP service: it listens, and gives each request a thread of a bounded pool."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Self

from bbcache import lifecycle
from bbcache.http_service.config import HttpConfig
from bbcache.http_service.handler import Handler, Response
from bbcache.page_service import inherited
from bbcache.page_service.config import Address
from bbcache.page_service.listener import Listener

_EXIT_TIMEOUT_S: Final = 10.0
_BUSY: Final = b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

log = logging.getLogger(__name__)


class HttpService:
    """Answers requests over HTTP. Thread-safe.

    Close it, or use it in a ``with`` block. At the exit of the interpreter it is closed
    in time for its threads. In a forked child it is inert, and does not listen.

    Args:
        config: where, and the limits.
        respond: gives the answer to a path and an Accept header; called by many threads.
    """

    def __init__(self, config: HttpConfig, respond: Callable[[str, str], Response]) -> None:
        self._config = config
        self._respond = respond
        self._places = threading.Semaphore(config.max_connections)
        self._pool = ThreadPoolExecutor(config.max_connections, "bbcache-http")
        self._listener = Listener(config.listen, self._take, "bbcache-http-accept")
        self._generation = lifecycle.generation()

    def start(self) -> Address:
        """Listen, and serve in the background.

        Returns:
            Where: with the port that it has got.

        Raises:
            ConfigError: it cannot listen there.
        """
        inherited.drop_in_children(self._listener)
        self._listener.start()
        lifecycle.close_at_exit(self)
        return self.address

    @property
    def address(self) -> Address:
        """Where it listens, once started."""
        return self._listener.address

    def begin_close(self) -> None:
        """Take no more requests; waits for nobody."""
        self._listener.stop()

    def close(self, timeout: float | None = None) -> None:
        """Take no more requests; those under way end by themselves, and soon.

        Args:
            timeout: seconds to wait at most for the accepting thread; None waits without limit.
        """
        if self._generation != lifecycle.generation():
            return
        self._listener.close(timeout)
        self._pool.shutdown(wait=False)
        lifecycle.forget(self)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close(_EXIT_TIMEOUT_S)

    def _take(self, sock: socket.socket, peer: str) -> None:
        if not self._places.acquire(blocking=False):
            with sock, contextlib.suppress(OSError):
                sock.settimeout(0)
                sock.send(_BUSY)
            return
        try:
            self._pool.submit(self._serve, sock, peer)
        except BaseException:
            self._places.release()
            raise

    def _serve(self, sock: socket.socket, peer: str) -> None:
        try:
            with sock:
                Handler(sock, peer, self._config, self._respond)
        except OSError as error:  # the client has gone, or takes nothing
            log.debug("%s: %s", peer, error)
        except Exception:
            log.exception("cannot serve a request")
        finally:
            self._places.release()
