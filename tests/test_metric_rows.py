"""Metrics declared in rows: the collector of a row, and the rows of a class."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry
from support.helpers import samples

from bbcache.errors import ConfigError
from bbcache.metric_rows import MetricSet, Row, counter, counter_by, gauge, histogram_by


class Lamps(MetricSet):
    """One row of each kind."""

    lit = counter("lamps_lit_total", "Lamps that were lit.")
    broken = counter_by("cause", ("heat", "age"), "lamps_broken_total", "Lamps that broke.")
    burning = gauge("lamps_burning", "Lamps that burn.")
    hours = histogram_by("colour", ("red",), "lamps_hours", "Hours that lamps burn.", (1, 2))
    pairs: Row[dict[tuple[str, str], object]] = Row(
        "gauge", "lamps_pairs", "Pairs of lamps.", {"left": "ab", "right": "c"}
    )


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry of the test's own."""
    return CollectorRegistry()


def test_one_row_makes_the_collector_and_all_its_children(registry: CollectorRegistry) -> None:
    """Each attribute counts under the declared name; every label set is there at zero."""
    lamps = Lamps(registry, "lamp shop")
    before = samples(registry)
    assert {before["lamps_broken_total{cause=heat}"], before["lamps_pairs{left=b}{right=c}"]} == {0}
    lamps.lit.inc(2)
    lamps.broken["age"].inc(3)
    lamps.burning.set(4)
    lamps.hours["red"].observe(1.5)
    found = samples(registry)
    assert {name: value for name, value in found.items() if value != before[name]} == {
        "lamps_lit_total": 2,
        "lamps_broken_total{cause=age}": 3,
        "lamps_burning": 4,
        "lamps_hours_bucket{colour=red}{le=2.0}": 1,
        "lamps_hours_bucket{colour=red}{le=+Inf}": 1,
        "lamps_hours_count{colour=red}": 1,
        "lamps_hours_sum{colour=red}": 1.5,
    }
    assert list(lamps.pairs) == [("a", "c"), ("b", "c")]


def test_the_class_knows_its_rows_in_their_order() -> None:
    """Docs, status page and tests read name, kind, labels and texts from the class."""
    assert [row.name for row in Lamps.rows()] == [
        *("lamps_lit_total", "lamps_broken_total", "lamps_burning", "lamps_hours", "lamps_pairs"),
    ]
    assert [row.kind for row in Lamps.rows()][2:4] == ["gauge", "histogram"]
    assert Lamps.broken.labels == {"cause": ("heat", "age")}
    assert Lamps.lit.text == "Lamps that were lit."


def test_two_objects_count_by_themselves(registry: CollectorRegistry) -> None:
    """A row is shared, and a collector is not."""
    other = CollectorRegistry()
    first, _ = Lamps(registry, "lamp shop"), Lamps(other, "lamp shop")
    first.lit.inc()
    assert [samples(each)["lamps_lit_total"] for each in (registry, other)] == [1, 0]


def test_a_second_owner_in_one_registry_is_named(registry: CollectorRegistry) -> None:
    """The error says what the metrics belong to, and what to do."""
    Lamps(registry, "lamp shop")
    with pytest.raises(ConfigError, match=r"another lamp shop\nhint: .* second lamp shop of"):
        Lamps(registry, "lamp shop")


def test_a_gauge_reads_at_the_scrape_or_keeps_what_was_set(registry: CollectorRegistry) -> None:
    """A refresh of a gauge that reads nothing leaves its value alone."""
    lamps = Lamps(registry, "lamp shop")
    lamps.burning.set(7)
    lamps.refresh()
    assert samples(registry)["lamps_burning"] == 7
    count = 1
    lamps.burning.read_from(lambda: count)
    assert samples(registry)["lamps_burning"] == 1
    count = 2
    assert samples(registry)["lamps_burning"] == 2
