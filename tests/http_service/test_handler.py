"""One request, whatever its bytes are."""

from __future__ import annotations

from http import HTTPStatus

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bbcache.http_service.config import HttpConfig
from bbcache.http_service.handler import Handler, Response, text_response

CONFIG = HttpConfig()
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
    """The answer, and the paths that were asked for."""
    asked: list[str] = []

    def respond(path: str, _: str) -> Response:
        asked.append(path)
        return text_response(HTTPStatus.OK, "hello")

    return Handler(request, "peer", CONFIG, respond).answer, asked


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(PIECES | st.binary(max_size=20), max_size=30).map(b"".join))
@example(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
@example(b"GET /\r\n")
@example(b"GET / HTTP/1.1\r\nExpect: 100-continue\r\nHost: [\r\n\r\n")
def test_any_bytes(request_: bytes) -> None:
    """Nothing is raised, at most one request is answered, and nothing of it is repeated."""
    data, asked = answer_to(request_)
    assert len(asked) <= 1
    assert data.count(b"hello") == (1 if asked and not request_.startswith(b"HEAD") else 0)
    if data.startswith(b"HTTP/1.0 "):
        assert data[9:12] in {b"100", b"200", b"400", b"414", b"421", b"431", b"501", b"505"}
    assert b"xxxxx" not in data


@pytest.mark.parametrize(
    ("request_", "status", "paths"),
    [
        (b"GET http://localhost:9/x?y HTTP/1.1\r\nHost: evil\r\n\r\n", b"200", ["/x"]),
        (b"GET HTTP://127.0.0.1 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"200", ["/"]),
        (b"GET http://evil/ HTTP/1.1\r\nHost: localhost\r\n\r\n", b"421", []),
        (b"GET http://u@localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n", b"421", []),
        (b"GET https://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400", []),
        (b"GET http://[::1/ HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400", []),
        (b"GET localhost HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400", []),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", b"400", []),
        (b"GET / HTTP/1.1\r\nHost: [::1]evil\r\n\r\n", b"421", []),
        (b"GET / HTTP/1.1\r\nHost: [::1]evil:80\r\n\r\n", b"421", []),
        (b"GET / HTTP/1.1\r\nHost: evil@localhost\r\n\r\n", b"421", []),
    ],
)
def test_the_host_of_a_request(request_: bytes, status: bytes, paths: list[str]) -> None:
    """It is named once, by a whole name; that of an absolute target counts."""
    data, asked = answer_to(request_)
    assert data.split()[1] == status
    assert asked == paths
