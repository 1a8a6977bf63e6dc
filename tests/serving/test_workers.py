"""The pool has a thread for each busy connection, and none for the others."""

from __future__ import annotations

import queue
import threading
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Self

import pytest
from support.cache_helpers import DEADLINE_S, Gate
from support.helpers import wait_until

from bbcache.serving.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = "test-worker-pool"


class Work(NamedTuple):
    """A connection of a group, and what serving it does."""

    group: str
    serve: Callable[[], object]


class Asked:
    """Holds a thread of a pool, and asks there whether it must yield; ends it if it must."""

    def __init__(self, workers: Workers[Work]) -> None:
        self._workers = workers
        self._questions: queue.Queue[bool | None] = queue.Queue()
        self._answers: queue.Queue[bool] = queue.Queue()
        self._held = threading.Event()

    def __call__(self) -> None:
        """Serve."""
        self._held.set()
        while (to_own_group := self._questions.get(timeout=DEADLINE_S)) is not None:
            self._answers.put(self._workers.must_yield(to_own_group=to_own_group))

    def wait_for(self) -> None:
        """Wait until a thread is held."""
        assert self._held.wait(DEADLINE_S)

    def must_yield(self, *, to_own_group: bool) -> bool:
        """The answer."""
        self._questions.put(to_own_group)
        return self._answers.get(timeout=DEADLINE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._questions.put(None)


class Pool:
    """A pool, closed at the end."""

    def __init__(self) -> None:
        self.served: list[str] = []
        self.made: list[Workers[Work]] = []

    def make(self, most: int, **settings: object) -> Workers[Work]:
        """Make a pool of so many threads at most."""
        self.made.append(
            Workers(most, self._serve, name=NAME, group_of=lambda work: work.group, **settings)  # type: ignore[arg-type]  # settings of the constructor
        )
        self.made[-1].start()
        return self.made[-1]

    def _serve(self, work: Work) -> None:
        self.served.append(work.group)
        work.serve()


def thread_count() -> int:
    """How many threads the pool of a test has."""
    return sum(each.name == NAME for each in threading.enumerate())


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool that leaves no thread."""
    pool = Pool()
    yield pool
    for workers in pool.made:
        assert workers.close(DEADLINE_S)
    assert not thread_count()


def test_it_grows_with_busy_connections(pool: Pool) -> None:
    """Each of those that are served at once has a thread of its own, up to the limit."""
    workers = pool.make(3)
    with Gate() as gate:
        for _ in range(5):
            workers.add(Work("a", gate))
        gate.wait_for(3)
        assert thread_count() == 3
        assert workers.is_short
        assert not gate.has_arrived(0.05)
        gate.open()
    wait_until(lambda: len(pool.served) == 5)


def test_an_idle_thread_is_used_again(pool: Pool) -> None:
    """Connections that come one after the other share threads, though one may be late."""
    workers = pool.make(5)
    threads: set[int] = set()
    for _ in range(20):
        done = threading.Event()

        def serve(done: threading.Event = done) -> None:
            threads.add(threading.get_ident())
            done.set()

        workers.add(Work("a", serve))
        assert done.wait(DEADLINE_S)
    assert len(threads) == thread_count() < 20


def test_idle_threads_end(pool: Pool) -> None:
    """After their time, but for one, and new ones begin when they are needed."""
    workers = pool.make(5, idle_timeout_s=0.01)
    with Gate() as gate:
        for _ in range(5):
            workers.add(Work("a", gate))
        gate.wait_for(5)
        gate.open()
    wait_until(lambda: thread_count() == 1)
    done = threading.Event()
    workers.add(Work("a", done.set))
    assert done.wait(DEADLINE_S)


def test_the_group_with_the_fewest_threads_is_next(pool: Pool) -> None:
    """However long the queue of another group is."""
    workers = pool.make(2)
    with Gate() as gate:
        gates = [Gate() for _ in range(2)]
        for each in gates:
            workers.add(Work("greedy", each))
            each.wait_for()
        for _ in range(10):
            workers.add(Work("greedy", gate))
        workers.add(Work("modest", gate))
        gates[0].open()
        gate.wait_for()
        assert pool.served == ["greedy", "greedy", "modest"]
        gates[1].open()
        gate.open()


def test_threads_give_way_only_when_one_is_missing(pool: Pool) -> None:
    """To a group that has fewer, or on request to their own; one for each that waits."""
    workers = pool.make(3)
    with Gate() as gate, Asked(workers) as asked:
        workers.add(Work("greedy", asked))
        asked.wait_for()
        for _ in range(2):
            workers.add(Work("greedy", gate))
        gate.wait_for(2)
        assert not asked.must_yield(to_own_group=True)
        workers.add(Work("greedy", gate))
        assert not asked.must_yield(to_own_group=False)
        assert asked.must_yield(to_own_group=True)
        assert not asked.must_yield(to_own_group=True)
        workers.add(Work("modest", gate))
        assert asked.must_yield(to_own_group=False)
        assert not asked.must_yield(to_own_group=False)
        gate.open()


def test_no_thread_can_be_begun(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Connections wait for a thread that there is, and none is lost."""
    workers = pool.make(5)

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("no more")

    with Gate() as gate:
        workers.add(Work("a", gate))
        gate.wait_for()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            for _ in range(2):
                workers.add(Work("a", gate))
        assert caplog.messages == ["cannot start a thread to serve clients: no more"]
        assert workers.is_short
        gate.open()
    wait_until(lambda: len(pool.served) == 3)
    assert not workers.is_short


def test_one_thread_stays_for_when_none_can_be_begun(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the pool was idle, a connection is served."""
    workers = pool.make(5, idle_timeout_s=0.01)
    with Gate() as gate:
        for _ in range(3):
            workers.add(Work("a", gate))
        gate.wait_for(3)
        gate.open()
    wait_until(lambda: thread_count() == 1)

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("no more")

    monkeypatch.setattr(threading.Thread, "start", fail)
    done = [threading.Event() for _ in range(3)]
    for each in done:
        workers.add(Work("a", each.set))
    assert all(each.wait(DEADLINE_S) for each in done)


def test_a_free_thread_takes_the_next_connection(pool: Pool) -> None:
    """Before it waits for one, and it is counted for its group as any other."""
    taken: list[Work] = []
    workers = pool.make(2, take=partial(_next_of, taken))
    with Gate() as gate, Asked(workers) as asked:
        taken += [Work("greedy", asked), Work("greedy", gate)]
        workers.add(Work("a", lambda: None))
        gate.wait_for()
        workers.add(Work("a", lambda: None))
        asked.wait_for()
        assert pool.served == ["a", "greedy"] * 2
        workers.add(Work("modest", gate))
        assert asked.must_yield(to_own_group=False)
        gate.open()
    wait_until(lambda: pool.served[-1] == "modest")


def _next_of(taken: list[Work]) -> Work | None:
    return taken.pop() if taken else None


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt()])
def test_a_connection_that_cannot_be_served(
    pool: Pool, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """It costs no thread."""
    workers = pool.make(1)

    def fail() -> None:
        raise error

    workers.add(Work("a", fail))
    done = threading.Event()
    workers.add(Work("a", done.set))
    assert done.wait(DEADLINE_S)
    assert "a connection could not be served" in caplog.messages
