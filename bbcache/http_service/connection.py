"""One connection of the HTTP service, which serves one request."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Final

from bbcache.http_service.config import HttpConfig
from bbcache.http_service.handler import Handler, Response, is_whole

_MOST_UNREAD: Final = 16  # pieces that are thrown away
_READ_SIZE_BYTES: Final = 16 * 1024
_MOST_S: Final = 1e6  # a socket takes milliseconds in an int of C

log = logging.getLogger(__name__)


class Connection:
    """A socket, and the part of a request that it has sent.

    One thread at a time calls `serve`; any thread may call `cut_off`.

    Args:
        sock: the socket; it is closed with the connection.
        peer: the client, for the log.
        config: limits.
        respond: gives the answer to a path and an Accept header.
        now_s: by the clock.

    Attributes:
        deadline_s: when the whole request must be there.
        peer: the same.
    """

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        config: HttpConfig,
        respond: Callable[[str, str], Response],
        now_s: float,
    ) -> None:
        self.deadline_s = now_s + config.timeout_s
        self.peer = peer
        self._sock = sock
        self._config = config
        self._respond = respond
        self._request = bytearray()
        sock.settimeout(0)

    def fileno(self) -> int:
        """Return the descriptor of the socket; -1 once it is closed."""
        return self._sock.fileno()

    def serve(self, now_s: float) -> bool:
        """Take input, and answer the request if it is whole.

        Returns:
            Whether more input is needed; otherwise the socket is closed.
        """
        needs_more = False
        try:
            needs_more = now_s < self.deadline_s and self._receive()
        except OSError as error:  # the client is gone, or takes nothing
            log.debug("%s: %s", self.peer, error)
        finally:
            if not needs_more:
                self.close()
        return needs_more

    def cut_off(self) -> None:
        """End the connection, also in the middle of an answer."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket after what was sent: unread bytes would make that a reset."""
        with contextlib.suppress(OSError):
            self._sock.settimeout(0)
            self._sock.shutdown(socket.SHUT_WR)
            for _ in range(_MOST_UNREAD):
                if not self._sock.recv(_READ_SIZE_BYTES):
                    break
        self.close_inherited()

    def close_inherited(self) -> None:
        """See `bbcache.lifecycle.ThreadOwner`."""
        with contextlib.suppress(OSError):
            self._sock.close()

    def _receive(self) -> bool:
        try:
            data = self._sock.recv(_READ_SIZE_BYTES)
        except BlockingIOError:
            return True
        self._request += data
        if not data or len(self._request) > self._config.max_request_size_bytes:
            return False
        if not is_whole(self._request):
            return True
        handler = Handler(bytes(self._request), self.peer, self._config, self._respond)
        self._sock.settimeout(min(self._config.timeout_s, _MOST_S))  # for all of the answer
        self._sock.sendall(handler.answer)
        return False
