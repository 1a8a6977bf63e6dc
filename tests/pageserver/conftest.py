"""A pageserver's directory, which tests fill, restart and crash."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import pytest
from prometheus_client import CollectorRegistry
from support.cache_helpers import samples_of
from support.helpers import samples, wait_until

from bbcache import BasebackupCacheConfig
from bbcache.pageserver import Pageserver, make_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from conftest import ClusterFactory, Templates
    from support.warm_python import WarmPython

    from bbcache import Lsn, TenantId, TenantShardId, Tier, TimelineId
    from bbcache.pageserver import ComputeNode, PgdataTenant, PgdataTimeline
    from bbcache.postgres.server.cluster import PostgresBinaries

# Neither lasting nor busy in the background: what a test sees is what it did itself.
_SETTINGS = {
    "fsync": "off",
    "autovacuum": "off",
    "shared_buffers": "16MB",
    "max_connections": "20",
    "max_prepared_transactions": "4",
}
_METRIC = "pageserver_basebackup_cache_"
_IDLE_TIMEOUT_S = 60.0


class Address(NamedTuple):
    """Where a timeline is found."""

    tenant_id: TenantId
    timeline_id: TimelineId


class Lab:
    """One directory with a pageserver on it, and its compute nodes.

    Attributes:
        binaries: the PostgreSQL.
        warm_python: starts the processes of other pageservers on the directory.
        root: the pageserver's directory.
        settings: the server settings of its compute nodes.
        registry: the metrics of the pageserver that was opened last.
        tier: given to the pageservers that are opened.
    """

    def __init__(
        self,
        binaries: PostgresBinaries,
        templates: Templates,
        root: Path,
        warm_python: WarmPython,
    ) -> None:
        make_root(root)
        self.binaries = binaries
        self.warm_python = warm_python
        self.root = root
        self.settings = _SETTINGS
        self.registry = CollectorRegistry()
        self.tier: Tier | None = None
        self._templates = templates
        self._pageserver: Pageserver | None = None
        self._computes: list[ComputeNode] = []

    def open(self, *, streams_wal: bool = False, **settings: Any) -> Pageserver:
        """Start a pageserver on the directory, after ending the one before."""
        self.close()
        self.registry = CollectorRegistry()
        config = BasebackupCacheConfig(**settings)
        self._pageserver = Pageserver(
            self.root,
            self.binaries,
            config,
            self.registry,
            streams_wal=streams_wal,
            tier=self.tier,
        )
        assert self._pageserver.cache.wait_initialized(_IDLE_TIMEOUT_S)
        return self._pageserver

    def close(self) -> None:
        """Kill the compute nodes and close the pageserver."""
        for compute in self._computes:
            compute.kill()
        self._computes.clear()
        if self._pageserver is not None:
            self._pageserver.close()
            self._pageserver = None

    @property
    def pageserver(self) -> Pageserver:
        """The one that was opened last."""
        assert self._pageserver is not None
        return self._pageserver

    def add_timeline(
        self,
        tenant: PgdataTenant | None = None,
        sql: str = "",
        initdb_args: Sequence[str] = (),
    ) -> Address:
        """A timeline whose database has run `sql`, of a new tenant unless one is given."""
        tenant = tenant or self.pageserver.tenants.create_tenant()
        pgdata_dir = self.root / "fresh"
        self._templates.copy(self.binaries, initdb_args, pgdata_dir, sql)
        return Address(tenant.tenant_id, tenant.add_timeline(pgdata_dir).timeline_id)

    def timeline(self, address: Address) -> PgdataTimeline:
        """The timeline there."""
        return self.pageserver.tenants.get_tenant(address.tenant_id).get_timeline(
            address.timeline_id
        )

    def shard(self, address: Address) -> TenantShardId:
        """What `send_prepare` calls the tenant there."""
        return self.pageserver.tenants.get_tenant(address.tenant_id).tenant_shard_id

    def boot(self, address: Address) -> ComputeNode:
        """A started compute node from the timeline's basebackup, killed at the end."""
        with self.pageserver.open_basebackup(*address).file as archive:
            compute = self.pageserver.make_compute(*address, archive)
        self._computes.append(compute)
        compute.start(self.settings)
        return compute

    def sql(self, compute: ComputeNode, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements on a compute node, each on its own; the rows of the last."""
        rows: list[tuple[Any, ...]] = []
        with psycopg.connect(compute.cluster.conninfo(), autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement.encode())
                rows = cursor.fetchall() if cursor.description else []
        return rows

    def play(self, address: Address, *statements: str) -> Lsn:
        """One round: boot, run the statements, stop, and let the cache come to rest."""
        compute = self.boot(address)
        self.sql(compute, *statements)
        lsn = compute.stop()
        self.wait_idle()
        return lsn

    def read(self, address: Address, query: str) -> list[tuple[Any, ...]]:
        """What a query finds on a compute node from the timeline's basebackup."""
        compute = self.boot(address)
        rows = self.sql(compute, query)
        compute.kill()
        return rows

    def wait_idle(self) -> None:
        """Wait until the cache has nothing to do."""
        assert self.pageserver.cache.wait_idle(_IDLE_TIMEOUT_S)

    def wait_tip_past(self, address: Address, lsn: Lsn) -> None:
        """Wait until the following thread has seen a record behind `lsn`."""
        timeline = self.timeline(address)
        wait_until(lambda: timeline.get_last_record_lsn() > lsn)

    def archives(self) -> list[str]:
        """All files of the cache's directory but its lock."""
        names = (path.name for path in (self.root / "basebackup_cache").iterdir() if path.is_file())
        return sorted(name for name in names if not name.startswith(".bbcache."))

    def reads(self) -> dict[str, float]:
        """How many `get` ended how."""
        return self._counts("read", "hit", "miss", "error")

    def prepares(self) -> dict[str, float]:
        """How many prepares ended how."""
        return self._counts("prepare", "ok", "skip", "error")

    def skips(self) -> dict[str, float]:
        """How many prepares were skipped, by the reasons that there were."""
        prefix = "bbcache_prepare_skips_total{reason="
        found = samples(self.registry)
        return {
            name.removeprefix(prefix)[:-1]: value
            for name, value in found.items()
            if name.startswith(prefix) and value
        }

    def _counts(self, what: str, *results: str) -> dict[str, float]:
        name = f"{_METRIC}{what}_total"
        found = samples_of(self.registry, name)
        return {each: found[f"{name}{{result={each}}}"] for each in results}


@pytest.fixture
def make_lab(
    templates: Templates, make_cluster: ClusterFactory, warm_python: WarmPython
) -> Iterator[Callable[..., Lab]]:
    """Make the lab of a test, with no pageserver open yet."""
    made: list[Lab] = []

    def make(binaries: PostgresBinaries) -> Lab:
        lab = Lab(binaries, templates, make_cluster.directory / f"lab{len(made)}", warm_python)
        made.append(lab)
        return lab

    yield make
    for lab in made:
        lab.close()


@pytest.fixture
def lab(make_lab: Callable[..., Lab], newest_pg: PostgresBinaries) -> Lab:
    """A lab with a pageserver, on the newest PostgreSQL."""
    lab = make_lab(newest_pg)
    lab.open()
    return lab


@pytest.fixture
def server_dir(make_cluster: ClusterFactory) -> Callable[[Path], Path]:
    """Make an empty directory that PostgreSQL may use, beside a data directory."""

    def make(pgdata_dir: Path) -> Path:
        path = make_cluster.new_dir()
        path.mkdir(mode=0o700)
        status = pgdata_dir.stat()
        os.chown(path, status.st_uid, status.st_gid)
        return path

    return make
