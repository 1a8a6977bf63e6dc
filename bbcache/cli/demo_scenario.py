"""The steps and the checks of the demo; nothing here prints."""

from __future__ import annotations

import gzip
import time
import zlib
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import psycopg
from isal import isal_zlib
from prometheus_client import CollectorRegistry

from bbcache.cli.demo_service import DemoService
from bbcache.config import BasebackupCacheConfig
from bbcache.errors import BbcacheError, PostgresError
from bbcache.outcomes import Source
from bbcache.pageserver import Pageserver, make_root
from bbcache.postgres.server.cluster import PostgresBinaries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bbcache.ids import Lsn, TenantId, TimelineId
    from bbcache.pageserver import Basebackup, ComputeNode, PgdataTenant, PgdataTimeline

ROWS_PER_SCALE: Final = 20_000
STEPS_PER_ROUND: Final = 3
EXTRA_STEPS: Final = 4
_PIECE_SIZE_BYTES: Final = 1 << 20
_SAMPLE_SIZE_BYTES: Final = 8 << 20  # half a second for the slowest codec
_IDLE_TIMEOUT_S: Final = 60.0
_FOLLOW_TIMEOUT_S: Final = 60.0
_SETTINGS: Final = {"fsync": "off"}  # the takeover of a node syncs its directory
_CREATE = "create table if not exists work (round int, id int, amount bigint)"
_INSERT = (
    "insert into work select %(round)s, id, (id::bigint * 7919 + %(round)s * 104729) %% 1000003 "
    "from generate_series(1, %(rows)s) id"
)
_SUMS = "select round, count(*), sum(amount)::bigint from work group by round order by round"


@dataclass(frozen=True)
class Round:
    """One life of a compute node; all times in seconds."""

    number: int
    is_hit: bool
    lsn: Lsn
    get_s: float
    unpack_s: float
    start_s: float
    archive_bytes: int
    build_s: float  # of the next basebackup, in the background


@dataclass(frozen=True)
class Codec:
    """The time and size of one codec on a sample of the last tarball, in memory."""

    name: str
    seconds: float
    sample_bytes: int
    size_bytes: int


@dataclass
class Report:
    """The results of the demo; `failures` is empty if every check has passed."""

    postgres_version: str
    rounds: list[Round] = field(default_factory=list)
    tar_bytes: int = 0
    codecs: list[Codec] = field(default_factory=list)
    cleaned_lsn: Lsn | None = None
    is_via_page_service: bool = False
    has_two_nodes: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


class Scenario:
    """The steps of the demo.

    Args:
        directory: the directory for everything.
        pg_bin: PostgreSQL's programs; None looks for them.
        round_count: how many compute nodes to run, one after the other.
        scale: how much each of them writes.
        progress: called with the next step, `STEPS_PER_ROUND` times a round and
            `EXTRA_STEPS` times more.
        is_via_page_service: whether basebackups are fetched over the network.

    Raises:
        PostgresError: there is no PostgreSQL.
    """

    def __init__(
        self,
        directory: Path,
        pg_bin: Path | None,
        round_count: int,
        scale: int,
        progress: Callable[[str], None],
        *,
        is_via_page_service: bool = False,
    ) -> None:
        self._directory = directory
        self._binaries = PostgresBinaries.find(pg_bin)
        self._round_count = round_count
        self._row_count = scale * ROWS_PER_SCALE
        self._progress = progress
        self._registry = CollectorRegistry()
        self._sums: list[tuple[int, int, int]] = []  # the expected contents of the table
        self._open: Callable[[TenantId, TimelineId], Basebackup]  # set by run
        self._service: DemoService | None = None  # likewise
        self.report = Report(str(self._binaries.version), is_via_page_service=is_via_page_service)

    def run(self) -> Report:
        """Run all steps.

        Raises:
            BbcacheError: PostgreSQL or the disk failed.
        """
        config = BasebackupCacheConfig()
        make_root(self._directory)
        with ExitStack() as opened:
            pageserver = opened.enter_context(
                Pageserver(self._directory, self._binaries, config, self._registry)
            )
            self._open = pageserver.open_basebackup
            if self.report.is_via_page_service:
                self._service = opened.enter_context(DemoService(pageserver))
                self._open = self._service.open_basebackup
            self._progress("creating a tenant with one timeline (initdb)")
            tenant = pageserver.tenants.create_tenant()
            timeline = pageserver.create_timeline(tenant)
            for number in range(1, self._round_count + 1):
                self._play_round(pageserver, tenant, timeline, number)
            self._progress("compressing a sample of the last tarball with other codecs")
            self._compare_codecs(tenant, timeline)
            self._progress("writing on a running compute node, and cleaning up")
            self._outgrow(pageserver, tenant, timeline)
            self._progress("reading the metrics")
            self._read_metrics()
        return self.report

    def _play_round(
        self, pageserver: Pageserver, tenant: PgdataTenant, timeline: PgdataTimeline, number: int
    ) -> None:
        self._progress(f"round {number}: getting the basebackup, starting PostgreSQL")
        with self._compute(pageserver, tenant, timeline) as life:
            compute, timings = life
            built_before_s = self._build_seconds()
            self._progress(f"round {number}: working with SQL")
            self._work(compute, number)
            self._progress(f"round {number}: stopping; the next basebackup is prepared")
            lsn = compute.stop()
        self._check(pageserver.cache.wait_idle(_IDLE_TIMEOUT_S), "the cache is still busy")
        entries = [
            entry
            for entry in pageserver.cache.entries()
            if entry.timeline_id == timeline.timeline_id
        ]
        self._check(
            [entry.lsn for entry in entries] == [lsn],
            f"after round {number} the cache has {entries}, not one basebackup at {lsn}",
        )
        self._check(
            timings.is_hit == (number > 1),
            f"round {number} was a {'hit' if timings.is_hit else 'miss'}",
        )
        self.report.rounds.append(
            Round(
                number,
                timings.is_hit,
                lsn,
                timings.get_s,
                timings.unpack_s,
                timings.start_s,
                entries[0].size_bytes if entries else 0,
                self._build_seconds() - built_before_s,
            )
        )

    @contextmanager
    def _compute(
        self, pageserver: Pageserver, tenant: PgdataTenant, timeline: PgdataTimeline
    ) -> Iterator[tuple[ComputeNode, _Timings]]:
        """Start a compute node and time it; kill it if the block fails."""
        ids = tenant.tenant_id, timeline.timeline_id
        begun_s = time.perf_counter()
        basebackup = self._open(*ids)
        got_s = time.perf_counter()
        with basebackup.file:
            compute = pageserver.make_compute(*ids, basebackup.file)
        unpacked_s = time.perf_counter()
        try:
            compute.start(_SETTINGS)
            psycopg.connect(compute.cluster.conninfo()).close()
            started_s = time.perf_counter()
            yield (
                compute,
                _Timings(
                    basebackup.is_hit,
                    got_s - begun_s,
                    unpacked_s - got_s,
                    started_s - unpacked_s,
                ),
            )
        except BaseException as error:
            compute.kill()
            if isinstance(error, psycopg.Error):
                raise PostgresError(f"a compute node failed: {error}") from error
            raise

    def _work(self, compute: ComputeNode, number: int) -> None:
        with psycopg.connect(compute.cluster.conninfo()) as connection:
            connection.execute(_CREATE)
            found = connection.execute(_SUMS).fetchall()
            self._check(found == self._sums, f"round {number} found other data: {found}")
            connection.execute(_INSERT, {"round": number, "rows": self._row_count})
            amounts = (
                (i * 7919 + number * 104729) % 1000003 for i in range(1, self._row_count + 1)
            )
            self._sums.append((number, self._row_count, sum(amounts)))
            found = connection.execute(_SUMS).fetchall()
            self._check(found == self._sums, f"round {number} wrote other data: {found}")

    def _compare_codecs(self, tenant: PgdataTenant, timeline: PgdataTimeline) -> None:
        basebackup = self._open(tenant.tenant_id, timeline.timeline_id)
        with basebackup.file:
            tar = gzip.decompress(basebackup.file.read())
        self.report.tar_bytes = len(tar)
        sample = _sample(tar)
        for name, compress in (
            ("ISA-L level 2", _isal_2),
            ("zlib level 6", _zlib_6),
            ("gzip level 9", lambda data: gzip.compress(data, 9)),
        ):
            begun_s = time.perf_counter()
            size_bytes = len(compress(sample))
            seconds = time.perf_counter() - begun_s
            self.report.codecs.append(Codec(name, seconds, len(sample), size_bytes))

    def _outgrow(
        self, pageserver: Pageserver, tenant: PgdataTenant, timeline: PgdataTimeline
    ) -> None:
        """Show that a running compute node's old basebackup is cleaned away."""
        lsn = timeline.get_last_record_lsn()
        with self._compute(pageserver, tenant, timeline) as (compute, timings):
            self._check(timings.is_hit, "the start after the last round was a miss")
            self._work(compute, self._round_count + 1)
            deadline_s = time.monotonic() + _FOLLOW_TIMEOUT_S
            while timeline.get_last_record_lsn() <= lsn:
                if time.monotonic() > deadline_s:
                    raise BbcacheError(f"the WAL of the compute node stays at {lsn}")
                time.sleep(0.01)
            pageserver.cache.run_cleanup()
            left = pageserver.cache.get(tenant.tenant_id, timeline.timeline_id, lsn)
            self._check(left is None, f"the outgrown basebackup at {lsn} is still served")
            names = [path.name for path in (self._directory / "basebackup_cache").iterdir()]
            is_gone = not any(str(timeline.timeline_id) in name for name in names)
            self._check(is_gone, f"the file of the outgrown basebackup at {lsn} is still there")
            if left is not None:
                left.close()
            elif is_gone:
                self.report.cleaned_lsn = lsn
            compute.stop()
        self._check(pageserver.cache.wait_idle(_IDLE_TIMEOUT_S), "the cache is still busy")

    def _read_metrics(self) -> None:
        self.report.metrics = {
            sample.name + "".join(f"{{{k}={v}}}" for k, v in sample.labels.items()): sample.value
            for family in self._registry.collect()
            for sample in family.samples
            if not sample.name.endswith(("_created", "_bucket"))
        }
        read, prepare = (
            "pageserver_basebackup_cache_read_total",
            "pageserver_basebackup_cache_prepare_total",
        )
        expected = {
            f"{read}{{result=hit}}": self._round_count + 1,  # and one for the codecs
            f"{read}{{result=miss}}": 2,  # the first round, and the one cleaned away
            f"{read}{{result=error}}": 0,
            f"{prepare}{{result=ok}}": self._round_count + 1,
            f"{prepare}{{result=error}}": 0,
        }
        if self._service is not None:
            expected[f"{prepare}{{result=ok}}"] += 1  # a miss fills the cache then
            self._read_service_metrics(self._service, expected)
        for name, value in expected.items():
            found = self.report.metrics.get(name)
            self._check(found == value, f"{name} is {found}, not {value}")

    def _read_service_metrics(self, service: DemoService, expected: dict[str, int]) -> None:
        counts = {
            f"basebackups sent by the service{{bbcache_source={source}}}": count
            for source, count in service.counts().items()
        }
        self.report.metrics.update(counts)
        wanted = {Source.HIT: self._round_count + 1, Source.BUILT: 1}
        expected.update(zip(counts, (wanted.get(each, 0) for each in Source), strict=True))

    def _build_seconds(self) -> float:
        labels = {"phase": "build"}
        return self._registry.get_sample_value("bbcache_prepare_seconds_sum", labels) or 0.0

    def _check(self, is_true: bool, otherwise: str) -> None:
        if not is_true:
            self.report.failures.append(otherwise)


@dataclass(frozen=True)
class _Timings:
    is_hit: bool
    get_s: float
    unpack_s: float
    start_s: float


def _sample(tar: bytes) -> bytes:
    """Take pieces from all over a tarball, `_SAMPLE_SIZE_BYTES` at most."""
    starts = range(0, len(tar), _PIECE_SIZE_BYTES)
    step = -(-len(tar) // _SAMPLE_SIZE_BYTES)
    return b"".join(tar[start : start + _PIECE_SIZE_BYTES] for start in starts[:: step or 1])


def _isal_2(data: bytes) -> bytes:
    stream = isal_zlib.compressobj(2, isal_zlib.DEFLATED, 31)
    view = memoryview(data)
    pieces = [
        stream.compress(view[start : start + _PIECE_SIZE_BYTES])
        for start in range(0, len(view), _PIECE_SIZE_BYTES)
    ]
    return b"".join([*pieces, stream.flush()])


def _zlib_6(data: bytes) -> bytes:
    stream = zlib.compressobj(6, zlib.DEFLATED, 31)
    return stream.compress(data) + stream.flush()
