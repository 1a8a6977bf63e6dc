"""The Prometheus metrics of a cache.

Names and labels without the ``bbcache_`` prefix are Neon's
(``pageserver/src/metrics.rs``); its gauges count all files there and published
entries only here. Every label set exists at zero from the start. Thread-safe.

No finaliser may count: the garbage collector may run it in a thread that holds the lock
of the very counter, which is not re-entrant.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from bbcache.errors import ConfigError
from bbcache.outcomes import (
    FallbackResult,
    FillResult,
    Phase,
    PrepareResult,
    ReadResult,
    SkipReason,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.registry import Collector

_T = TypeVar("_T", bound=str)
# A cache counts once in the sum of all, and not at all once its process has ended.
_ACROSS_PROCESSES: Final = "livesum"

_BUCKETS_S: Final = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1, 2, 5, 10, 20, 60, 120, 300, 600),
)


class Measured(Protocol):
    """What the gauges read: the index, in memory and without a lock."""

    @property
    def entry_count(self) -> int:
        """Published entries."""
        ...

    @property
    def entries_size_bytes(self) -> int:
        """Their bytes."""
        ...

    @property
    def nonentry_bytes(self) -> int:
        """Bytes of foreign files, doomed files and quarantine."""
        ...


class Metrics:
    """The collectors of one cache, registered all or none.

    Args:
        registry: where to register; None for Prometheus' default registry.
        index: what the entry gauges show.
        queue_size: how many prepares wait.
        unpublished_bytes: what archives take that were handed out without being published.

    Raises:
        ConfigError: the registry has the metrics of another cache.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None,
        index: Measured,
        queue_size: Callable[[], int],
        unpublished_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        self._registry = REGISTRY if registry is None else registry
        neon, ours = "pageserver_basebackup_cache", "bbcache"
        self._reads, reads = counter_by(
            "result", ReadResult, f"{neon}_read", "Basebackups asked of the cache."
        )
        self._prepares, self._prepares_by = counter_by(
            "result", PrepareResult, f"{neon}_prepare", "Prepares of basebackups."
        )
        self._entries = ReadGauge(
            f"{neon}_entries_total",
            "Basebackups published in the cache.",
            lambda: index.entry_count,
        )
        self._size = ReadGauge(
            f"{neon}_size_bytes",
            "Bytes of the basebackups published in the cache.",
            lambda: index.entries_size_bytes,
        )
        self._queue = ReadGauge(
            f"{neon}_prepare_queue_size", "Prepares that wait for a worker.", queue_size
        )
        self._other = ReadGauge(
            f"{ours}_nonentry_bytes",
            "Bytes of foreign files, of files that could not be removed, and of the quarantine.",
            lambda: index.nonentry_bytes,
        )
        self._fills, self._fills_by = counter_by(
            "result", FillResult, f"{ours}_fills", "Calls of get_or_prepare, by how they ended."
        )
        self._fallbacks, self._fallbacks_by = counter_by(
            "result",
            FallbackResult,
            f"{ours}_fallback_builds",
            "Builds in unpublished_dir after the disk of the cache has failed.",
        )
        self._unpublished = ReadGauge(
            f"{ours}_unpublished_bytes",
            "Bytes of archives handed out without being published.",
            unpublished_bytes,
        )
        self._skips, self._skips_by = counter_by(
            "reason", SkipReason, f"{ours}_prepare_skips", "Prepares skipped."
        )
        self._seconds = Histogram(
            f"{ours}_prepare_seconds",
            "Seconds that prepares took.",
            ["phase"],
            registry=None,
            buckets=_BUCKETS_S,
        )
        self._tar_bytes = counter(f"{ours}_prepare_tar_bytes", "Bytes that hosts wrote.")
        self._archive_bytes = counter(f"{ours}_prepare_archive_bytes", "Bytes of archives.")
        self._quarantined = counter(f"{ours}_quarantined", "Bad archives taken out.")
        self._unlink_failures = counter(f"{ours}_unlink_failures", "Failed removals.")
        self._cleanup_errors = counter(f"{ours}_cleanup_errors", "Failures met by clean-up.")
        self._loaded = Gauge(
            f"{ours}_loaded_entries",
            "Entries found on disk at the start.",
            registry=None,
            multiprocess_mode=_ACROSS_PROCESSES,
        )
        self.hits, self.misses, self.read_errors = map(reads.__getitem__, ReadResult)
        self._phases = {each: self._seconds.labels(each) for each in Phase}
        register_all(
            self._registry,
            self._collectors(),
            "the Prometheus registry has the metrics of another cache\n"
            "hint: Pass registry=CollectorRegistry() to the second cache of a process.",
        )

    def skipped(self, reason: SkipReason) -> None:
        """A prepare was skipped."""
        self._prepares_by[PrepareResult.SKIP].inc()
        self._skips_by[reason].inc()

    def prepared(self, tar_bytes: int, archive_bytes: int) -> None:
        """A prepare has published an archive."""
        self._prepares_by[PrepareResult.OK].inc()
        self._tar_bytes.inc(tar_bytes)
        self._archive_bytes.inc(archive_bytes)

    def prepare_failed(self) -> None:
        """A prepare ended in an error."""
        self._prepares_by[PrepareResult.ERROR].inc()

    def observe(self, phase: Phase, seconds: float) -> None:
        """A phase of a prepare took `seconds`."""
        self._phases[phase].observe(seconds)

    def filled(self, result: FillResult) -> None:
        """A `get_or_prepare` has ended."""
        self._fills_by[result].inc()

    def fell_back(self, result: FallbackResult) -> None:
        """A build in `unpublished_dir` has ended."""
        self._fallbacks_by[result].inc()

    def timed(self, phase: Phase, clock: Callable[[], float]) -> AbstractContextManager[None]:
        """Observe the seconds of a block as one phase, also where it fails."""
        return _Timer(self, phase, clock)

    def quarantined(self) -> None:
        """A bad archive was taken out."""
        self._quarantined.inc()

    def unlink_failed(self) -> None:
        """A file could not be removed."""
        self._unlink_failures.inc()

    def cleanup_failed(self) -> None:
        """A clean-up step met a failure of the host or the disk."""
        self._cleanup_errors.inc()

    def loaded(self, count: int) -> None:
        """The start found `count` entries on disk."""
        self._loaded.set(count)

    def refresh(self) -> None:
        """Show the gauges of this moment to other processes, in the multi-process mode."""
        for gauge in (self._entries, self._size, self._queue, self._other, self._unpublished):
            gauge.refresh()

    def close(self) -> None:
        """Leave the default registry; one of the caller's own stays readable."""
        if self._registry is REGISTRY:
            self.withdraw()

    def withdraw(self) -> None:
        """Leave the registry, whosever it is: there has never been a cache."""
        unregister_all(self._registry, self._collectors())

    def _collectors(self) -> list[Collector]:
        return [
            *(self._reads, self._prepares, self._entries, self._size, self._queue),
            *(self._fills, self._fallbacks, self._unpublished),
            *(self._other, self._skips, self._seconds, self._tar_bytes, self._archive_bytes),
            *(self._quarantined, self._unlink_failures, self._cleanup_errors, self._loaded),
        ]


def register_all(registry: CollectorRegistry, collectors: Iterable[Collector], taken: str) -> None:
    """Register all or none.

    Args:
        registry: where.
        collectors: what.
        taken: the error's text where another has registered their names.

    Raises:
        ConfigError: with that text.
    """
    done: list[Collector] = []
    try:
        for collector in collectors:
            registry.register(collector)
            done.append(collector)
    except BaseException as error:
        for collector in done:
            registry.unregister(collector)
        if not isinstance(error, ValueError):
            raise
        raise ConfigError(taken) from error


def unregister_all(registry: CollectorRegistry, collectors: Iterable[Collector]) -> None:
    """Take all out that nobody has taken out before."""
    for collector in collectors:
        with suppress(KeyError):
            registry.unregister(collector)


def counter(name: str, text: str) -> Counter:
    """A counter without labels, not yet registered."""
    return Counter(name, text, registry=None)


def counter_by(
    label: str, values: Iterable[_T], name: str, text: str
) -> tuple[Counter, dict[_T, Counter]]:
    """A counter with one label, not yet registered, and what to count on by its value.

    All values are there at zero from the start.
    """
    parent = Counter(name, text, [label], registry=None)
    return parent, {value: parent.labels(value) for value in values}


class _Timer(AbstractContextManager[None]):
    def __init__(self, metrics: Metrics, phase: Phase, clock: Callable[[], float]) -> None:
        self._metrics, self._phase, self._clock = metrics, phase, clock

    def __enter__(self) -> None:
        self._started_s = self._clock()

    def __exit__(self, *_: object) -> None:
        self._metrics.observe(self._phase, self._clock() - self._started_s)


class ReadGauge(Gauge):
    """A gauge, not yet registered, that reads its value when this process is scraped.

    In Prometheus' multi-process mode another process is scraped, which sees the value of
    the last `refresh`.

    Args:
        name: of the metric.
        text: what it shows.
        read: called without any lock.
    """

    def __init__(self, name: str, text: str, read: Callable[[], int]) -> None:
        super().__init__(name, text, registry=None, multiprocess_mode=_ACROSS_PROCESSES)
        self.set_function(read)
        self._read = read

    def refresh(self) -> None:
        """Set what is read at this moment, for other processes."""
        self.set(self._read())
