"""The Prometheus metrics of a page service. Thread-safe.

Names, results and buckets without the ``bbcache_`` prefix are Neon's
(``pageserver/src/metrics.rs``).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Histogram
from prometheus_client.registry import Collector

from bbcache.metrics import ReadGauge, counter, counter_by, register_all, unregister_all
from bbcache.outcomes import Source

_BUCKETS_S: Final = (
    *(0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4),
    *(0.45, 0.5, 0.6, 0.8, 1, 1.5, 2, 2.5, 3, 5, 10, 20, 40, 60),
)
_NO_ORIGIN: Final = "none"


class Result(StrEnum):
    """How a command ended."""

    OK = "ok"
    ERROR = "error"
    CLIENT_ERROR = "client_error"


class Ending(StrEnum):
    """Why a connection ended."""

    CLOSED = "closed"  # by the client
    BROKEN = "broken"
    PROTOCOL = "protocol"
    UNAUTHORIZED = "unauthorized"
    TIMEOUT = "timeout"
    REFUSED = "refused"  # there were too many
    SHUTDOWN = "shutdown"
    FAILED = "failed"


class ServiceMetrics:
    """The collectors of one service.

    Args:
        registry: where to register; None for Prometheus' default registry.
        connection_count: how many clients are connected.

    Raises:
        ConfigError: the registry has the metrics of another service.
    """

    def __init__(
        self, registry: CollectorRegistry | None, connection_count: Callable[[], int]
    ) -> None:
        self._registry = REGISTRY if registry is None else registry
        self._commands, self._commands_by = counter_by(
            "command",
            ["Basebackup", "Fullbackup"],
            "pageserver_compute_commands",
            "Commands of compute nodes.",
        )
        self._seconds = Histogram(
            "pageserver_basebackup_query_seconds",
            "Seconds that basebackup commands took.",
            ["result", "bbcache_source"],
            registry=None,
            buckets=_BUCKETS_S,
        )
        self._endings, self._endings_by = counter_by(
            "reason", Ending, "bbcache_page_service_connections", "Connections that ended."
        )
        self._bytes = counter("bbcache_page_service_copied_bytes", "Bytes of archives sent.")
        self._connected = ReadGauge(
            "bbcache_page_service_connected", "Clients connected.", connection_count
        )
        self._seconds_of = {
            (result, source): self._seconds.labels(result, source)
            for result in Result
            for source in (*Source, _NO_ORIGIN)
        }
        self._collectors: list[Collector] = [
            *(self._commands, self._seconds, self._endings, self._bytes, self._connected)
        ]
        register_all(
            self._registry,
            self._collectors,
            "the Prometheus registry has the metrics of another page service\n"
            "hint: Pass registry=CollectorRegistry() to the second one of a process.",
        )

    def commanded(self, *, is_full: bool) -> None:
        """A command was given that its client may give."""
        self._commands_by["Fullbackup" if is_full else "Basebackup"].inc()

    def served(self, result: Result, origin: Source | None, seconds: float) -> None:
        """A command has ended."""
        self._seconds_of[result, origin or _NO_ORIGIN].observe(seconds)

    def copied(self, size_bytes: int) -> None:
        """Bytes of an archive were sent."""
        self._bytes.inc(size_bytes)

    def ended(self, ending: Ending) -> None:
        """A connection has ended."""
        self._endings_by[ending].inc()

    def refresh(self) -> None:
        """Show the clients of this moment to other processes, in the multi-process mode."""
        self._connected.refresh()

    def close(self) -> None:
        """Leave the default registry; one of the caller's own stays readable."""
        if self._registry is REGISTRY:
            unregister_all(self._registry, self._collectors)
