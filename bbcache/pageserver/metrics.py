"""The Prometheus metrics of a pageserver: tenants and timelines on disk, by state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from bbcache.host import TenantState
from bbcache.metric_rows import Row, register_all, unregister_all
from bbcache.pageserver.tenants import PgdataTenantManager

ROWS: Final[tuple[Row[object], ...]] = (
    Row(
        "gauge",
        "bbcache_pageserver_tenants",
        "Tenants on disk, by their states. A sum of 0 is worth an alert: the root may not be "
        "mounted.",
        {"state": [state.value for state in TenantState]},
    ),
    Row(
        "gauge",
        "bbcache_pageserver_timelines",
        "Timelines on disk, by whether they can be served. `broken` above 0 is worth an alert.",
        {"state": ("active", "broken")},
    ),
    Row(
        "gauge",
        "bbcache_pageserver_foreign_names",
        "Names among the tenants and timelines that are not ids, such as `lost+found`.",
    ),
)


class PageserverMetrics(Collector):
    """Counts tenants, timelines and foreign names at each scrape. Thread-safe.

    Args:
        registry: where to register; None for Prometheus' default registry.
        tenants: the tenants to count.

    Raises:
        ConfigError: the registry has the metrics of another pageserver.
    """

    def __init__(self, registry: CollectorRegistry | None, tenants: PgdataTenantManager) -> None:
        self._registry = REGISTRY if registry is None else registry
        self._tenants = tenants
        register_all(self._registry, [self], "pageserver")

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """The metrics, without values."""
        return [GaugeMetricFamily(row.name, row.text, labels=list(row.labels)) for row in ROWS]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The metrics as they are now."""
        tenants, timelines, foreign = self.describe()
        states, timeline_count = Counter[TenantState](), 0
        for tenant in self._tenants.known():
            states[tenant.current_state()] += 1
            timeline_count += len(tenant.list_timelines())
        broken = self._tenants.broken
        broken_count = sum(each.timeline_id is not None for each in broken.list())
        for state in TenantState:
            tenants.add_metric([state.value], states[state])
        timelines.add_metric(["active"], max(0, timeline_count - broken_count))
        timelines.add_metric(["broken"], broken_count)
        foreign.add_metric([], broken.foreign_count)
        return tenants, timelines, foreign

    def close(self) -> None:
        """Unregister from the default registry; a registry of the caller stays readable."""
        if self._registry is REGISTRY:
            unregister_all(self._registry, [self])
