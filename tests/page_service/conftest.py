"""A page service over a host in memory and a real cache, and clients of it."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from page_service.wire import WireClient
from prometheus_client import CollectorRegistry
from support.cache_helpers import DEADLINE_S, Harness
from support.helpers import samples, wait_until

from bbcache.page_service.config import Address, PageServiceConfig
from bbcache.page_service.server import PageService
from bbcache.page_service.source import CacheSource

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bbcache.page_service.auth.permission import Verifier
    from bbcache.page_service.source import BasebackupSource
    from bbcache.testing import MemoryTimeline

ANY_PORT = Address("127.0.0.1", 0)


class Bench:
    """A host, a cache, a service over them, and its clients; all closed at the end.

    Attributes:
        harness: the host and the cache.
        registry: the metrics of the service.
        config: the settings of the one that was started last.
    """

    def __init__(self, data_dir: Path) -> None:
        self.harness = Harness(data_dir)
        self.registry = CollectorRegistry()
        self.config = PageServiceConfig()
        self._opened = ExitStack()
        self._service: PageService | None = None
        self._is_open = False  # the harness

    def serve(
        self,
        source: BasebackupSource | None = None,
        *,
        verifier: Verifier | None = None,
        tls: ssl.SSLContext | None = None,
        in_one_registry: bool = False,
        **settings: Any,
    ) -> PageService:
        """Start a service, over the cache unless another source is given."""
        if not self._is_open:
            self._opened.enter_context(self.harness)
            self._is_open = True
        if in_one_registry:
            self.registry = self.harness.registry
        self.config = config = PageServiceConfig(**{"listen": ANY_PORT, **settings})
        self._service = PageService(
            source or self.source(config),
            config,
            verifier=verifier,
            tls=tls,
            registry=self.registry,
        )
        self._service.start()
        self._opened.callback(self._service.close, DEADLINE_S)
        return self._service

    def source(self, config: PageServiceConfig | None = None) -> CacheSource:
        """A source over the cache."""
        return CacheSource(self.harness.host, self.harness.cache, config or PageServiceConfig())

    @property
    def service(self) -> PageService:
        """The one that was started last."""
        assert self._service is not None
        return self._service

    def socket(self) -> socket.socket:
        """A connected socket, closed at the end."""
        address = (self.service.address.host, self.service.address.port)
        sock = socket.create_connection(address, DEADLINE_S)
        self._opened.callback(sock.close)
        return sock

    def client(self) -> WireClient:
        """A client that has said nothing yet."""
        return WireClient(self.socket())

    def logged_in(self, token: str | None = None) -> WireClient:
        """A client that was let in."""
        client = self.client()
        assert client.log_in(token)[-1].kind == "Z"
        return client

    def command(self, timeline: MemoryTimeline, *words: object, name: str = "basebackup") -> str:
        """A command for a timeline of the host."""
        tenant_id = self.harness.shard_of(timeline).tenant_id
        return " ".join(map(str, [name, tenant_id, timeline.timeline_id, *words]))

    def counts(self, metric: str) -> dict[str, int]:
        """The values of a metric that are not 0, by their labels."""
        return {
            name.removeprefix(metric): int(value)
            for name, value in samples(self.registry).items()
            if name.startswith(metric) and value and "bucket" not in name
        }

    def queries(self) -> dict[str, int]:
        """How many commands ended how, by result and source."""
        found = self.counts("pageserver_basebackup_query_seconds_count")
        return {
            name.replace("{result=", "").replace("}{bbcache_source=", " ").rstrip("}"): value
            for name, value in found.items()
        }

    def wait_queries(self, wanted: dict[str, int]) -> None:
        """Wait until commands have ended so: a client has its answer a moment before."""
        if wanted:
            wait_until(lambda: sum(self.queries().values()) >= sum(wanted.values()))
        assert self.queries() == wanted

    def endings(self) -> dict[str, int]:
        """How many connections ended why."""
        found = self.counts("bbcache_page_service_connections_total")
        return {name.removeprefix("{reason=").rstrip("}"): value for name, value in found.items()}

    def wait_gone(self) -> None:
        """Wait until no client is connected any more."""
        wait_until(lambda: self.service.connection_count == 0)

    def close(self) -> None:
        """Close everything."""
        self._opened.close()


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Callable[[], Bench]]:
    """Make the bench of a test, with no service yet."""
    made: list[Bench] = []

    def make() -> Bench:
        bench = Bench(tmp_path / f"cache{len(made)}")
        made.append(bench)
        return bench

    yield make
    for bench in made:
        bench.close()
    assert not [each for each in threading.enumerate() if each.name == "bbcache-poller"]


@pytest.fixture
def bench(make_bench: Callable[[], Bench]) -> Bench:
    """A bench with a service that asks for no tokens."""
    bench = make_bench()
    bench.serve()
    return bench
