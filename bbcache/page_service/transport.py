"""The socket of one client: reads never block, and sends have a time limit."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final

from bbcache.errors import ArchiveError
from bbcache.page_service.errors import DisconnectedError, ProtocolError

# A whole TLS record (RFC 8446, 5.1): data left in TLS's own buffer wakes no poller.
READ_SIZE_BYTES: Final = 16 * 1024
ALPN: Final = "postgresql"  # of libpq, for TLS without a request for it
_TLS_HANDSHAKE: Final = 0x16  # the first byte of a record with a ClientHello
_MOST_UNREAD: Final = 16  # pieces that are thrown away
_PACE_BYTES: Final = 1 << 20  # a client has `send_timeout_s` for each of these
_SLICE_S: Final = 0.2  # how often a wait looks whether it is still wanted
_GONE: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR
_SOCKET_ERRORS: Final = (errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)
_BLOCKED: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
Data = bytes | bytearray | memoryview


class Transport:
    """One connected socket, with or without TLS.

    For one thread at a time, except `stop_reading`, which any thread may call.

    Args:
        sock: the socket; the transport closes it.
        send_timeout_s: how long the client may keep the service waiting for each MiB that
            it is sent.
        check_wait: called five times a second while the client keeps the service waiting,
            with the seconds of the wait so far; what it raises ends the wait.
    """

    def __init__(
        self,
        sock: socket.socket,
        send_timeout_s: float,
        check_wait: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._sock = sock
        self._send_timeout_s = send_timeout_s
        self._check_wait = check_wait
        self._is_shaking_hands = self._needs_alpn = False
        self._paced_bytes = 0  # taken since the last whole MiB
        self._waited_s = 0.0  # for the client to take them
        self._is_torn = False  # a message was sent in part, so that nothing may follow it
        sock.settimeout(0)

    @property
    def is_encrypted(self) -> bool:
        """Whether the connection uses TLS."""
        return isinstance(self._sock, ssl.SSLSocket)

    def fileno(self) -> int:
        """Return the descriptor of the socket; -1 once it is closed."""
        return self._sock.fileno()

    def stop_reading(self) -> None:
        """Read nothing more, which wakes the poller; the transport still sends."""
        with contextlib.suppress(OSError):
            # Not SSLSocket's own, which drops the TLS state that the other thread uses.
            socket.socket.shutdown(self._sock, socket.SHUT_RD)

    def is_client_gone(self) -> bool:
        """Whether the client has closed its side; not known after `stop_reading`."""
        return self._has_event(_GONE, 0.0)

    def begins_with_tls(self) -> bool:
        """Whether the input begins like a TLS handshake; reads none of it."""
        try:
            return self._sock.recv(1, socket.MSG_PEEK)[:1] == bytes([_TLS_HANDSHAKE])
        except OSError:
            return False

    def begin_tls(self, context: ssl.SSLContext, *, needs_alpn: bool = False) -> None:
        """Speak TLS from now on; `receive` goes on with the handshake.

        Args:
            context: the server's.
            needs_alpn: whether the client has to name this protocol by ALPN.

        Raises:
            DisconnectedError: the client is gone.
        """
        try:
            self._sock = context.wrap_socket(
                self._sock, server_side=True, do_handshake_on_connect=False
            )
        except OSError as error:
            raise _no_tls(error) from error
        self._is_shaking_hands, self._needs_alpn = True, needs_alpn

    def receive(self) -> bytes | None:
        """Read input that is there; does not wait.

        Returns:
            Bytes; none at the end of the stream, None if there is no input.

        Raises:
            DisconnectedError: the connection is broken, or the client speaks no TLS.
            ProtocolError: the client has begun with TLS, and did not mean this protocol.
        """
        try:
            if self._is_shaking_hands:
                self._shake_hands()
            return self._sock.recv(READ_SIZE_BYTES)
        except _BLOCKED:  # TLS 1.2 and later never has to send before it can receive
            return None
        except OSError as error:
            raise _no_tls(error) if self._is_shaking_hands else _broken(error) from error

    def send(self, data: Data, *, more: bool = False, timeout_s: float | None = None) -> None:
        """Send all of `data`.

        Args:
            data: the bytes.
            more: whether more follows at once, which saves a packet; not for TLS.
            timeout_s: how long the client may keep the service waiting; None for the usual
                time.

        Raises:
            DisconnectedError: the client is gone, does not read, or an earlier send stopped
                within a message, so that nothing may follow.
        """
        if self._is_torn:
            raise _slow()
        view, flags = memoryview(data), socket.MSG_MORE if more else 0
        while view:
            try:
                sent_bytes = self._sock.send(view, flags)
            except _BLOCKED as error:
                self._wait(error, timeout_s)
            except OSError as error:
                raise _broken(error) from error
            else:
                self._note_taken(sent_bytes)
                view = view[sent_bytes:]

    def send_from(self, fd: int, offset: int, size_bytes: int) -> int:
        """Send the start of a piece of a file, without a copy through Python.

        Not for TLS.

        Returns:
            How many bytes were sent.

        Raises:
            ArchiveError: the file ends at `offset`.
            DisconnectedError: the client is gone or does not take it.
            OSError: the file cannot be read.
        """
        while True:
            try:
                sent_bytes = os.sendfile(self._sock.fileno(), fd, offset, size_bytes)
            except BlockingIOError as error:
                self._wait(error)
            except OSError as error:
                if isinstance(error, ConnectionError) or error.errno in _SOCKET_ERRORS:
                    raise _broken(error) from error
                raise
            else:
                if sent_bytes == 0:
                    raise ArchiveError("the archive is cut short")
                self._note_taken(sent_bytes)
                return sent_bytes

    def close(self) -> None:
        """Close the socket; data that was sent is still delivered."""
        with contextlib.suppress(OSError, ValueError):
            if isinstance(self._sock, ssl.SSLSocket):
                self._sock.unwrap()  # sends close_notify; the client's own is not waited for
        with contextlib.suppress(OSError):
            # Closing on unread bytes would be a reset, and not an end, to the client.
            for _ in range(_MOST_UNREAD):
                if not socket.socket.recv(self._sock, READ_SIZE_BYTES):
                    break
        self.close_inherited()

    def close_inherited(self) -> None:
        """Close the descriptor alone; in a forked child, where the parent goes on with it."""
        with contextlib.suppress(OSError):
            self._sock.close()

    def _has_event(self, event: int, timeout_s: float) -> bool:
        poller = select.poll()
        poller.register(self._sock, event)
        return bool(poller.poll(timeout_s * 1000))

    def _shake_hands(self) -> None:
        assert isinstance(self._sock, ssl.SSLSocket)
        self._sock.do_handshake()
        self._is_shaking_hands = False
        if self._needs_alpn and self._sock.selected_alpn_protocol() != ALPN:
            raise ProtocolError(f"direct TLS requires the ALPN protocol {ALPN!r}")

    def _note_taken(self, sent_bytes: int) -> None:
        self._paced_bytes += sent_bytes
        if self._paced_bytes >= _PACE_BYTES:
            self._paced_bytes, self._waited_s = 0, 0.0

    def _wait(self, blocked: OSError, timeout_s: float | None = None) -> None:
        """Wait until the client takes more.

        Raises:
            DisconnectedError: it has taken too long over the present MiB.
            PageServiceError: `check_wait` has raised it.
        """
        self._is_torn = True
        is_read = isinstance(blocked, ssl.SSLWantReadError)
        event = select.POLLIN if is_read else select.POLLOUT
        before_s, started_s, is_ready = self._waited_s, time.monotonic(), False
        most_s = self._send_timeout_s if timeout_s is None else before_s + timeout_s
        while not is_ready:
            left_s = most_s - self._waited_s
            if left_s <= 0:
                raise _slow()
            is_ready = self._has_event(event, min(left_s, _SLICE_S) + 0.001)
            waited_s = time.monotonic() - started_s
            self._waited_s = before_s + waited_s
            if not is_ready:
                self._check_wait(waited_s)
        self._is_torn = False


def _no_tls(error: OSError) -> DisconnectedError:
    return DisconnectedError(f"no TLS could be begun: {error}")


def _slow() -> DisconnectedError:
    return DisconnectedError("the client does not take what it is sent")


def _broken(error: OSError) -> DisconnectedError:
    return DisconnectedError(f"the connection is broken: {error}")
