"""The Prometheus metrics: names, labels, zeros, registration, exposition."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Metric, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families
from support.helpers import run_threads, samples, samples_of

from bbcache.errors import ConfigError
from bbcache.metrics import Metrics
from bbcache.outcomes import Phase, ReadResult, SkipReason
from bbcache.page_service.metrics import ServiceMetrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.registry import Collector

    from bbcache.metric_rows import Row

NEON = "pageserver_basebackup_cache_"
# Neon's dashboards know these: they must not be renamed, whatever the rows say.
NEONS = {
    f"{NEON}read_total": ("counter", {"result": ("hit", "miss", "error")}),
    f"{NEON}prepare_total": ("counter", {"result": ("ok", "skip", "error")}),
    f"{NEON}entries_total": ("gauge", {}),
    f"{NEON}size_bytes": ("gauge", {}),
    f"{NEON}prepare_queue_size": ("gauge", {}),
    "pageserver_compute_commands_total": ("counter", {"command": ("Basebackup", "Fullbackup")}),
    "pageserver_basebackup_query_seconds": (
        "histogram",
        {
            "result": ("ok", "error", "client_error"),
            "bbcache_source": ("hit", "joined", "built", "fetched", "none"),
        },
    ),
}
# Every sample but those of the histogram's buckets, and the times of creation.
ZEROS = [name for row in Metrics.rows() for name in samples_of(row)]


def family_of(row: Row[Any]) -> str:
    """The name of a metric without what prometheus_client adds to a counter."""
    return row.name.removesuffix("_total") if row.kind == "counter" else row.name


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry of the test's own."""
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    """Metrics in that registry."""
    return Metrics(registry)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Collector]]:
    """The collectors put into Prometheus' default registry, taken out at the end."""
    collectors: list[Collector] = []
    register = REGISTRY.register

    def note(collector: Collector) -> None:
        register(collector)
        collectors.append(collector)

    monkeypatch.setattr(REGISTRY, "register", note)
    yield collectors
    for collector in collectors:
        with suppress(KeyError):  # it has been taken out
            REGISTRY.unregister(collector)


@pytest.fixture
def default_metrics(registered: list[Collector]) -> Metrics:
    """Metrics in Prometheus' default registry, taken out at the end."""
    assert registered == []
    return Metrics(None)


def values(registry: CollectorRegistry) -> dict[str, float]:
    """The samples without buckets and times of creation."""
    return {
        name: value
        for name, value in samples(registry).items()
        if "_bucket{" not in name and "_created" not in name
    }


def ours(registry: CollectorRegistry) -> set[str]:
    """The names in a registry that belong to a cache."""
    return {name for name in samples(registry) if name.startswith(("bbcache_", NEON))}


@pytest.mark.usefixtures("metrics")
def test_every_label_set_is_there_at_zero_from_the_start(registry: CollectorRegistry) -> None:
    """Exactly the declared names and labels, each at zero."""
    assert values(registry) == dict.fromkeys(ZEROS, 0.0)


def test_neons_names_and_labels_are_neons() -> None:
    """The metrics that a pageserver of Neon has keep their names, labels and kinds."""
    neons = [
        row
        for row in (*Metrics.rows(), *ServiceMetrics.rows())
        if row.name.startswith("pageserver_")
    ]
    assert {row.name: (row.kind, row.labels) for row in neons} == NEONS


@pytest.mark.usefixtures("metrics")
def test_kinds_and_texts_are_as_declared(registry: CollectorRegistry) -> None:
    """A scrape has the kind and the text of each row, and no metric without a row."""
    found = {family.name: (family.type, family.documentation) for family in registry.collect()}
    declared = {family_of(row): (row.kind, row.text) for row in Metrics.rows()}
    assert found == declared
    assert all(found.values())


def test_reads_count_by_result(metrics: Metrics, registry: CollectorRegistry) -> None:
    """Each result has its own child."""
    metrics.reads[ReadResult.HIT].inc()
    metrics.reads[ReadResult.MISS].inc(2)
    metrics.reads[ReadResult.ERROR].inc(3)
    found = values(registry)
    assert [found[f"{NEON}read_total{{result={result}}}"] for result in ReadResult] == [1, 2, 3]


@pytest.mark.parametrize("reason", SkipReason)
def test_a_skip_counts_twice_with_its_reason(
    metrics: Metrics, registry: CollectorRegistry, reason: SkipReason
) -> None:
    """Once as a skip, once under its reason, and nowhere else."""
    metrics.skipped(reason)
    assert {name for name, value in values(registry).items() if value} == {
        f"{NEON}prepare_total{{result=skip}}",
        f"bbcache_prepare_skips_total{{reason={reason.value}}}",
    }


def test_a_published_archive_counts_its_bytes(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    """An ok, the tarball's bytes and the archive's."""
    metrics.prepared(1000, 100)
    metrics.prepared(500, 50)
    assert {name: value for name, value in values(registry).items() if value} == {
        f"{NEON}prepare_total{{result=ok}}": 2,
        "bbcache_prepare_tar_bytes_total": 1500,
        "bbcache_prepare_archive_bytes_total": 150,
    }


def test_other_events_count_once(metrics: Metrics, registry: CollectorRegistry) -> None:
    """A failed prepare, a bad archive, a failed unlink or clean-up, what was loaded."""
    metrics.prepare_failed()
    metrics.quarantined.inc()
    metrics.unlink_failures.inc()
    metrics.cleanup_errors.inc()
    metrics.loaded_entries.set(7)
    assert {name: value for name, value in values(registry).items() if value} == {
        f"{NEON}prepare_total{{result=error}}": 1,
        "bbcache_quarantined_total": 1,
        "bbcache_unlink_failures_total": 1,
        "bbcache_cleanup_errors_total": 1,
        "bbcache_loaded_entries": 7,
    }


@pytest.mark.parametrize("phase", Phase)
def test_seconds_are_observed_by_phase(
    metrics: Metrics, registry: CollectorRegistry, phase: Phase
) -> None:
    """An observation lands in its phase and in the buckets above it."""
    metrics.prepare_seconds[phase].observe(0.03)
    found = samples(registry)
    assert found[f"bbcache_prepare_seconds_count{{phase={phase.value}}}"] == 1
    assert found[f"bbcache_prepare_seconds_sum{{phase={phase.value}}}"] == 0.03
    buckets = [value for name, value in found.items() if f"_bucket{{phase={phase.value}}}" in name]
    assert buckets[0] == 0
    assert buckets[-1] == 1
    assert sum(found[f"bbcache_prepare_seconds_count{{phase={each}}}"] for each in Phase) == 1


@pytest.mark.usefixtures("metrics")
def test_text_exposition_is_readable(registry: CollectorRegistry) -> None:
    """A scrape can be parsed, including the gauge that is named _total."""
    text = generate_latest(registry).decode()
    found = {
        sample.name + "".join(f"{{{name}={text}}}" for name, text in sample.labels.items())
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert set(ZEROS) <= found
    assert f"# TYPE {NEON}entries_total gauge" in text.splitlines()


@pytest.mark.usefixtures("metrics")
def test_openmetrics_exposition_is_readable(registry: CollectorRegistry) -> None:
    """The strict format takes the same names."""
    text: str = openmetrics.generate_latest(registry).decode()  # type: ignore[no-untyped-call]
    assert text.endswith("# EOF\n")
    found = {
        sample.name + "".join(f"{{{name}={text}}}" for name, text in sample.labels.items())
        for family in openmetrics_parser.text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
    }
    assert set(ZEROS) <= found


def test_two_caches_have_registries_of_their_own() -> None:
    """Each counts for itself."""
    registries = [CollectorRegistry(), CollectorRegistry()]
    first, _ = (Metrics(registry) for registry in registries)
    first.reads[ReadResult.HIT].inc()
    counted = [values(registry)[f"{NEON}read_total{{result=hit}}"] for registry in registries]
    assert counted == [1, 0]


def test_own_registry_stays_readable_after_close(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    """The numbers of a closed cache can still be read, and its gauges still follow."""
    count = 0
    metrics.entries.read_from(lambda: count)
    metrics.reads[ReadResult.HIT].inc()
    before = ours(registry)
    metrics.close()
    metrics.close()
    count = 3
    assert ours(registry) == before
    assert values(registry)[f"{NEON}read_total{{result=hit}}"] == 1
    assert values(registry)[f"{NEON}entries_total"] == 3


def test_default_registry_is_used_and_left(default_metrics: Metrics) -> None:
    """Registered where Prometheus looks, and gone after the close."""
    assert set(ZEROS) <= ours(REGISTRY)
    default_metrics.close()
    assert ours(REGISTRY) == set()


def test_default_registry_given_by_name_is_left_too() -> None:
    """A host that passes the default registry itself can start its next cache."""
    for _ in range(2):
        Metrics(REGISTRY).close()
    assert ours(REGISTRY) == set()


def test_default_registry_can_be_used_again() -> None:
    """One cache after the other may use the default registry."""
    for _ in range(2):
        metrics = Metrics(None)
        assert set(ZEROS) <= ours(REGISTRY)
        metrics.close()
    assert ours(REGISTRY) == set()


def test_default_registry_that_was_cleared_does_not_fail_the_close(
    default_metrics: Metrics, registered: list[Collector]
) -> None:
    """A host's tests may clear that registry; a close then takes the rest out."""
    REGISTRY.unregister(registered[3])
    default_metrics.close()
    assert ours(REGISTRY) == set()


def test_second_cache_in_one_registry_is_refused(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    """The error says what to do, and the first one's numbers do not change."""
    metrics.reads[ReadResult.HIT].inc()
    before = values(registry)
    with pytest.raises(ConfigError, match=r"another cache\nhint: .*CollectorRegistry") as caught:
        Metrics(registry)
    assert isinstance(caught.value, ValueError)
    assert values(registry) == before


@pytest.mark.parametrize(
    "name",
    [
        row.name.removesuffix("_total") if row.kind == "counter" else row.name
        for row in Metrics.rows()
    ],
)
def test_registration_is_all_or_none(registry: CollectorRegistry, name: str) -> None:
    """If one name is taken, no other one stays registered."""

    class Taken:
        def collect(self) -> list[Metric]:
            return [Metric(name, "Taken by the host.", "unknown")]

        describe = collect

    registry.register(Taken())
    before = set(samples(registry))
    with pytest.raises(ConfigError):
        Metrics(registry)
    assert set(samples(registry)) == before


class FailingRegistry(CollectorRegistry):
    """Takes `room` collectors and then raises a RuntimeError."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room

    def register(self, collector: Collector) -> None:
        """Register, as long as there is room."""
        if self._room == 0:
            raise RuntimeError("no room")
        self._room -= 1
        super().register(collector)


@pytest.mark.parametrize("room", [0, 1, 13])
def test_registration_is_undone_whatever_the_registry_raises(room: int) -> None:
    """A registry that raises another error keeps nothing."""
    registry = FailingRegistry(room)
    with pytest.raises(RuntimeError):
        Metrics(registry)
    assert samples(registry) == {}


def test_no_count_is_lost_between_threads(metrics: Metrics, registry: CollectorRegistry) -> None:
    """Counting is thread-safe."""

    def hammer() -> None:
        for _ in range(500):
            metrics.reads[ReadResult.HIT].inc()
            metrics.skipped(SkipReason.FULL)
            metrics.prepare_seconds[Phase.BUILD].observe(1)

    run_threads([hammer] * 4)
    found = values(registry)
    assert found[f"{NEON}read_total{{result=hit}}"] == 2000
    assert found["bbcache_prepare_skips_total{reason=full}"] == 2000
    assert found["bbcache_prepare_seconds_sum{phase=build}"] == 2000
