"""Prometheus metrics declared as rows: name, kind, labels and text of each, once.

A `MetricSet` makes a collector of each of its rows. The tables of the docs and the tests read
the rows. To add a metric, add its row and the place that counts it.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Self, TypeVar, overload

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from bbcache.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client.registry import Collector

_T = TypeVar("_T")
_K = TypeVar("_K", bound=str)


class ReadGauge(Gauge):
    """A gauge that may read its value at a scrape.

    In Prometheus' multi-process mode another process is scraped, which sees the value of
    the last `refresh`.
    """

    _read: Callable[[], int] | None = None

    def read_from(self, read: Callable[[], int]) -> None:
        """Show what `read` returns, which is called without any lock."""
        self.set_function(read)
        self._read = read

    def refresh(self) -> None:
        """Set the gauge to the value of this moment, for other processes."""
        if self._read is not None:
            self.set(self._read())


_COLLECTORS: Final[Mapping[str, Callable[..., Any]]] = {
    "counter": Counter,
    # A cache counts once in the sum of all, and not at all once its process has ended.
    "gauge": partial(ReadGauge, multiprocess_mode="livesum"),
    "histogram": Histogram,
}


class Row(Generic[_T]):
    """The declaration of one metric, as an attribute of a `MetricSet`.

    The class has the row. An object has the collector, or, if there are labels, a mapping from
    their values (a tuple of them if there are several) to its children.

    Args:
        kind: of the metric.
        name: as a scrape shows it; a counter's ends in ``_total``.
        text: what it shows: the help of a scrape, and the meaning in the docs.
        labels: the values of each label, which all exist at zero from the start.
        options: further arguments of the collector.
    """

    def __init__(
        self,
        kind: Literal["counter", "gauge", "histogram"],
        name: str,
        text: str,
        labels: Mapping[str, Iterable[str]] | None = None,
        **options: Any,
    ) -> None:
        self.kind, self.name, self.text = kind, name, text
        self.labels = {label: tuple(values) for label, values in (labels or {}).items()}
        self._options = options

    def __set_name__(self, owner: type, attribute: str) -> None:
        """Take the name of the attribute, under which an object has the collector."""
        self._attribute = attribute

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type) -> _T: ...

    def __get__(self, instance: object, owner: type) -> Self | _T:
        """Give the row to the class; an object finds its collector before it comes here."""
        if instance is None:
            return self
        raise AttributeError(self._attribute)

    def make(self, owner: object) -> Collector:
        """Make the collector, not yet registered, and give it to `owner`."""
        make = _COLLECTORS[self.kind]
        parent = made = make(self.name, self.text, [*self.labels], registry=None, **self._options)
        if self.labels:
            each = product(*self.labels.values())
            made = {key if len(key) > 1 else key[0]: parent.labels(*key) for key in each}
        setattr(owner, self._attribute, made)
        collector: Collector = parent
        return collector


def counter(name: str, text: str) -> Row[Counter]:
    """Declare a counter without labels."""
    return Row("counter", name, text)


def counter_by(label: str, values: Iterable[_K], name: str, text: str) -> Row[Mapping[_K, Counter]]:
    """Declare a counter with one label."""
    return Row("counter", name, text, {label: values})


def gauge(name: str, text: str) -> Row[ReadGauge]:
    """Declare a gauge without labels."""
    return Row("gauge", name, text)


def histogram(name: str, text: str, buckets: Iterable[float]) -> Row[Histogram]:
    """Declare a histogram without labels."""
    return Row("histogram", name, text, buckets=tuple(buckets))


def histogram_by(
    label: str, values: Iterable[_K], name: str, text: str, buckets: Iterable[float]
) -> Row[Mapping[_K, Histogram]]:
    """Declare a histogram with one label."""
    return Row("histogram", name, text, {label: values}, buckets=tuple(buckets))


class MetricSet:
    """The collectors of the rows of a class, registered all or none. Thread-safe.

    Args:
        registry: where to register; None for Prometheus' default registry.
        owner: what the metrics belong to, for the error.

    Raises:
        ConfigError: the registry has the metrics of another owner.
    """

    def __init__(self, registry: CollectorRegistry | None, owner: str) -> None:
        self._registry = REGISTRY if registry is None else registry
        self._collectors = [row.make(self) for row in self.rows()]
        register_all(self._registry, self._collectors, owner)

    @classmethod
    def rows(cls) -> list[Row[Any]]:
        """The rows in their order."""
        return [each for each in vars(cls).values() if isinstance(each, Row)]

    def refresh(self) -> None:
        """Set the gauges to the values of this moment, for the multi-process mode."""
        for collector in self._collectors:
            if isinstance(collector, ReadGauge):
                collector.refresh()

    def close(self) -> None:
        """Leave the default registry; one of the caller's own stays readable."""
        if self._registry is REGISTRY:
            self.withdraw()

    def withdraw(self) -> None:
        """Leave any registry, since the start of the owner has failed."""
        unregister_all(self._registry, self._collectors)


def register_all(registry: CollectorRegistry, collectors: Iterable[Collector], owner: str) -> None:
    """Register all collectors or none; the arguments are those of `MetricSet`.

    Raises:
        ConfigError: the registry has the metrics of another owner.
    """
    done: list[Collector] = []
    try:
        for collector in collectors:
            registry.register(collector)
            done.append(collector)
    except BaseException as error:
        unregister_all(registry, done)
        if not isinstance(error, ValueError):
            raise
        raise ConfigError(
            f"the Prometheus registry has the metrics of another {owner}\n"
            f"hint: Pass registry=CollectorRegistry() to the second {owner} of a process."
        ) from error


def unregister_all(registry: CollectorRegistry, collectors: Iterable[Collector]) -> None:
    """Unregister all that are registered."""
    for collector in collectors:
        with suppress(KeyError):
            registry.unregister(collector)
