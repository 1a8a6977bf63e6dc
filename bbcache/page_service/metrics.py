"""The Prometheus metrics of a page service: one row for each. Thread-safe.

Names, results and buckets without the ``bbcache_`` prefix are Neon's
(``pageserver/src/metrics.rs``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Histogram

from bbcache.metric_rows import MetricSet, Row, counter, counter_by, gauge
from bbcache.outcomes import Outcome, Source
from bbcache.page_service.errors import Ending, error_kinds

_BUCKETS_S: Final = (
    *(0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4),
    *(0.45, 0.5, 0.6, 0.8, 1, 1.5, 2, 2.5, 3, 5, 10, 20, 40, 60),
)
NO_ORIGIN: Final = "none"


class Result(Outcome):
    """How a command ended."""

    OK = "ok", "the client has the whole archive"
    ERROR = "error", "the command, the host or the cache failed"
    CLIENT_ERROR = "client_error", "the client cancelled the command or disconnected"


class ServiceMetrics(MetricSet):
    """The metrics of one service, registered all or none.

    Args:
        registry: where to register; None for Prometheus' default registry.
        connection_count: how many clients are connected.

    Raises:
        ConfigError: the registry has the metrics of another service.
    """

    commands = counter_by(
        "command",
        ("Basebackup", "Fullbackup"),
        "pageserver_compute_commands_total",
        "Commands of compute nodes that their clients may give.",
    )
    query_seconds: Row[Mapping[tuple[str, str], Histogram]] = Row(
        "histogram",
        "pageserver_basebackup_query_seconds",
        "Seconds that basebackup commands took. The source is `none` without an archive.",
        {"result": Result, "bbcache_source": (*Source, NO_ORIGIN)},
        buckets=_BUCKETS_S,
    )
    connections = counter_by(
        "reason", Ending, "bbcache_page_service_connections_total", "Connections that ended."
    )
    errors = counter_by(
        "sqlstate",
        tuple(sorted({kind.sqlstate for kind in error_kinds()})),
        "bbcache_page_service_errors_total",
        "Errors that clients were told, by SQLSTATE; docs/page-service.md has what they mean.",
    )
    copied_bytes = counter("bbcache_page_service_copied_bytes_total", "Bytes of archives sent.")
    connected = gauge("bbcache_page_service_connected", "Clients connected.")

    def __init__(
        self, registry: CollectorRegistry | None, connection_count: Callable[[], int]
    ) -> None:
        super().__init__(registry, "page service")
        self.connected.read_from(connection_count)
