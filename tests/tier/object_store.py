"""A server of ours that speaks enough of S3, and fails as it is told: for the tests of the tier."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

BUCKET: Final = "bucket"
_DATE: Final = "Mon, 30 Nov 2026 12:00:00 GMT"
_HUGE_BYTES: Final = 1 << 50
_ERROR: Final = (  # of several lines, as those of real stores
    "<?xml version='1.0'?>\n<Error><Code>{0}</Code><Message>the message of {0}</Message>"
    "<AWSAccessKeyId>hidden</AWSAccessKeyId></Error>"
)


class ObjectStore(ThreadingHTTPServer):
    """A bucket in memory, on a free port of loopback.

    Attributes:
        objects: the bytes of each object, by name.
        requests: method and name of each request, in their order.
        fault: how the next requests are answered, see `Handler`; empty if they are served.
        faulty_methods: the methods that `fault` is for.
        ignores_conditions: whether writers overwrite each other, as on some servers.
        on_request: called with method and name before each answer.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.fault = ""
        self.ignores_conditions = False
        self.faulty_methods = frozenset({"GET", "PUT", "DELETE", "LIST"})
        self.on_request: Callable[[str, str], None] = lambda *_: None
        self.ends = threading.Event()  # lets requests end that hang
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    @property
    def endpoint(self) -> str:
        """The URL of the server."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that give up are what the tests are about."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ends.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """Serves one connection, or fails: each fault is a method."""

    server: ObjectStore
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def handle_one(self, method: str) -> None:
        """Answer one request."""
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        name = unquote(parts.path).lstrip("/").partition("/")[2]
        query = parse_qs(parts.query, keep_blank_values=True)
        if "list-type" in query:
            method, name = "LIST", query.get("prefix", [""])[0]
        if "delete" in query:
            found = re.search(r"<Key>(.*?)</Key>", body.decode())
            method, name = "DELETE", "" if found is None else found[1]
        server = self.server
        server.requests.append((method, name))
        server.on_request(method, name)
        if server.fault and method in server.faulty_methods:
            getattr(self, server.fault)(server.objects.get(name, b""))
        else:
            getattr(self, f"serve_{method.lower()}")(name, body)

    def do_GET(self) -> None:
        """Read an object, or list."""
        self.handle_one("GET")

    def do_PUT(self) -> None:
        """Write an object."""
        self.handle_one("PUT")

    def do_POST(self) -> None:
        """Remove an object, as one of several."""
        self.handle_one("POST")

    def serve_get(self, name: str, _: bytes) -> None:
        """Send an object."""
        data = self.server.objects.get(name)
        if data is None:
            self.refuse(404, "NoSuchKey")
        else:
            self.answer(200, data)

    def serve_put(self, name: str, body: bytes) -> None:
        """Keep an object."""
        is_new = self.server.ignores_conditions or name not in self.server.objects
        if self.headers.get("If-None-Match") == "*" and not is_new:
            self.refuse(412, "PreconditionFailed")
            return
        self.server.objects[name] = body
        self.answer(200, b"")

    def serve_delete(self, name: str, _: bytes) -> None:
        """Forget an object."""
        self.server.objects.pop(name, None)
        self.answer(
            200, f"<DeleteResult><Deleted><Key>{name}</Key></Deleted></DeleteResult>".encode()
        )

    def serve_list(self, prefix: str, _: bytes) -> None:
        """List the objects."""
        found = "".join(
            f"<Contents><Key>{name}</Key><Size>{len(data)}</Size>"
            "<LastModified>2026-11-30T12:00:00.000Z</LastModified></Contents>"
            for name, data in sorted(self.server.objects.items())
            if name.startswith(prefix)
        )
        page = f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
        self.answer(200, page.encode())

    def answer(self, status: int, data: bytes, declared_bytes: int | None = None) -> None:
        """Send a whole answer, or one that says another length."""
        self.begin(status, len(data) if declared_bytes is None else declared_bytes)
        self.wfile.write(data)

    def begin(self, status: int, declared_bytes: int) -> None:
        """Send the head of an answer."""
        self.send_response(status)
        self.send_header("Content-Length", str(declared_bytes))
        self.send_header("ETag", '"x"')
        self.send_header("Last-Modified", _DATE)
        self.end_headers()

    def refuse(self, status: int, code: str) -> None:
        """Send an error."""
        self.answer(status, _ERROR.format(code).encode())

    def hang(self, _: bytes) -> None:
        """Never answer."""
        self.server.ends.wait()
        self.close_connection = True

    def drip(self, data: bytes) -> None:
        """Send one byte after the other, never faster than a timeout allows."""
        self.begin(200, len(data))
        for start in range(len(data)):
            self.wfile.write(data[start : start + 1])
            if self.server.ends.wait(0.01):
                break
        self.close_connection = True

    def stall(self, data: bytes) -> None:
        """Send half of the object, then nothing."""
        self.begin(200, len(data))
        self.wfile.write(data[: len(data) // 2])
        self.hang(data)

    def cut(self, data: bytes) -> None:
        """Send half of the object, then close."""
        self.answer(200, data[: len(data) // 2], len(data))
        self.close_connection = True

    def close_at_once(self, _: bytes) -> None:
        """Close without an answer."""
        self.close_connection = True

    def denied(self, _: bytes) -> None:
        """Refuse the credentials."""
        self.refuse(403, "AccessDenied")

    def no_bucket(self, _: bytes) -> None:
        """Say that the bucket is gone."""
        self.refuse(404, "NoSuchBucket")

    def slow_down(self, _: bytes) -> None:
        """Ask for fewer requests."""
        self.refuse(503, "SlowDown")

    def broken(self, _: bytes) -> None:
        """Fail inside."""
        self.refuse(500, "InternalError")

    def huge(self, data: bytes) -> None:
        """Announce far more bytes than memory has."""
        self.answer(200, data, _HUGE_BYTES)
        self.close_connection = True

    def empty(self, _: bytes) -> None:
        """Send an object without bytes."""
        self.answer(200, b"")

    def short(self, data: bytes) -> None:
        """Send an object that lacks its last byte."""
        self.answer(200, data[:-1])

    def long(self, data: bytes) -> None:
        """Send an object with one byte more."""
        self.answer(200, data + b"\0")

    def garbage(self, data: bytes) -> None:
        """Send other bytes of the same size."""
        self.answer(200, b"\xff" * len(data))

    def nonsense(self, _: bytes) -> None:
        """Answer in another protocol."""
        self.wfile.write(b"220 mail.example ESMTP\r\n")
        self.close_connection = True
