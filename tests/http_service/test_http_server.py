"""The HTTP service answers within its limits, and no client harms another."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import DEADLINE_S, MIB, Gate, Worker
from support.helpers import count_descriptors, wait_until

from bbcache.errors import ConfigError
from bbcache.http_service.config import HttpConfig
from bbcache.http_service.connection import Connection
from bbcache.http_service.handler import Response, text_response
from bbcache.http_service.server import HttpService
from bbcache.serving.listening import Address

if TYPE_CHECKING:
    from collections.abc import Callable

    from http_service.conftest import Front


def hello(path: str, accept: str) -> Response:
    """The path and the Accept header of the request."""
    return text_response(HTTPStatus.OK, f"{path} {accept}")


def test_an_answer(make_front: Callable[..., Front]) -> None:
    """Path without query, Accept header, body and headers arrive."""
    front = make_front(hello)
    answer = front.get("/x?y=1", Accept="text/html")
    assert (answer.status, answer.body) == (200, b"/x text/html\n")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Server"].strip() == "bbcache"


def test_head(make_front: Callable[..., Front]) -> None:
    """The same headers, and no body."""
    front = make_front(hello)
    answer = front.get("/x", method="HEAD", Accept="a")
    assert (answer.headers["Content-Length"], answer.body) == ("5", b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PURGE"])
def test_nothing_but_reading(make_front: Callable[..., Front], method: str) -> None:
    """Other methods are refused."""
    front = make_front(hello)
    assert front.get(method=method).status == HTTPStatus.NOT_IMPLEMENTED
    assert front.asked == []


@pytest.mark.parametrize(
    ("host", "is_welcome"),
    [
        ("localhost", True),
        ("LOCALHOST:9898", True),
        ("127.0.0.1:1", True),
        ("127.8.9.10", True),
        ("[::1]:9898", True),
        ("bbcache.example", False),
        ("bbcache.example:9898", False),
        ("localhost.example", False),
        ("10.0.0.1", False),
        ("[2001:db8::1]", False),
        ("", False),
    ],
)
def test_names_of_the_host(
    make_front: Callable[..., Front], host: str, *, is_welcome: bool
) -> None:
    """On loopback a name that a stranger's web site could have is refused."""
    front = make_front(hello)
    answer = front.get(Host=host)
    assert answer.status == (HTTPStatus.OK if is_welcome else HTTPStatus.MISDIRECTED_REQUEST)
    assert bool(front.asked) == is_welcome


def test_beyond_loopback_only_if_told(make_front: Callable[..., Front]) -> None:
    """HTTP asks for no token; told so, it listens, and takes every name."""
    with pytest.raises(ConfigError, match=r"^0\.0\.0\.0:0 is open.*\nhint: Say --allow-"):
        make_front(hello, listen=_everywhere())
    front = make_front(hello, listen=_everywhere(), allow_unauthenticated=True)
    assert front.get(Host="bbcache.example").status == HTTPStatus.OK


def _everywhere() -> Address:
    return Address("0.0.0.0", 0)  # noqa: S104 - on purpose


def test_an_answer_that_fails(
    make_front: Callable[..., Front], caplog: pytest.LogCaptureFixture
) -> None:
    """The client is told nothing of it, and the log everything."""

    def fail(_: str, __: str) -> Response:
        raise RuntimeError("secret")

    answer = make_front(fail).get("/a")
    assert answer.status == HTTPStatus.INTERNAL_SERVER_ERROR
    assert b"secret" not in answer.body
    assert "RuntimeError: secret" in caplog.text


@pytest.mark.parametrize(
    "request_",
    [
        b"\xff\xfe\x00\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1 x\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"x" * 100_000,
        b"\0\0\0\x08\x04\xd2\x16\x2f",
    ],
    ids=["bytes", "one word", "version", "words", "many headers", "long", "postgres"],
)
def test_what_is_no_request(make_front: Callable[..., Front], request_: bytes) -> None:
    """It gets an error or nothing, never an answer; and the next one is served."""
    front = make_front(hello)
    sock = front.socket()
    sock.sendall(request_)
    sock.shutdown(1)
    data = b""
    while piece := sock.recv(1000):
        data += piece
    assert b" 200 " not in data
    assert front.asked == []
    assert front.get().status == HTTPStatus.OK


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.0\r\n"])
def test_a_silent_client(make_front: Callable[..., Front], begun: bytes) -> None:
    """It has so much time as well, and then hears nothing but the end."""
    front = make_front(hello, timeout_s=0.2)
    sock = front.socket()
    sock.settimeout(DEADLINE_S / 2)
    sock.sendall(begun)
    assert sock.recv(1000) == b""


def test_a_byte_at_a_time(make_front: Callable[..., Front]) -> None:
    """The time of a request is limited, however steadily its bytes arrive."""
    front = make_front(hello, timeout_s=0.2)
    sock = front.socket()
    is_over = threading.Event()

    def drip() -> None:
        while not is_over.wait(0.01):
            try:
                sock.send(b"x")
            except OSError:
                return

    dripping = Worker(drip)
    assert sock.recv(1000) == b""
    is_over.set()
    dripping.result()


def test_a_client_that_does_not_read(make_front: Callable[..., Front]) -> None:
    """It has so much time as well, and its place is free then."""
    body = bytes(64 * MIB)
    front = make_front(
        lambda _, __: Response(HTTPStatus.OK, "x/x", body), timeout_s=1.0, max_connections=1
    )
    lazy = front.socket()
    lazy.sendall(b"GET / HTTP/1.0\r\n\r\n")
    assert lazy.recv(1)
    wait_until(lambda: front.get("/x", method="HEAD").status == HTTPStatus.OK)


def test_a_client_that_breaks_off(make_front: Callable[..., Front]) -> None:
    """In the middle of its request: its place is free then, and nothing is complained of."""
    front = make_front(hello, max_connections=1)
    sock = front.socket()
    sock.sendall(b"GET / HT")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()  # a reset
    wait_until(lambda: front.get().status == HTTPStatus.OK)


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\n"])
def test_slow_requests_do_not_keep_new_ones_waiting(
    make_front: Callable[..., Front], begun: bytes
) -> None:
    """Where there are too many, the oldest goes, and each new one is answered."""
    front = make_front(hello, max_connections=16)
    slow = [front.socket() for _ in range(16)]
    for sock in slow:
        sock.sendall(begun)
    for number in range(56):
        assert front.get("/healthz").status == HTTPStatus.OK
        if number < 16:
            slow.append(front.socket())
            slow[-1].sendall(begun)
    assert slow[0].recv(1) == b""


def test_a_close_ends_connections_that_were_cut_off(
    make_front: Callable[..., Front], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that no worker has closed yet."""
    monkeypatch.setattr(Connection, "cut_off", lambda _self: None)
    front = make_front(hello, max_connections=1)
    oldest = front.socket()
    assert front.get().status == HTTPStatus.OK
    front.service.close(DEADLINE_S)
    assert oldest.recv(1) == b""


def test_lazy_readers_do_not_keep_new_ones_waiting(make_front: Callable[..., Front]) -> None:
    """The oldest answer that is not read is cut off, too, which frees its thread."""

    def large(path: str, _: str) -> Response:
        return Response(HTTPStatus.OK, "x/x", bytes(16 * MIB if path == "/large" else 1))

    front = make_front(large, max_connections=4)
    lazy = [front.socket() for _ in range(4)]
    for sock in lazy:
        sock.sendall(b"GET /large HTTP/1.0\r\n\r\n")
        assert sock.recv(1)
    for _ in range(20):
        assert front.get("/healthz").status == HTTPStatus.OK


def test_a_request_that_is_too_long(make_front: Callable[..., Front]) -> None:
    """It ends, and is not taken for a whole one."""
    front = make_front(hello, max_request_size_bytes=1000)
    sock = front.socket()
    with contextlib.suppress(ConnectionError):
        sock.sendall(b"GET / HTTP/1.1\r\nA: " + b"x" * 1000 + b"\r\n\r\n")
        assert sock.recv(1000) == b""
    assert front.asked == []


def test_a_close_lets_requests_end(make_front: Callable[..., Front]) -> None:
    """Requests that run are answered; new ones are refused."""
    with Gate() as gate:

        def stopped(path: str, accept: str) -> Response:
            gate()
            return hello(path, accept)

        front = make_front(stopped)
        worker = Worker(front.get)
        gate.wait_for()
        front.service.close(0.01)
        with pytest.raises(OSError, match=r"refused|reset"), front.socket() as connection:
            connection.recv(1)
        gate.open()
        answer = worker.result()
        assert isinstance(answer, tuple)
        assert answer[0] == HTTPStatus.OK


def test_the_longest_time_that_is_allowed(make_front: Callable[..., Front]) -> None:
    """A service with it works as any other."""
    front = make_front(hello, timeout_s=1e9)
    assert front.get("/x").status == HTTPStatus.OK


def test_a_port_that_is_taken(make_front: Callable[..., Front]) -> None:
    """It is named."""
    address = make_front(hello).service.address
    with pytest.raises(ConfigError, match=f"cannot listen on {address}"):
        HttpService(HttpConfig(listen=address), hello).start()


def test_nothing_leaks(make_front: Callable[..., Front]) -> None:
    """After a hundred requests there are as many descriptors as before."""
    front = make_front(hello)
    for _ in range(20):
        front.get()
    before = count_descriptors()
    for _ in range(100):
        front.get()
    wait_until(lambda: count_descriptors() <= before + 2)
