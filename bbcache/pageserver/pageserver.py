"""The pageserver: tenants on disk, a basebackup cache, and compute nodes."""

from __future__ import annotations

import os
import tempfile
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from isal import igzip
from prometheus_client import CollectorRegistry

from bbcache.arguments import check_passable
from bbcache.cache import BasebackupCache
from bbcache.config import BasebackupCacheConfig
from bbcache.errors import ConfigError, PostgresError, PrepareError
from bbcache.ids import Lsn, TenantId, TenantShardId, TimelineId
from bbcache.pageserver.adoption import Adoption
from bbcache.pageserver.compute import ComputeNode
from bbcache.pageserver.compute_dir import ComputeDir
from bbcache.pageserver.metrics import PageserverMetrics
from bbcache.pageserver.tenants import PgdataTenant, PgdataTenantManager
from bbcache.pageserver.timeline import PgdataTimeline
from bbcache.postgres.pgdata.tarball import inspect_pgdata, restore_tarball
from bbcache.postgres.server.cluster import Cluster, PostgresBinaries
from bbcache.second_tier import Tier
from bbcache.spawn_arguments import close_unused
from bbcache.storage.dirlock import DirectoryLock

_ON_REQUEST_LEVEL = 2
_LOCK_NAME = ".pageserver.lock"


class Basebackup(NamedTuple):
    """An open archive, from the cache or built on request; the caller closes `file`."""

    file: BinaryIO
    lsn: Lsn
    is_hit: bool


class Pageserver:
    """A small synchronous pageserver around a `BasebackupCache`. Thread-safe.

    Args:
        root: holds the tenants, the cache and the compute nodes; an existing directory
            (`make_root` makes one), used by one pageserver at a time. Compute nodes that
            another pageserver has left there, even running, are stopped and taken over first.
        binaries: PostgreSQL's programs; None for a pageserver that only serves: it creates
            neither timelines nor compute nodes, and looks for programs only to recover a
            compute node that was left.
        config: the cache's settings; None runs without a cache.
        registry: for the metrics; None for the default one.
        streams_wal: whether the servers of compute nodes stream their WAL, which needs
            psycopg2 (``bbcache[replication]``); otherwise their files are read.
        tier: the second tier of the cache, which is asked for the basebackup of each timeline
            that is attached. The cache closes it.

    Attributes:
        tenants: the host of the cache.
        cache: the cache.

    Raises:
        ConfigError: there is no directory `root`.
        DirectoryLockedError: another pageserver uses the root, or another cache its directory.
        StoreError: the root or the cache's directory cannot be locked or used, or the tenants
            cannot be listed.
    """

    def __init__(
        self,
        root: Path,
        binaries: PostgresBinaries | None,
        config: BasebackupCacheConfig | None,
        registry: CollectorRegistry | None = None,
        *,
        streams_wal: bool = False,
        tier: Tier | None = None,
    ) -> None:
        self._binaries = binaries
        self._streams_wal = streams_wal
        self._computes_dir = root / "computes"
        # Not the cache's lock: there may be no cache, or its directory may be made again.
        self._lock = DirectoryLock(os.path.abspath(root), _LOCK_NAME, "root")
        try:
            _check_root(root)
            self._lock.acquire_unless_read_only()
        except BaseException:
            self._lock.release()
            close_unused(tier)
            raise
        with ExitStack() as opened:
            opened.callback(self._lock.release)
            self.tenants = PgdataTenantManager(root / "tenants")
            # The cache starts at once and waits: the tenants are not ready yet.
            self.cache = BasebackupCache.spawn(
                root / "basebackup_cache", config, self.tenants, registry, tier=tier
            )
            opened.callback(self.cache.close)
            if tier is not None:
                self.tenants.on_attached = self._warm
            _make_passable(self._computes_dir)
            Adoption(self._computes_dir, binaries, self.tenants).run()
            self.tenants.attach_all()
            self._metrics = PageserverMetrics(registry, self.tenants)
            opened.pop_all()

    def create_timeline(self, tenant: PgdataTenant) -> PgdataTimeline:
        """A new timeline with an empty database, made by initdb."""
        cluster = Cluster(self._programs(), self._computes_dir / uuid.uuid4().hex)
        cluster.initdb(["--no-sync"])  # the takeover syncs
        return tenant.add_timeline(cluster.pgdata_dir)

    def open_basebackup(self, tenant_id: TenantId, timeline_id: TimelineId) -> Basebackup:
        """The basebackup at the timeline's tip: from the cache, else built now.

        Raises:
            PrepareError: the timeline is unknown, or a compute node has written on it.
            PostgresError: its directory cannot be sent.
        """
        timeline = self._timeline(tenant_id, timeline_id)
        lsn = timeline.get_last_record_lsn()
        cached = self.cache.get(tenant_id, timeline_id, lsn)
        if cached is not None:
            return Basebackup(cached, lsn, is_hit=True)
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        try:
            with igzip.open(file, "wb", compresslevel=_ON_REQUEST_LEVEL) as gzip:  # type: ignore[no-untyped-call]  # isal has no types for it
                timeline.send_basebackup_tarball(gzip, lsn)
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return Basebackup(file, lsn, is_hit=False)

    def make_compute(
        self, tenant_id: TenantId, timeline_id: TimelineId, archive: BinaryIO
    ) -> ComputeNode:
        """Unpack a basebackup for a new compute node, which is not started yet.

        When the node stops, its shutdown checkpoint asks the cache for the next
        basebackup.

        Raises:
            ArchiveError: the archive is damaged.
            ConfigError: the WAL is to be streamed, but psycopg2 is not installed.
            PrepareError: the timeline has a compute node already, or has changed since
                the archive was made.
        """
        binaries, timeline = self._programs(), self._timeline(tenant_id, timeline_id)
        tenant_shard_id = self.tenants.get_tenant(tenant_id).tenant_shard_id
        timeline.lend_to_compute()
        pgdata_dir = ComputeDir.new(self._computes_dir, tenant_id, timeline_id).path
        try:
            compute = ComputeNode(
                timeline,
                binaries,
                pgdata_dir,
                lambda lsn: self.cache.send_prepare(tenant_shard_id, timeline_id, lsn),
                streams_wal=self._streams_wal,
            )
        except BaseException:
            timeline.give_up_compute()
            raise
        try:
            _restore_current(archive, pgdata_dir, timeline)
        except BaseException:
            compute.kill()
            raise
        return compute

    def close(self, timeout_s: float | None = None) -> None:
        """Close the cache. Stop the compute nodes first."""
        self.cache.close(timeout_s)
        self._metrics.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(10.0)

    def _warm(self, tenant_shard_id: TenantShardId, timeline: PgdataTimeline) -> None:
        """Fetch the basebackup for the first start of a timeline that is attached."""
        try:
            lsn = timeline.get_last_record_lsn()
        except PrepareError:  # it has broken meanwhile, which is reported
            return
        self.cache.send_warm(tenant_shard_id, timeline.timeline_id, lsn)

    def _timeline(self, tenant_id: TenantId, timeline_id: TimelineId) -> PgdataTimeline:
        return self.tenants.get_tenant(tenant_id).get_timeline(timeline_id)

    def _programs(self) -> PostgresBinaries:
        if self._binaries is None:
            raise PostgresError("this pageserver has no PostgreSQL programs")
        return self._binaries


def _restore_current(archive: BinaryIO, pgdata_dir: Path, timeline: PgdataTimeline) -> None:
    """Unpack the archive, and check that the timeline has not changed since it was made."""
    restore_tarball(archive, pgdata_dir)
    if inspect_pgdata(pgdata_dir) != inspect_pgdata(timeline.pgdata_dir):
        raise PrepareError(
            f"timeline {timeline.timeline_id} has changed since the archive was made"
        )


def make_root(root: Path) -> None:
    """Create a directory for a pageserver that PostgreSQL's user can enter.

    Does nothing if it exists.

    Raises:
        ConfigError: it cannot be created.
    """
    check_passable("the path of the root", root, ConfigError)
    try:
        _make_passable(root)
    except OSError as error:
        raise ConfigError(f"the root {root} cannot be created: {error.strerror}") from error


def _check_root(root: Path) -> None:
    """Check that the root exists. It is not created: its path may be mistyped or unmounted."""
    check_passable("the path of the root", root, ConfigError)
    try:
        os.listdir(root)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no directory {root}\n"
            "hint: Is it spelled right, and is its file system mounted? If it is to be a new one, "
            "make it first (bbcache serve: --create)."
        ) from None
    except OSError as error:
        raise ConfigError(f"the root {root} cannot be used: {error.strerror}") from error


def _make_passable(directory: Path) -> None:
    """Create a directory that PostgreSQL's user can enter if this process is root."""
    if not directory.is_dir():
        directory.mkdir(parents=True)
        directory.chmod(0o711)  # whatever the umask
