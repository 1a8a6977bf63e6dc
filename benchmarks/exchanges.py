"""Requests for archives over connections that stay open, by a client that costs little.

One loop speaks to the page service and to nginx: the request and the length of the
answer are known beforehand. The kernel discards the bytes of timed answers without a
copy (MSG_TRUNC, tcp(7)); before and after, answers are checked byte by byte.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from array import array
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, NamedTuple

from benchmarks.entries import LSN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from bbcache import TenantTimelineId
    from benchmarks.latency import Calls

_TIMEOUT_S: Final = 60
_PIECE_SIZE_BYTES: Final = 1 << 20
_PAUSE_S: Final = 0.0005
_HEAD: Final = struct.Struct("!cI")
_READY: Final = b"Z\0\0\0\5I"
_HTTP_END: Final = b"\r\n\r\n"
_NOWHERE: Final = bytearray(_PIECE_SIZE_BYTES)  # nothing is ever written there


class Server(NamedTuple):
    """A server of archives, and its protocol.

    Attributes:
        port: on loopback.
        greeting: the first bytes of a connection, which the server answers; may be empty.
        requests: the request for each archive.
        archive_of: returns the archive in a whole answer; None while it is not whole.
    """

    port: int
    greeting: bytes
    requests: Sequence[bytes]
    archive_of: Callable[[bytearray], bytes | None]


def page_server(port: int, ids: Sequence[TenantTimelineId]) -> Server:
    """Describe a page service that has archives at `LSN`."""
    startup = struct.pack("!I", 3 << 16) + b"user\0bench\0\0"
    queries = [f"basebackup {each[0]} {each[1]} {LSN} --gzip\0".encode() for each in ids]
    return Server(
        port,
        struct.pack("!I", len(startup) + 4) + startup,
        [_HEAD.pack(b"Q", len(query) + 4) + query for query in queries],
        _archive_of_copy,
    )


def http_server(port: int, names: Sequence[str]) -> Server:
    """Describe a web server that has archives at these names."""
    host = f"Host: 127.0.0.1:{port}\r\n\r\n"
    requests = [f"GET /{name} HTTP/1.1\r\n{host}".encode() for name in names]
    return Server(port, b"", requests, _archive_of_body)


def _archive_of_copy(answer: bytearray) -> bytes | None:
    if not answer.endswith(_READY):
        return None
    pieces, at, view = [], 0, memoryview(answer)
    while at + _HEAD.size <= len(answer):
        kind, length = _HEAD.unpack_from(answer, at)
        end = at + 1 + length
        if kind == b"E":
            raise ValueError(f"the page service has refused: {bytes(answer[at:])!r}")
        if kind == b"d":
            pieces.append(view[at + _HEAD.size : end])
        at = end
    return b"".join(pieces) if at == len(answer) else None


def _archive_of_body(answer: bytearray) -> bytes | None:
    head_size_bytes = answer.find(_HTTP_END) + len(_HTTP_END)
    head = bytes(answer[:head_size_bytes])
    if not head.startswith(b"HTTP/1.1 200 "):
        raise ValueError(f"the web server has refused: {head!r}")
    fields = dict(line.lower().split(b": ", 1) for line in head.splitlines()[1:-1])
    size_bytes = head_size_bytes + int(fields[b"content-length"])
    return bytes(memoryview(answer)[head_size_bytes:]) if len(answer) == size_bytes else None


class Exchange:
    """Connections to one server, kept open. For one thread; a context manager.

    Args:
        server: the server.
        connection_count: how many. Each asks for an archive of its own, as far as there
            are so many.
    """

    def __init__(self, server: Server, connection_count: int = 1) -> None:
        self._archive_of = server.archive_of
        self._opened = ExitStack()
        self._socks: list[socket.socket] = []
        self._requests = {}
        self._answer_size_bytes = 0
        for number in range(connection_count):
            sock = self._opened.enter_context(connect(server))
            self._requests[sock.fileno()] = server.requests[number % len(server.requests)]
            self._socks.append(sock)

    def check(self, archives: Sequence[bytes]) -> None:
        """Send one request over each connection, and check every byte of the answers.

        Args:
            archives: the expected archives.

        Raises:
            ValueError: an answer has other bytes, or another length than the others.
        """
        for number, sock in enumerate(self._socks):
            sock.sendall(self._requests[sock.fileno()])
            answer = bytearray()
            while (archive := self._archive_of(answer) if answer else None) is None:
                answer += _received(sock)
            if archive != archives[number % len(archives)]:
                raise ValueError("an answer has other bytes than the archive")
            if self._answer_size_bytes not in (0, len(answer)):
                raise ValueError("the answers have not all the same length")
            self._answer_size_bytes = len(answer)

    def seconds_a_request(self, budget_s: float) -> float:
        """Send requests over all connections at once, each the next one behind its answer.

        Args:
            budget_s: how long.

        Returns:
            The time that passed, divided by the number of archives.
        """
        poller = select.epoll()
        left = dict.fromkeys(self._requests, self._answer_size_bytes)
        socks = {sock.fileno(): sock for sock in self._socks}
        count, started_s = 0, time.perf_counter()
        ends_s = started_s + budget_s
        with poller:
            for fd, sock in socks.items():
                poller.register(fd, select.EPOLLIN)
                sock.send(self._requests[fd])
            while left:
                for fd, _ in poller.poll(_TIMEOUT_S):
                    left[fd] -= _thrown_away(socks[fd], left[fd])
                    if left[fd] > 0:
                        continue
                    count += 1
                    if time.perf_counter() < ends_s:
                        left[fd] = self._answer_size_bytes
                        socks[fd].send(self._requests[fd])
                    else:
                        del left[fd]
        return (time.perf_counter() - started_s) / count

    def first_byte_latencies(self, calls: Calls) -> array[int]:
        """Time the first byte of each answer, over the first connection.

        Between two requests the server has time to finish the work behind an answer,
        such as its log: no client has its next request ready within microseconds.

        Args:
            calls: how many requests.

        Returns:
            Nanoseconds.
        """
        sock, clock, taken = self._socks[0], time.perf_counter_ns, array("q")
        request = self._requests[sock.fileno()]
        until_ns = clock() + int(calls.budget_s * 1e9)
        for _ in range(calls.most):
            time.sleep(_PAUSE_S)
            started_ns = clock()
            sock.send(request)
            left_bytes = self._answer_size_bytes - _thrown_away(sock, self._answer_size_bytes)
            ended_ns = clock()
            _throw_away(sock, left_bytes)
            taken.append(ended_ns - started_ns)
            if ended_ns > until_ns:
                break
        return taken

    def latencies(self, calls: Calls) -> array[int]:
        """Time the last byte of each answer, one request after the other, without a pause."""
        sock, clock, taken = self._socks[0], time.perf_counter_ns, array("q")
        request = self._requests[sock.fileno()]
        until_ns = clock() + int(calls.budget_s * 1e9)
        for _ in range(calls.most):
            started_ns = clock()
            sock.send(request)
            _throw_away(sock, self._answer_size_bytes)
            ended_ns = clock()
            taken.append(ended_ns - started_ns)
            if ended_ns > until_ns:
                break
        return taken

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._opened.close()


def connect(server: Server) -> socket.socket:
    """Open a connection, and wait for the answer to its greeting."""
    sock = socket.create_connection(("127.0.0.1", server.port), _TIMEOUT_S)
    # Python would ask for its time-out before each call; the kernel can see to it alone.
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _TIMEOUT_S, 0))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(server.greeting)
    answer = b""
    while server.greeting and not answer.endswith(_READY):
        answer += _received(sock)
    return sock


def _received(sock: socket.socket) -> bytes:
    data = sock.recv(_PIECE_SIZE_BYTES)
    if not data:
        raise ConnectionError("the server has hung up")
    return data


def _throw_away(sock: socket.socket, size_bytes: int) -> None:
    while size_bytes:
        size_bytes -= _thrown_away(sock, size_bytes)


def _thrown_away(sock: socket.socket, most_bytes: int) -> int:
    """Discard received bytes without a copy; return how many."""
    size_bytes = sock.recv_into(_NOWHERE, min(most_bytes, _PIECE_SIZE_BYTES), socket.MSG_TRUNC)
    if size_bytes == 0:
        raise ConnectionError("the server has hung up")
    return size_bytes
