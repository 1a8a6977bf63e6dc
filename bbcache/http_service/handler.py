"""One request over HTTP: read within limits, answered, done."""

from __future__ import annotations

import contextlib
import io
import logging
import socket
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bbcache.http_service.config import HttpConfig

if TYPE_CHECKING:
    from typing_extensions import Buffer

TEXT: Final = "text/plain; charset=utf-8"
_MOST_UNREAD: Final = 16  # pieces that are thrown away
_READ_SIZE_BYTES: Final = 16 * 1024

log = logging.getLogger(__name__)


class Response(NamedTuple):
    """What is answered.

    Attributes:
        status: HTTP's.
        content_type: of the body.
        body: the bytes.
        headers: more of them.
    """

    status: HTTPStatus
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


def text_response(status: HTTPStatus, text: str) -> Response:
    """A line of text."""
    return Response(status, TEXT, f"{text}\n".encode())


class Handler(BaseHTTPRequestHandler):
    """Answers one GET or HEAD. For one thread; the constructor does all of it.

    Args:
        sock: the connection.
        peer: the client, for the log.
        config: limits.
        respond: gives the answer to a path and an Accept header.
        clock: seconds that only grow.
    """

    server_version = "bbcache"
    sys_version = ""

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        config: HttpConfig,
        respond: Callable[[str, str], Response],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._respond = respond
        self._clock = clock
        self._peer = peer
        super().__init__(sock, peer, None)  # type: ignore[arg-type]  # neither is used but here

    def setup(self) -> None:
        """Read within the limits alone."""
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Limited(self.connection, self._config, self._clock))

    def finish(self) -> None:
        """End the answer before the connection: unread bytes would make that a reset."""
        super().finish()
        self.connection.settimeout(0)
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            for _ in range(_MOST_UNREAD):
                if not self.connection.recv(_READ_SIZE_BYTES):
                    break

    def do_GET(self) -> None:
        """Answer with a body."""
        self._answer(has_body=True)

    def do_HEAD(self) -> None:
        """Answer without the body."""
        self._answer(has_body=False)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002 - as http.server has it
        """What http.server itself has to say, in plain text and without the request's words."""
        status = HTTPStatus(code)
        self._send(text_response(status, status.phrase), has_body=self.command != "HEAD")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as http.server has it
        """Into the log, with no more than printable ASCII of the client."""
        log.debug("%s: %s", self._peer, ascii(format % args))

    def _answer(self, *, has_body: bool) -> None:
        if not self._config.is_welcome(self.headers.get("Host")):
            text = "this service goes by localhost or a loopback address alone"
            self._send(text_response(HTTPStatus.MISDIRECTED_REQUEST, text), has_body=has_body)
            return
        path = self.path.partition("?")[0]
        try:
            response = self._respond(path, self.headers.get("Accept", ""))
        except Exception:
            log.exception("cannot answer a request for %s", ascii(path[:100]))
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            response = text_response(status, "internal error; the log has more")
        self._send(response, has_body=has_body)

    def _send(self, response: Response, *, has_body: bool) -> None:
        self.connection.settimeout(self._config.timeout_s)  # for all of the answer
        self.send_response(response.status)
        for name, value in (
            ("Content-Type", response.content_type),
            ("Content-Length", str(len(response.body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Connection", "close"),
            *response.headers,
        ):
            self.send_header(name, value)
        self.end_headers()
        if has_body:
            self.wfile.write(response.body)


class _Limited(io.RawIOBase):
    """A socket's bytes, up to so many and up to a deadline for all of them."""

    def __init__(self, sock: socket.socket, config: HttpConfig, clock: Callable[[], float]) -> None:
        self._sock = sock
        self._left_bytes = config.max_request_size_bytes
        self._deadline_s = clock() + config.timeout_s
        self._clock = clock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer)[: self._left_bytes]
        left_s = self._deadline_s - self._clock()
        if left_s <= 0:
            raise TimeoutError("the request took too long")
        if not view:  # an end of the stream would make half a request a whole one
            raise ConnectionAbortedError("the request is longer than it may be")
        self._sock.settimeout(left_s)
        size_bytes = self._sock.recv_into(view)
        self._left_bytes -= size_bytes
        return size_bytes
