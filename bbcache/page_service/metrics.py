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
from bbcache.page_service.errors import (
    BadTokenError,
    DisconnectedError,
    IdleTimeoutError,
    PageServiceError,
    ProtocolError,
    ShutdownError,
    TlsRequiredError,
    TooManyConnectionsError,
    error_kinds,
)

_BUCKETS_S: Final = (
    *(0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4),
    *(0.45, 0.5, 0.6, 0.8, 1, 1.5, 2, 2.5, 3, 5, 10, 20, 40, 60),
)
_NO_ORIGIN: Final = "none"


SQLSTATES: Final = tuple(sorted({kind.sqlstate for kind in error_kinds()}))


class Result(Outcome):
    """How a command ended."""

    OK = "ok", "the client has the whole archive"
    ERROR = "error", "the command, the host or the cache failed"
    CLIENT_ERROR = "client_error", "the client cancelled the command or disconnected"


class Ending(Outcome):
    """Why a connection ended."""

    CLOSED = "closed", "the client closed it"
    BROKEN = "broken", "the network or the client broke it off"
    PROTOCOL = "protocol", "the client broke the protocol"
    UNAUTHORIZED = "unauthorized", "the client had no valid token"
    TIMEOUT = "timeout", "the client was idle or slow for too long"
    REFUSED = "refused", "there were too many connections"
    SHUTDOWN = "shutdown", "the service shut down"
    FAILED = "failed", "the service failed; the log says why"


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
        {"result": Result, "bbcache_source": (*Source, _NO_ORIGIN)},
        buckets=_BUCKETS_S,
    )
    connections = counter_by(
        "reason", Ending, "bbcache_page_service_connections_total", "Connections that ended."
    )
    errors = counter_by(
        "sqlstate",
        SQLSTATES,
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

    def commanded(self, *, is_full: bool) -> None:
        """Count a command that its client may give."""
        self.commands["Fullbackup" if is_full else "Basebackup"].inc()

    def served(self, result: Result, origin: Source | None, seconds: float) -> None:
        """Count a command that has ended."""
        self.query_seconds[result, origin or _NO_ORIGIN].observe(seconds)


def ending_of(error: PageServiceError) -> Ending:
    """Say under which reason a connection is counted that an error has ended."""
    kinds: dict[type[PageServiceError], Ending] = {
        BadTokenError: Ending.UNAUTHORIZED,
        DisconnectedError: Ending.BROKEN,
        IdleTimeoutError: Ending.TIMEOUT,
        ProtocolError: Ending.PROTOCOL,
        ShutdownError: Ending.SHUTDOWN,
        TlsRequiredError: Ending.UNAUTHORIZED,
        TooManyConnectionsError: Ending.REFUSED,
    }
    return kinds.get(type(error), Ending.FAILED)
