"""One request, whatever its bytes are."""

from __future__ import annotations

import socket
from http import HTTPStatus

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.cache_helpers import DEADLINE_S

from bbcache.http_service.config import HttpConfig
from bbcache.http_service.handler import Handler, Response, text_response

CONFIG = HttpConfig(timeout_s=DEADLINE_S)
PIECES = st.sampled_from(
    [
        *(b"GET", b"HEAD", b"POST", b" ", b"/", b"/metrics", b"?", b"%00", b"HTTP/1.1"),
        *(b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.", b"\r\n", b"\n", b"\r", b"\0", b"Host:", b"\xff"),
        *(b" localhost", b":", b"[", b"::1]", b"Accept: ", b"Content-Length: 9999999999\r\n"),
        *(b"Expect: 100-continue\r\n", b"Transfer-Encoding: chunked\r\n", b"x" * 500),
        b"Connection: keep-alive\r\n",
    ]
)


def answer_to(request: bytes) -> tuple[bytes, list[str]]:
    """What is sent back, and which paths were asked for."""
    asked: list[str] = []

    def respond(path: str, _: str) -> Response:
        asked.append(path)
        return text_response(HTTPStatus.OK, "hello")

    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(request)
        theirs.shutdown(socket.SHUT_WR)
        Handler(ours, "peer", CONFIG, respond)
        ours.close()
        data = b""
        while piece := theirs.recv(1 << 16):
            data += piece
    return data, asked


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(PIECES | st.binary(max_size=20), max_size=30).map(b"".join))
@example(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
@example(b"GET /\r\n")
@example(b"GET / HTTP/1.1\r\nExpect: 100-continue\r\nHost: [\r\n\r\n")
def test_any_bytes(request_: bytes) -> None:
    """Nothing is raised, one request is answered at the most, and nothing of it is repeated."""
    data, asked = answer_to(request_)
    assert len(asked) <= 1
    assert data.count(b"hello") == (1 if asked and not request_.startswith(b"HEAD") else 0)
    if data.startswith(b"HTTP/1.0 "):
        assert data[9:12] in {b"100", b"200", b"400", b"414", b"421", b"431", b"501", b"505"}
    assert b"xxxxx" not in data


@pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\nA: "], ids=["line", "header"])
def test_a_request_that_is_larger_than_may_be(start: bytes) -> None:
    """What is cut off at the limit is not taken for a whole one."""
    with pytest.raises(OSError, match="longer than it may be"):
        answer_to(start + b"x" * CONFIG.max_request_size_bytes + b"\r\n\r\n")
