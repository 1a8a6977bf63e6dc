"""An HTTP service, alone or beside a page service over a real cache, and requests to it."""

from __future__ import annotations

import http.client
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from page_service.conftest import ANY_PORT, Bench, make_bench  # noqa: F401 - a fixture
from support.cache_helpers import DEADLINE_S

from bbcache.http_service.config import HttpConfig
from bbcache.http_service.recent_errors import RecentErrors
from bbcache.http_service.routes import Routes
from bbcache.http_service.server import HttpService
from bbcache.http_service.status import StatusReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bbcache.http_service.handler import Response


class Answer(NamedTuple):
    """An answer of the service."""

    status: int
    headers: dict[str, str]
    body: bytes


class Front:
    """An HTTP service and its clients; closed at the end."""

    def __init__(self, respond: Callable[[str, str], Response], **settings: Any) -> None:
        self.asked: list[str] = []
        self._respond = respond
        self._opened = ExitStack()
        config = HttpConfig(**{"listen": ANY_PORT, "timeout_s": DEADLINE_S, **settings})
        self.service = HttpService(config, self.respond)
        self._opened.enter_context(self.service)
        self.url = f"http://{self.service.address}"

    def respond(self, path: str, accept: str) -> Response:
        """What the service answers; the path is noted."""
        self.asked.append(path)
        return self._respond(path, accept)

    def get(self, path: str = "/", method: str = "GET", **headers: str) -> Answer:
        """Ask for a path."""
        address = self.service.address
        connection = http.client.HTTPConnection(address.host, address.port, timeout=DEADLINE_S)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def socket(self) -> socket.socket:
        """A connected socket, closed at the end."""
        address = (self.service.address.host, self.service.address.port)
        sock = socket.create_connection(address, DEADLINE_S)
        self._opened.callback(sock.close)
        return sock

    def close(self) -> None:
        """Close everything."""
        self._opened.close()


@pytest.fixture
def make_front() -> Iterator[Callable[..., Front]]:
    """Make an HTTP service around a function that answers."""
    made: list[Front] = []

    def make(respond: Callable[[str, str], Response], **settings: Any) -> Front:
        made.append(Front(respond, **settings))
        return made[-1]

    yield make
    for front in made:
        front.close()


class Whole(NamedTuple):
    """A page service with its status."""

    bench: Bench
    errors: RecentErrors
    reader: StatusReader
    routes: Routes


@pytest.fixture
def whole(make_bench: Callable[[], Bench]) -> Whole:  # noqa: F811 - the fixture
    """A page service over a cache, and its status; both count in one registry."""
    bench = make_bench()
    bench.harness.settings["max_total_size_bytes"] = 1 << 20
    bench.serve(max_connections=20, in_one_registry=True)
    errors = RecentErrors(most=3)
    reader = StatusReader(
        cache=bench.harness.cache,
        cache_config=bench.harness.config,
        service=bench.service,
        registry=bench.registry,
        errors=errors,
        has_tokens=False,
        has_tls=False,
        clock=lambda: 1_000_000.0,
    )
    return Whole(bench, errors, reader, Routes(reader, bench.registry))
