"""The demo's page service, and the client that asks it as a compute node would."""

from __future__ import annotations

import tempfile
import time
from typing import TYPE_CHECKING, Final, Self

import psycopg
from prometheus_client import CollectorRegistry

from bbcache.errors import BbcacheError, PostgresError
from bbcache.outcomes import Source
from bbcache.page_service.config import Address, PageServiceConfig
from bbcache.page_service.server import PageService
from bbcache.page_service.source import CacheSource
from bbcache.pageserver import Basebackup

if TYPE_CHECKING:
    from bbcache.ids import TenantId, TimelineId
    from bbcache.pageserver import Pageserver

_ANY_PORT: Final = Address("127.0.0.1", 0)
_COUNT: Final = "pageserver_basebackup_query_seconds_count"
_COUNTED_TIMEOUT_S: Final = 60.0


class DemoService:
    """A page service over a pageserver, and a client of it. A context manager; for one thread.

    Args:
        pageserver: the pageserver.
    """

    def __init__(self, pageserver: Pageserver) -> None:
        self._pageserver = pageserver
        self._registry = CollectorRegistry()
        config = PageServiceConfig(listen=_ANY_PORT)
        self._service = PageService(
            CacheSource(pageserver.tenants, pageserver.cache, config),
            config,
            registry=self._registry,
        )

    def __enter__(self) -> Self:
        self._service.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._service.close(_COUNTED_TIMEOUT_S)

    def open_basebackup(self, tenant_id: TenantId, timeline_id: TimelineId) -> Basebackup:
        """The basebackup at the timeline's tip, fetched over the network.

        Raises:
            PostgresError: the service did not send it.
        """
        timeline = self._pageserver.tenants.get_tenant(tenant_id).get_timeline(timeline_id)
        lsn = timeline.get_last_record_lsn()
        before = self.counts()
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        try:
            for piece in self._pieces(f"basebackup {tenant_id} {timeline_id} {lsn} --gzip"):
                file.write(piece)
            file.seek(0)
            is_hit = self._wait_counted(before) is Source.HIT
        except BaseException:
            file.close()
            raise
        return Basebackup(file, lsn, is_hit)

    def counts(self) -> dict[str, float]:
        """Count the basebackups sent so far, by source."""
        labels = {"result": "ok"}
        return {
            source: self._registry.get_sample_value(_COUNT, {**labels, "bbcache_source": source})
            or 0.0
            for source in Source
        }

    def _pieces(self, command: str) -> list[bytes]:
        address = self._service.address
        try:
            with (
                psycopg.connect(host=address.host, port=address.port, user="demo") as connection,
                connection.cursor() as cursor,
                cursor.copy(command.encode()) as copy,
            ):
                return [bytes(piece) for piece in copy]
        except psycopg.Error as error:
            raise PostgresError(f"the page service sent no basebackup: {error}") from error

    def _wait_counted(self, before: dict[str, float]) -> Source:
        """Wait for the count of the last basebackup, which follows its end; return the source."""
        deadline_s = time.monotonic() + _COUNTED_TIMEOUT_S
        while True:
            now = self.counts()
            found = [source for source in Source if now[source] > before[source]]
            if found:
                return found[0]
            if time.monotonic() > deadline_s:
                raise BbcacheError("the page service did not count the basebackup that it sent")
            time.sleep(0.001)
