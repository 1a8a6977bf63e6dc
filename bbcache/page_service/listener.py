"""A listening socket, and the thread that accepts from it."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from bbcache.errors import ConfigError
from bbcache.page_service.config import Address

_BACKLOG: Final = 1024
_PAUSE_S: Final = 0.05  # after an accept that failed, such as for want of descriptors
_WARN_PAUSE_S: Final = 1.0  # it may fail again and again
_CLOSED: Final = (errno.EINVAL, errno.EBADF)

log = logging.getLogger(__name__)


class Listener:
    """Accepts connections, and gives each to a callback. Thread-safe.

    Args:
        listen: where.
        take: called with each socket and its peer, in the accepting thread, where it must
            not wait; what it raises costs that connection alone.
        name: of the thread.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        listen: Address,
        take: Callable[[socket.socket, str], None],
        name: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listen = listen
        self._take = take
        self._socket: socket.socket | None = None  # set once, by start
        self._address: Address | None = None  # likewise
        self._clock = clock
        self._warned_s = -math.inf
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._accept_all, name=name, daemon=True)

    def start(self) -> None:
        """Listen, and accept in the background.

        Raises:
            ConfigError: it cannot listen there.
        """
        family, host = self._listen.resolve()
        try:
            self._socket = socket.create_server(
                (host, self._listen.port), family=family, backlog=_BACKLOG
            )
        except OSError as error:
            raise ConfigError(f"cannot listen on {self._listen}: {error.strerror}") from error
        self._address = Address(*self._socket.getsockname()[:2])
        self._thread.start()

    @property
    def address(self) -> Address:
        """Where it listens, or did, once started: with the port that it has got."""
        assert self._address is not None
        return self._address

    @property
    def is_accepting(self) -> bool:
        """Whether clients can connect."""
        return self._thread.is_alive() and not self._is_ending.is_set()

    def stop(self) -> None:
        """Accept no more; waits for nothing."""
        self._is_ending.set()
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes the accept

    def drop_inherited(self) -> None:
        """See `bbcache.page_service.inherited.Owner`."""
        if self._socket is not None:
            self._socket.close()

    def close(self, timeout_s: float | None) -> None:
        """Accept no more, wait for the thread, and free the port."""
        self.stop()
        if self._socket is not None:
            if self._thread.ident is not None:
                self._thread.join(timeout_s)
            self._socket.close()

    def _warn(self, error: OSError) -> None:
        now_s = self._clock()
        if now_s < self._warned_s + _WARN_PAUSE_S:
            return
        self._warned_s = now_s
        with contextlib.suppress(Exception):  # of a handler of the log
            log.warning("cannot accept a connection: %s", error.strerror)

    def _accept_all(self) -> None:
        listening = self._socket
        assert listening is not None
        while not self._is_ending.is_set():
            try:
                sock, address = listening.accept()
            except OSError as error:
                if error.errno not in _CLOSED:
                    self._warn(error)
                self._is_ending.wait(_PAUSE_S)
                continue
            try:
                self._take(sock, f"{address[0]}:{address[1]}")
            except Exception:
                sock.close()
                with contextlib.suppress(Exception):  # as above
                    log.exception("cannot serve a connection")
