"""The status of a running service, as plain values."""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from prometheus_client import CollectorRegistry

from bbcache._version import __version__
from bbcache.cache import BasebackupCache
from bbcache.config import BasebackupCacheConfig
from bbcache.explanation import Explanation
from bbcache.http_service.explanations import Explanations
from bbcache.http_service.recent_errors import RecentError, RecentErrors
from bbcache.ids import TenantId, TimelineId
from bbcache.metric_rows import Row
from bbcache.metrics import Metrics
from bbcache.outcomes import ReadResult, Source
from bbcache.page_service.metrics import Result, ServiceMetrics
from bbcache.page_service.server import PageService
from bbcache.pageserver.broken import Broken
from bbcache.tier_metrics import TierMetrics

MOST_ENTRIES: Final = 100  # that are shown
MOST_BROKEN: Final = 100  # likewise


class State(StrEnum):
    """The state of a service."""

    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Meter:
    """A quantity and its limit.

    Attributes:
        name: the measured quantity.
        used: the present value.
        limit: the highest value allowed.
        unit: ``bytes``, or the things that are counted.
        setting: the key of the limit in the settings.
    """

    name: str
    used: int
    limit: int
    unit: str
    setting: str


@dataclass(frozen=True, slots=True)
class ShownEntry:
    """One entry of the cache."""

    tenant_id: str
    timeline_id: str
    lsn: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ShownBroken:
    """A tenant or timeline that cannot be served.

    Attributes:
        tenant_id: the tenant.
        timeline_id: the timeline; None if the whole tenant is broken.
        reason: why.
    """

    tenant_id: str
    timeline_id: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class ShownTier:
    """The second tier.

    Attributes:
        problem: why nothing is fetched or uploaded now; None if no reason is known.
        fetches: fetches, by result.
        uploads: archives offered to it, by result.
        waiting_uploads: archives that wait for an upload.
    """

    problem: str | None
    fetches: dict[str, int]
    uploads: dict[str, int]
    waiting_uploads: int


@dataclass(frozen=True, slots=True)
class Status:
    """A service at one moment.

    Attributes:
        state: see `State`.
        version: the version of bbcache.
        pid: the process id.
        started_at: UTC, by ISO 8601.
        uptime_s: seconds since the start.
        listen: the address for clients.
        has_tokens: whether clients need a token.
        has_tls: whether clients must use TLS.
        meters: sizes against limits.
        hit_ratio: the share of hits among the commands that were answered; None before the first.
        answers: commands that were answered, by the source of the archive.
        failures: commands that failed, by the side at fault.
        reads: reads of the cache, by result.
        fills: calls of `get_or_prepare`, by result.
        prepares: prepares, by result.
        skips: prepares skipped, by reason.
        trouble: counters that should be 0, by name.
        entry_count: the number of entries.
        entries: the largest entries.
        broken_count: the number of tenants and timelines that cannot be served.
        broken: the first of them.
        errors: the last warnings and errors, newest first.
        degraded_reason: why the cache cannot publish at the moment; None if no reason is known.
        tier: the second tier; None if there is none.
    """

    state: State
    version: str
    pid: int
    started_at: str
    uptime_s: float
    listen: str
    has_tokens: bool
    has_tls: bool
    meters: tuple[Meter, ...]
    hit_ratio: float | None
    answers: dict[str, int]
    failures: dict[str, int]
    reads: dict[str, int]
    fills: dict[str, int]
    prepares: dict[str, int]
    skips: dict[str, int]
    trouble: dict[str, int]
    entry_count: int
    entries: tuple[ShownEntry, ...]
    broken_count: int
    broken: tuple[ShownBroken, ...]
    errors: tuple[RecentError, ...]
    degraded_reason: str | None = None
    tier: ShownTier | None = None

    def to_json(self) -> dict[str, Any]:
        """The status as values of JSON."""
        document = asdict(self)
        document["errors"] = [error._asdict() for error in self.errors]
        return document


class StatusReader:
    """Reads the status of a cache and the page service in front of it. Thread-safe.

    Args:
        cache: the cache.
        cache_config: its settings.
        service: the page service.
        registry: the metrics of both.
        errors: the last warnings and errors of the log.
        has_tokens: whether clients need a token.
        has_tls: whether clients must use TLS.
        broken: lists the tenants and timelines that cannot be served.
        host_degraded_reason: says why the host does not know its tenants; None if it does.
        clock: seconds since 1970.

    Attributes:
        cache_config: the same, as it is now.
        tier_problem: says why nothing is fetched or uploaded; None if there is no second tier.
    """

    def __init__(
        self,
        *,
        cache: BasebackupCache,
        cache_config: BasebackupCacheConfig,
        service: PageService,
        registry: CollectorRegistry,
        errors: RecentErrors,
        has_tokens: bool,
        has_tls: bool,
        broken: Callable[[], list[Broken]] = list,
        host_degraded_reason: Callable[[], str | None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cache = cache
        self._explanations = Explanations(cache)
        self.cache_config = cache_config
        self._service = service
        self._registry = registry
        self._errors = errors
        self._has_tokens = has_tokens
        self._has_tls = has_tls
        self._broken = broken
        self._host_degraded_reason = host_degraded_reason
        self.tier_problem: Callable[[], str | None] | None = None
        self._clock = clock
        self._started_at_s = clock()

    def state(self) -> State:
        """Where in its life the service is."""
        if not self._service.is_serving:
            return State.DRAINING
        if not self._cache.wait_initialized(0):
            return State.STARTING
        return State.READY if self.degraded_reason() is None else State.DEGRADED

    def degraded_reason(self) -> str | None:
        """Why the cache cannot publish, or tenants are not known; None if no reason is known."""
        return self._cache.degraded_reason or self._host_degraded_reason()

    def explain(self, tenant_id: TenantId, timeline_id: TimelineId) -> Explanation:
        """Say why a timeline has an entry, or has none; waits a second for the host at most."""
        return self._explanations.explain(tenant_id, timeline_id)

    def read(self) -> Status:
        """Read the whole status."""
        samples = _Samples(self._registry)
        entries, broken = self._cache.entries(), self._broken()
        query = ServiceMetrics.query_seconds.name + "_count"
        answers: dict[str, int] = {
            source: samples.total(query, result=Result.OK, bbcache_source=source)
            for source in Source
        }
        answered = sum(answers.values())
        started_at = datetime.fromtimestamp(self._started_at_s, UTC)
        return Status(
            state=self.state(),
            version=__version__,
            pid=os.getpid(),
            started_at=started_at.isoformat(timespec="seconds"),
            uptime_s=round(max(0.0, self._clock() - self._started_at_s), 1),
            listen=str(self._service.address),
            has_tokens=self._has_tokens,
            has_tls=self._has_tls,
            meters=self._meters(samples, len(entries)),
            hit_ratio=answers[Source.HIT] / answered if answered else None,
            answers=answers,
            failures={
                result: samples.total(query, result=result)
                for result in Result
                if result is not Result.OK
            },
            reads=samples.by(Metrics.reads),
            fills=samples.by(Metrics.fills),
            prepares=samples.by(Metrics.prepares),
            skips=samples.by(Metrics.prepare_skips),
            trouble={
                "archives_quarantined": samples.total(Metrics.quarantined.name),
                "broken_tenants_and_timelines": len(broken),
                "failed_removals": samples.total(Metrics.unlink_failures.name),
                "cleanup_errors": samples.total(Metrics.cleanup_errors.name),
                "read_errors": samples.total(Metrics.reads.name, result=ReadResult.ERROR),
            },
            entry_count=len(entries),
            entries=tuple(
                ShownEntry(str(e.tenant_id), str(e.timeline_id), str(e.lsn), e.size_bytes)
                for e in heapq.nlargest(MOST_ENTRIES, entries, key=lambda each: each.size_bytes)
            ),
            broken_count=len(broken),
            broken=tuple(map(_shown, broken[:MOST_BROKEN])),
            errors=tuple(self._errors.newest_first()),
            degraded_reason=self.degraded_reason(),
            tier=self._tier(samples),
        )

    def _tier(self, samples: _Samples) -> ShownTier | None:
        if self.tier_problem is None:
            return None
        return ShownTier(
            self.tier_problem(),
            samples.by(TierMetrics.fetches),
            samples.by(TierMetrics.uploads),
            samples.total(TierMetrics.upload_queue_size.name),
        )

    def _meters(self, samples: _Samples, entry_count: int) -> tuple[Meter, ...]:
        config, most = self.cache_config, self._service.config.max_connections
        published = samples.total(Metrics.size_bytes.name)
        other = samples.total(Metrics.nonentry_bytes.name)
        unpublished = samples.total(Metrics.unpublished_bytes.name)
        queued = samples.total(Metrics.prepare_queue_size.name)
        rows = (
            ("bytes on disk", published + other, "max_total_size_bytes", "bytes"),
            ("entries", entry_count, "max_size_entries", "entries"),
            ("bytes not published", unpublished, "max_unpublished_size_bytes", "bytes"),
            ("prepares that wait", queued, "prepare_channel_size", "prepares"),
        )
        connected = Meter(
            "connections", self._service.connection_count, most, "clients", "max_connections"
        )
        return (
            *(Meter(name, used, getattr(config, key), unit, key) for name, used, key, unit in rows),
            connected,
        )


def _shown(broken: Broken) -> ShownBroken:
    timeline_id = None if broken.timeline_id is None else str(broken.timeline_id)
    return ShownBroken(str(broken.tenant_id), timeline_id, broken.reason)


class _Samples:
    """The values of a registry at one moment."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._values: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in registry.collect():
            for sample in family.samples:
                self._values.setdefault(sample.name, []).append((sample.labels, sample.value))

    def total(self, name: str, **labels: str) -> int:
        """The sum of all samples with these labels."""
        wanted = labels.items()
        return int(
            sum(value for found, value in self._values.get(name, ()) if wanted <= found.items())
        )

    def by(self, row: Row[Any]) -> dict[str, int]:
        """The values of a metric, by its only label."""
        ((label, values),) = row.labels.items()
        return {str(value): self.total(row.name, **{label: value}) for value in values}
