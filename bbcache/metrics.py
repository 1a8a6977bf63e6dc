"""The Prometheus metrics of a cache: one row for each.

Names and labels without the ``bbcache_`` prefix are Neon's
(``pageserver/src/metrics.rs``). Neon's gauges count all files, these count published entries
only. Every label set exists at zero from the start. Thread-safe.

No finaliser may count: the garbage collector may run it in a thread that holds the lock
of the same counter, which is not re-entrant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bbcache.metric_rows import MetricSet, counter, counter_by, gauge, histogram_by
from bbcache.outcomes import (
    FallbackResult,
    FillResult,
    Phase,
    PrepareResult,
    ReadResult,
    RemovalReason,
    SkipReason,
)

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_NEON: Final = "pageserver_basebackup_cache"
_BUCKETS_S: Final = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1, 2, 5, 10, 20, 60, 120, 300, 600),
)


class Metrics(MetricSet):
    """The metrics of one cache, registered all or none. Gauges are read from their owners.

    Args:
        registry: where to register; None for Prometheus' default registry.

    Raises:
        ConfigError: the registry has the metrics of another cache.
    """

    reads = counter_by(
        "result", ReadResult, f"{_NEON}_read_total", "Basebackups asked of the cache."
    )
    prepares = counter_by(
        "result", PrepareResult, f"{_NEON}_prepare_total", "Prepares of basebackups."
    )
    entries = gauge(
        f"{_NEON}_entries_total",
        "Basebackups published in the cache. Neon names this gauge like a counter.",
    )
    size_bytes = gauge(f"{_NEON}_size_bytes", "Bytes of the basebackups published in the cache.")
    prepare_queue_size = gauge(f"{_NEON}_prepare_queue_size", "Prepares that wait for a worker.")
    fills = counter_by(
        "result", FillResult, "bbcache_fills_total", "Calls of get_or_prepare, by how they ended."
    )
    fallback_builds = counter_by(
        "result",
        FallbackResult,
        "bbcache_fallback_builds_total",
        "Builds in unpublished_dir, for callers of get_or_prepare, after the disk of the cache "
        "has failed or while it is read-only.",
    )
    unpublished_bytes = gauge(
        "bbcache_unpublished_bytes",
        "Bytes of archives handed out without being published, while they are built or read.",
    )
    nonentry_bytes = gauge(
        "bbcache_nonentry_bytes",
        "Bytes of foreign files, of files that could not be removed, of the quarantine, and of "
        "the saved habits.",
    )
    removals = counter_by(
        "reason",
        RemovalReason,
        "bbcache_removals_total",
        "Entries removed, other than for a newer one of their timelines.",
    )
    eviction_failures = counter(
        "bbcache_eviction_failures_total",
        "Entries that could not be removed. Nothing more is evicted until the next clean-up.",
    )
    pinned_entries = gauge(
        "bbcache_pinned_entries", "Entries that are never evicted, because their tenants say so."
    )
    free_disk_deficit_bytes = gauge(
        "bbcache_free_disk_deficit_bytes",
        "Bytes that the file system lacks of the free space that is to be left to others, at the "
        "last look. Above 0 for long is worth an alert: nothing new is published.",
    )
    prepare_skips = counter_by(
        "reason", SkipReason, "bbcache_prepare_skips_total", "Prepares skipped."
    )
    prepare_seconds = histogram_by(
        "phase", Phase, "bbcache_prepare_seconds", "Seconds that prepares took.", _BUCKETS_S
    )
    prepare_tar_bytes = counter("bbcache_prepare_tar_bytes_total", "Bytes that hosts wrote.")
    prepare_archive_bytes = counter("bbcache_prepare_archive_bytes_total", "Bytes of archives.")
    quarantined = counter(
        "bbcache_quarantined_total",
        "Bad archives taken out. Above 0 is worth an alert: the disk may be failing.",
    )
    unlink_failures = counter(
        "bbcache_unlink_failures_total", "Failed removals. Each clean-up tries again."
    )
    cleanup_errors = counter(
        "bbcache_cleanup_errors_total", "Failures of the host or the disk during a clean-up."
    )
    loaded_entries = gauge(
        "bbcache_loaded_entries",
        "Entries found on disk at the start.",
    )
    degraded = gauge(
        "bbcache_degraded",
        "1 while the cache can publish nothing, else 0. 1 is worth an alert: the status page and "
        "`degraded_reason` say why.",
    )

    def __init__(self, registry: CollectorRegistry | None) -> None:
        super().__init__(registry, "cache")

    def skipped(self, reason: SkipReason) -> None:
        """Count a prepare that was skipped, and its reason."""
        self.prepares[PrepareResult.SKIP].inc()
        self.prepare_skips[reason].inc()

    def prepared(self, tar_bytes: int, archive_bytes: int) -> None:
        """Count a prepare that has published an archive, and its bytes."""
        self.prepares[PrepareResult.OK].inc()
        self.prepare_tar_bytes.inc(tar_bytes)
        self.prepare_archive_bytes.inc(archive_bytes)

    def prepare_failed(self) -> None:
        """Count a prepare that ended in an error."""
        self.prepares[PrepareResult.ERROR].inc()
