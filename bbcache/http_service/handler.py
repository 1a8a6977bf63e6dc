"""One request over HTTP: parsed from its bytes, and answered in bytes."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from bbcache.http_service.config import HttpConfig

TEXT: Final = "text/plain; charset=utf-8"
_ENDS_OF_HEAD: Final = (b"\r\n\r\n", b"\n\n")

log = logging.getLogger(__name__)


class Response(NamedTuple):
    """A response.

    Attributes:
        status: the status code.
        content_type: of the body.
        body: the bytes.
        headers: further headers.
    """

    status: HTTPStatus
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


def text_response(status: HTTPStatus, text: str) -> Response:
    """Make a response of one line of text."""
    return Response(status, TEXT, f"{text}\n".encode())


def is_whole(request: bytes | bytearray) -> bool:
    """Whether the head of a request has ended; no request here has a body."""
    return any(end in request for end in _ENDS_OF_HEAD)


class Handler(BaseHTTPRequestHandler):
    """Answers one GET or HEAD, without a socket. The constructor does all of it.

    Args:
        request: the bytes of the request.
        peer: the client, for the log.
        config: the names of this service.
        respond: gives the answer to a path and an Accept header.
    """

    server_version = "bbcache"
    sys_version = ""

    def __init__(
        self,
        request: bytes,
        peer: str,
        config: HttpConfig,
        respond: Callable[[str, str], Response],
    ) -> None:
        self._config = config
        self._respond = respond
        self._peer = peer
        self.rfile = io.BufferedReader(io.BytesIO(request))
        self.wfile = self._answered = io.BytesIO()
        self.close_connection = True
        self.handle_one_request()

    @property
    def answer(self) -> bytes:
        """The bytes to send; empty if the request gets no answer."""
        return self._answered.getvalue()

    def do_GET(self) -> None:
        """Answer with a body."""
        self._answer_path(has_body=True)

    def do_HEAD(self) -> None:
        """Answer without the body."""
        self._answer_path(has_body=False)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002 - as http.server has it
        """Answer an error of http.server's in plain text, without the request's words."""
        status = HTTPStatus(code)
        self._send(text_response(status, status.phrase), has_body=self.command != "HEAD")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as http.server has it
        """Log with no more than printable ASCII of the client."""
        log.debug("%s: %s", self._peer, ascii(format % args))

    def _answer_path(self, *, has_body: bool) -> None:
        try:
            path, host = self._target()
        except ValueError:
            self._send(text_response(HTTPStatus.BAD_REQUEST, "bad request"), has_body=has_body)
            return
        if not self._config.is_welcome(host):
            text = "this service goes by localhost or a loopback address alone"
            self._send(text_response(HTTPStatus.MISDIRECTED_REQUEST, text), has_body=has_body)
            return
        try:
            response = self._respond(path, self.headers.get("Accept", ""))
        except Exception:
            log.exception("cannot answer a request for %s", ascii(path[:100]))
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            response = text_response(status, "internal error; the log has more")
        self._send(response, has_body=has_body)

    def _target(self) -> tuple[str, str | None]:
        """Return the path and the host of the request.

        Raises:
            ValueError: it has several hosts, or its target is no URL.
        """
        hosts = self.headers.get_all("Host", [])
        if len(hosts) > 1:
            raise ValueError("several hosts")
        target, host = self.path, hosts[0] if hosts else None
        if not target.startswith("/"):  # the absolute form, which also names the host
            url = urlsplit(target)
            if url.scheme.lower() != "http" or not url.netloc:
                raise ValueError("no URL")
            target, host = url.path or "/", url.netloc
        return target.partition("?")[0], host

    def _send(self, response: Response, *, has_body: bool) -> None:
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
