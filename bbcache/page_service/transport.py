"""A client's socket: every wait has a deadline, and another thread can end it."""

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

from bbcache.page_service.errors import DisconnectedError, IdleTimeoutError, PageServiceError

# A whole record of TLS (RFC 8446, 5.1): what is left in TLS's own buffer is not heard of.
_READ_SIZE_BYTES: Final = 16 * 1024
_MOST_UNREAD: Final = 16  # pieces that are thrown away
_MOST_HELD_BYTES: Final = 128 * 1024
_GONE: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR
_SOCKET_ERRORS: Final = (errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)
Data = bytes | bytearray | memoryview

_BLOCKED: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Transport:
    """One connected socket.

    For one thread at a time, but for `interrupt` and `abort`, which any thread may call.

    Args:
        sock: the socket; it is closed with the transport.
        send_timeout_s: how long the client may take for each piece that is sent.
        clock: seconds that only grow.
        before_wait: to be called before what may take long; each wait here does so.

    Attributes:
        before_wait: the same.
    """

    def __init__(
        self,
        sock: socket.socket,
        send_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        before_wait: Callable[[], None] = lambda: None,
    ) -> None:
        self._sock = sock
        self._send_timeout_s = send_timeout_s
        self._clock = clock
        self.before_wait = before_wait
        self._interruption: PageServiceError | None = None
        self._is_aborted = False
        self._held: list[Data] = []  # to go with what is sent next
        self._held_bytes = 0
        self._poller = select.poll()
        sock.settimeout(0)

    @property
    def interruption(self) -> PageServiceError | None:
        """Why no more is taken from the client; None where more is."""
        return self._interruption

    @property
    def is_aborted(self) -> bool:
        """Whether `abort` was called."""
        return self._is_aborted

    @property
    def is_encrypted(self) -> bool:
        """Whether TLS is spoken."""
        return isinstance(self._sock, ssl.SSLSocket)

    def interrupt(self, reason: PageServiceError) -> None:
        """Take no more from the client: `receive` raises `reason`, now and later."""
        self._interruption = self._interruption or reason
        self._shut(socket.SHUT_RD)

    def abort(self, reason: PageServiceError) -> None:
        """End the connection whatever it is at."""
        self._is_aborted = True
        self._interruption = self._interruption or reason
        self._shut(socket.SHUT_RDWR)

    def _shut(self, how: int) -> None:
        with contextlib.suppress(OSError):
            # Not SSLSocket's own, which drops the TLS state that the other thread uses.
            socket.socket.shutdown(self._sock, how)

    def is_client_gone(self) -> bool:
        """Whether the client has closed its side; not known once interrupted."""
        if self.interruption is not None:
            return False
        self._poller.register(self._sock, _GONE)
        # An interruption meanwhile looks the same, and is known before it can be seen.
        return bool(self._poller.poll(0)) and self.interruption is None

    def start_tls(self, context: ssl.SSLContext, deadline_s: float) -> None:
        """Speak TLS from now on.

        Raises:
            DisconnectedError: the client does not, or is gone.
            IdleTimeoutError: it was not done by the deadline.
        """
        try:
            tls = context.wrap_socket(self._sock, server_side=True, do_handshake_on_connect=False)
        except OSError as error:
            raise DisconnectedError(f"no TLS could be begun: {error}") from error
        self._sock = tls
        while True:
            try:
                tls.do_handshake()
            except _BLOCKED as error:
                self._wait(error, select.POLLIN, deadline_s, IdleTimeoutError("TLS took too long"))
            except OSError as error:
                raise DisconnectedError(f"no TLS could be begun: {error}") from error
            else:
                return

    def fileno(self) -> int:
        """The descriptor of the socket; -1 once it is closed."""
        return self._sock.fileno()

    def receive(self) -> bytes | None:
        """What has come of the client, or some of it; waits for nothing.

        Returns:
            Bytes; none at the end of the stream, and None where nothing has come.

        Raises:
            DisconnectedError: the connection is broken.
            PageServiceError: the reason given to `interrupt`.
        """
        data = None
        while self._interruption is None:
            try:
                data = self._sock.recv(_READ_SIZE_BYTES)
            except ssl.SSLWantWriteError as error:  # TLS has something to say by itself
                deadline_s = self._clock() + self._send_timeout_s
                self._wait(error, select.POLLOUT, deadline_s, _slow())
            except _BLOCKED:
                break
            except OSError as error:
                raise _broken(error) from error
            else:
                break
        if self._interruption is not None:
            self.check()
        return data

    def check(self) -> None:
        """Return where more is taken from the client.

        Raises:
            PageServiceError: the reason given to `interrupt`.
        """
        if self._interruption is not None:
            # One for each client: what is raised keeps the frames that it has come through.
            raise type(self._interruption)(*self._interruption.args)

    def send(self, data: Data, *, more: bool = False, timeout_s: float | None = None) -> None:
        """Send all of `data`.

        Args:
            data: the bytes.
            more: whether more follows at once: what is short waits for it, and goes with
                it in one system call.
            timeout_s: how long the client may take for it; None for the usual time.

        Raises:
            DisconnectedError: the client is gone or does not take it.
        """
        if more and self._held_bytes + len(data) <= _MOST_HELD_BYTES:
            self._held.append(data)
            self._held_bytes += len(data)
            return
        if self._held:
            data = self._with_held(data)
        flags = socket.MSG_MORE if more and not self.is_encrypted else 0
        deadline_s = self._clock() + (self._send_timeout_s if timeout_s is None else timeout_s)
        self._send_all(memoryview(data), flags, deadline_s)

    def _with_held(self, data: Data = b"") -> bytes:
        """What was held back, and `data` behind it; nothing is held back any more."""
        joined = b"".join((*self._held, data))
        self._held.clear()
        self._held_bytes = 0
        return joined

    def _send_all(self, view: memoryview, flags: int, deadline_s: float) -> None:
        while view:
            try:
                view = view[self._sock.send(view, flags) :]
            except _BLOCKED as error:
                self._wait(error, select.POLLOUT, deadline_s, _slow())
            except OSError as error:
                raise _broken(error) from error

    def send_from(self, fd: int, offset: int, size_bytes: int) -> int:
        """Send the start of a piece of a file, without a copy through Python.

        Not for TLS.

        Returns:
            How many bytes were sent; 0 where the file ends at `offset`.

        Raises:
            DisconnectedError: the client is gone or does not take it.
            OSError: the file cannot be read.
        """
        sock_fd = self._sock.fileno()
        deadline_s = self._clock() + self._send_timeout_s
        if self._held:
            self._send_all(memoryview(self._with_held()), socket.MSG_MORE, deadline_s)
        while True:
            try:
                return os.sendfile(sock_fd, fd, offset, size_bytes)
            except BlockingIOError as error:
                self._wait(error, select.POLLOUT, deadline_s, _slow())
            except OSError as error:
                if isinstance(error, ConnectionError) or error.errno in _SOCKET_ERRORS:
                    raise _broken(error) from error
                raise

    def close(self) -> None:
        """Close the socket; what was sent is still delivered."""
        with contextlib.suppress(OSError):
            # Closing on unread bytes would be a reset, and not an end, to the client.
            for _ in range(_MOST_UNREAD):
                if not socket.socket.recv(self._sock, _READ_SIZE_BYTES):
                    break
        with contextlib.suppress(OSError):
            self._sock.close()

    def drop_inherited(self) -> None:
        """Close the descriptor in a forked child; to parent and client it is as before."""
        with contextlib.suppress(OSError):
            self._sock.close()

    def _wait(
        self, blocked: OSError, event: int, deadline_s: float, reason: PageServiceError
    ) -> None:
        """Wait until what has blocked can go on; raises `reason` at the deadline."""
        if isinstance(blocked, ssl.SSLWantReadError):
            event = select.POLLIN
        elif isinstance(blocked, ssl.SSLWantWriteError):
            event = select.POLLOUT
        self.before_wait()
        self._poller.register(self._sock, event)
        left_s = deadline_s - self._clock()
        if left_s <= 0 or not self._poller.poll(left_s * 1000 + 1):
            raise reason


def _slow() -> DisconnectedError:
    return DisconnectedError("the client does not take what it is sent")


def _broken(error: OSError) -> DisconnectedError:
    return DisconnectedError(f"the connection is broken: {error}")
