"""The Prometheus metrics of a second tier: one row for each. Thread-safe.

They need no extra, so that the status page can show them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bbcache.metric_rows import MetricSet, counter, counter_by, gauge, histogram
from bbcache.outcomes import DeleteResult, FetchResult, UploadResult

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_BUCKETS_S: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class TierMetrics(MetricSet):
    """The metrics of one tier, registered all or none. Gauges are read from their owners.

    Args:
        registry: where to register; None for Prometheus' default registry.

    Raises:
        ConfigError: the registry has the metrics of another tier.
    """

    fetches = counter_by(
        "result", FetchResult, "bbcache_tier_fetch_total", "Archives asked of the second tier."
    )
    uploads = counter_by(
        "result", UploadResult, "bbcache_tier_upload_total", "Archives offered to the second tier."
    )
    deletes = counter_by(
        "result",
        DeleteResult,
        "bbcache_tier_delete_total",
        "Objects of older archives, removed after a newer one of the timeline was stored.",
    )
    fetched_bytes = counter("bbcache_tier_fetched_bytes_total", "Bytes of objects read.")
    uploaded_bytes = counter("bbcache_tier_uploaded_bytes_total", "Bytes of objects written.")
    fetch_seconds = histogram(
        "bbcache_tier_fetch_seconds", "Seconds of the fetches that were hits.", _BUCKETS_S
    )
    first_byte_seconds = histogram(
        "bbcache_tier_first_byte_seconds",
        "Seconds until the store answered that it has an object.",
        _BUCKETS_S,
    )
    upload_seconds = histogram(
        "bbcache_tier_upload_seconds", "Seconds of the uploads that were stored.", _BUCKETS_S
    )
    upload_queue_size = gauge("bbcache_tier_upload_queue_size", "Archives that wait for an upload.")
    fetch_breaker = gauge(
        "bbcache_tier_fetch_breaker_open",
        "1 while fetches pause after failures, or while the bucket cannot be listed after the "
        "start, else 0. A minute after a pause without another attempt it is 0 again. 1 is worth "
        "an alert.",
    )
    upload_breaker = gauge(
        "bbcache_tier_upload_breaker_open",
        "1 while uploads pause after failures, else 0. A minute after a pause without another "
        "attempt it is 0 again. 1 is worth an alert.",
    )

    def __init__(self, registry: CollectorRegistry | None) -> None:
        super().__init__(registry, "tier")
