"""The Prometheus metrics of ``bbcache serve``: its version, its limits, what an alert needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bbcache._version import __version__
from bbcache.metric_rows import MetricSet, Row, gauge

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from prometheus_client import CollectorRegistry

    from bbcache.metric_rows import ReadGauge

LIMIT_KEYS: Final = (
    *("max_total_size_bytes", "max_size_entries", "max_unpublished_size_bytes"),
    *("prepare_channel_size", "prepare_concurrency", "max_connections", "max_pending_logins"),
    "max_fullbackup_size_bytes",
)


class DeploymentMetrics(MetricSet):
    """The metrics of one deployment.

    Args:
        registry: where to register.
        read_limit: returns a limit by its key; NaN for one that is not set.
        read_expiry: returns when the certificate expires, in seconds since 1970; NaN without
            one.
        read_fullbackup_bytes: returns the bytes of the archives of `fullbackup`.
        is_host_degraded: whether the tenants on disk are not known.
    """

    build_info: Row[Mapping[str, ReadGauge]] = Row(
        "gauge", "bbcache_build_info", "Always 1, with the version.", {"version": (__version__,)}
    )
    limits: Row[Mapping[str, ReadGauge]] = Row(
        "gauge",
        "bbcache_limit",
        "The limits in use, by their settings; NaN for one that is not set.",
        {"setting": LIMIT_KEYS},
    )
    certificate_expiry = gauge(
        "bbcache_tls_certificate_expiry_timestamp_seconds",
        "When the certificate expires, in seconds since 1970; NaN without TLS.",
    )
    fullbackup_bytes = gauge(
        "bbcache_fullbackup_bytes",
        "Bytes of the `fullbackup` archives that are built or sent, on files without names.",
    )
    host_degraded = gauge(
        "bbcache_pageserver_degraded",
        "1 while the directory of the tenants cannot be listed or believed, else 0. 1 is worth an "
        "alert.",
    )

    def __init__(
        self,
        registry: CollectorRegistry,
        read_limit: Callable[[str], float],
        read_expiry: Callable[[], float],
        read_fullbackup_bytes: Callable[[], int],
        is_host_degraded: Callable[[], bool],
    ) -> None:
        super().__init__(registry, "deployment")
        self.build_info[__version__].set(1)
        for key, limit in self.limits.items():
            limit.set_function(lambda key=key: read_limit(key))  # type: ignore[misc]  # of this turn
        self.certificate_expiry.set_function(read_expiry)
        self.fullbackup_bytes.set_function(read_fullbackup_bytes)
        self.host_degraded.set_function(is_host_degraded)
