"""A KeyboardInterrupt anywhere in a call of the main thread does the cache no harm.

After each one, other threads find no lock held, no request and no caller counted that is
none any more, no descriptor open, and gauges that agree with the disk. A normal run
interrupts each call at a fifth of its places, another fifth every time.
"""

from __future__ import annotations

import functools
import gc
import os
import shutil
import tempfile
import threading
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry
from support.cache_helpers import DEADLINE_S, LSN_A, LSN_B, Harness, Worker
from support.fill_helpers import filled, fillers, unpublished_bytes, waiting_callers
from support.helpers import count_descriptors, is_free, wait_until
from support.interrupts import interrupted, interruptible, places_of
from support.shares import share_of

from bbcache import (
    BasebackupCache,
    BasebackupCacheConfig,
    FillError,
    FillTimeoutError,
    TenantShardId,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bbcache import Lsn
    from bbcache.host import TarballWriter
    from bbcache.testing import MemoryTimeline

_FEW = 10
_SHM_DIR = Path("/dev/shm")  # noqa: S108 - mkdtemp is safe there

_SCENARIOS: dict[str, Callable[[Harness], Iterator[Callable[[], object]]]] = {}


def scenario(
    make: Callable[[Harness], Iterator[Callable[[], object]]],
) -> Callable[[Harness], Iterator[Callable[[], object]]]:
    """One call to interrupt: the steps before it, the call, and the steps after it."""
    _SCENARIOS[make.__name__] = make
    return make


@contextmanager
def busy_worker(
    harness: Harness,
    timeline: MemoryTimeline | None = None,
    lsn: Lsn = LSN_A,
    until: Callable[[], object] = lambda: False,
) -> Iterator[None]:
    """Keep the only worker busy during a block, or until `until` is true."""
    begun, is_over = threading.Event(), threading.Event()
    timeline = timeline or harness.timeline()

    def send(writer: TarballWriter, lsn: Lsn) -> None:
        begun.set()
        wait_until(lambda: is_over.is_set() or until())
        writer.write(timeline.tarball(lsn))

    timeline.on_send = send
    harness.send(timeline, lsn)
    begun.wait()
    try:
        yield
    finally:
        is_over.set()


@scenario
def get_hit(harness: Harness) -> Iterator[Callable[[], object]]:
    """The digest is checked."""
    yield functools.partial(harness.get_archive, harness.prepared())


@scenario
def get_verified_hit(harness: Harness) -> Iterator[Callable[[], object]]:
    """The digest was checked before."""
    timeline = harness.prepared()
    harness.get_archive(timeline)
    yield functools.partial(harness.get_archive, timeline)


@scenario
def get_miss(harness: Harness) -> Iterator[Callable[[], object]]:
    """There is no entry."""
    yield functools.partial(harness.open_file, harness.timeline())


@scenario
def get_vanished(harness: Harness) -> Iterator[Callable[[], object]]:
    """Its file was removed by hand."""
    timeline = harness.prepared()
    harness.path(timeline).unlink()
    yield functools.partial(harness.open_file, timeline)


@scenario
def get_bad(harness: Harness) -> Iterator[Callable[[], object]]:
    """It is quarantined, and built again."""
    timeline = harness.prepared()
    path = harness.path(timeline)
    path.write_bytes(bytes(path.stat().st_size))
    yield functools.partial(harness.open_file, timeline)


@scenario
def get_bad_beside_a_build(harness: Harness) -> Iterator[Callable[[], object]]:
    """A refresh of it is under way, and counts on its bytes."""
    timeline = harness.prepared()
    path = harness.path(timeline)
    path.write_bytes(bytes(path.stat().st_size))
    timeline.advance(LSN_B)
    with busy_worker(harness, timeline, LSN_B):
        yield functools.partial(harness.open_file, timeline)


@scenario
def clean_up(harness: Harness) -> Iterator[Callable[[], object]]:
    """One entry is outgrown."""
    timeline = harness.prepared()
    timeline.advance(LSN_B)
    harness.prepared()
    yield harness.cache.run_cleanup


@scenario
def look_on(harness: Harness) -> Iterator[Callable[[], object]]:
    """Calls that wait, and `entries`."""
    with busy_worker(harness):

        def look() -> None:
            assert harness.cache.wait_initialized()
            harness.cache.wait_idle(0.001)
            assert isinstance(harness.cache.entries(), list)

        yield look


@scenario
def send(harness: Harness) -> Iterator[Callable[[], object]]:
    """A worker takes it at once."""
    yield functools.partial(harness.send, harness.timeline())


@scenario
def send_to_a_full_queue(harness: Harness) -> Iterator[Callable[[], object]]:
    """It falls out."""
    with busy_worker(harness):
        harness.send(harness.timeline())
        yield functools.partial(harness.send, harness.timeline())


@scenario
def send_once_more(harness: Harness) -> Iterator[Callable[[], object]]:
    """It is coalesced with the one that waits."""
    with busy_worker(harness):
        timeline = harness.timeline()
        harness.send(timeline)
        yield functools.partial(harness.send, timeline)


@scenario
def send_a_newer_one(harness: Harness) -> Iterator[Callable[[], object]]:
    """One at an older LSN waits."""
    with busy_worker(harness):
        timeline = harness.timeline(LSN_B)
        harness.send(timeline, LSN_A)
        yield functools.partial(harness.send, timeline, LSN_B)


@scenario
def send_to_another_shard(harness: Harness) -> Iterator[Callable[[], object]]:
    """It is skipped."""
    shard_id = TenantShardId(harness.tenant.tenant_id, 1, 2)
    yield functools.partial(
        harness.cache.send_prepare, shard_id, harness.timeline().timeline_id, LSN_A
    )


@scenario
def fill_hit(harness: Harness) -> Iterator[Callable[[], object]]:
    """Nothing is built."""
    yield functools.partial(filled, harness, harness.prepared())


@scenario
def fill_build(harness: Harness) -> Iterator[Callable[[], object]]:
    """It is built for this call."""
    yield functools.partial(filled, harness, harness.timeline())


@scenario
def fill_unpublished(harness: Harness) -> Iterator[Callable[[], object]]:
    """The timeline has moved on: the archive is returned and not published."""
    yield functools.partial(filled, harness, harness.timeline(LSN_B), LSN_A)


@scenario
def fill_join(harness: Harness) -> Iterator[Callable[[], object]]:
    """Another thread waits for the same build, which goes on when both do."""
    with busy_worker(harness, until=lambda: waiting_callers() == 2):
        timeline = harness.timeline()
        (other,) = fillers(harness, timeline, 1)
        yield functools.partial(filled, harness, timeline)
    other.result()


@scenario
def fill_join_what_was_sent(harness: Harness) -> Iterator[Callable[[], object]]:
    """A prepare that no caller has waited for."""
    with busy_worker(harness, until=lambda: waiting_callers() == 1):
        timeline = harness.timeline()
        harness.send(timeline)
        yield functools.partial(filled, harness, timeline)


@scenario
def fill_in_no_time(harness: Harness) -> Iterator[Callable[[], object]]:
    """The call gives up, and its request goes behind the line."""
    with busy_worker(harness):
        timeline = harness.timeline()

        def fill_in_vain() -> None:
            with suppress(FillTimeoutError):
                filled(harness, timeline, timeout_s=0)

        yield fill_in_vain


@scenario
def fill_that_fails(harness: Harness) -> Iterator[Callable[[], object]]:
    """The host raises."""
    timeline = harness.timeline()

    def fail(*_: object) -> None:
        raise RuntimeError("the host fails")

    def fill_in_vain() -> None:
        with suppress(FillError):
            filled(harness, timeline)

    timeline.on_send = fail
    yield fill_in_vain


@pytest.fixture
def harness() -> Iterator[Harness]:
    """A cache with one worker and a short queue, in /dev/shm if that exists."""
    base = _SHM_DIR if _SHM_DIR.is_dir() and os.access(_SHM_DIR, os.W_OK) else None
    parent = Path(tempfile.mkdtemp(prefix="bbcache-", dir=base))
    with Harness(parent / "cache", prepare_concurrency=1, prepare_channel_size=1) as made:
        yield made
    shutil.rmtree(parent)


def _check(harness: Harness, descriptors: int) -> None:
    """The checks after each interrupt, in another thread, which a held lock would stop."""
    harness.wait_idle()
    harness.cache.entries()
    assert count_descriptors() <= descriptors  # what other tests left may be closed meanwhile


def _check_all(harness: Harness) -> None:
    """Checks that take longer, after every few interrupts."""
    assert harness.value("pageserver_basebackup_cache_prepare_queue_size") == 0
    assert unpublished_bytes(harness) == 0
    harness.check_accounting()
    timeline = harness.timeline()
    harness.prepare(timeline)
    assert harness.get(timeline) is not None
    harness.tenant.timelines.clear()
    harness.cache.run_cleanup()
    assert harness.cache.entries() == []
    harness.check_accounting()


@pytest.mark.parametrize("name", _SCENARIOS)
def test_an_interrupt_anywhere_does_no_harm(harness: Harness, name: str) -> None:
    """A KeyboardInterrupt at any line of a call does no harm."""
    play, count = contextmanager(_SCENARIOS[name]), 0
    with play(harness) as call:
        places = share_of(places_of(call))
    harness.wait_idle()
    gc.collect()  # caches of other tests, whose locks would be freed in the middle
    descriptors = count_descriptors()
    with interruptible(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for number, place in enumerate(places, start=1):
            try:
                with play(harness) as call:
                    count += interrupted(call, place)
                Worker(call).result()  # it takes up what the other has begun
                Worker(_check, harness, descriptors).result()
                if number % _FEW == 0 or place is places[-1]:
                    Worker(_check_all, harness).result()
            except BaseException as error:
                raise AssertionError(f"interrupted at {place}") from error
    assert count > len(places) / 2


def _close_is_done(harness: Harness) -> None:
    """The interrupted close can be finished in another thread, and the directory is free."""
    harness.cache.close(DEADLINE_S)
    assert harness.living() == harness.living("cleanup") == []
    assert harness.value("pageserver_basebackup_cache_prepare_queue_size") == 0
    assert harness.temp_files() == []
    harness.open()


def test_an_interrupt_anywhere_in_a_close_does_no_harm(harness: Harness) -> None:
    """A build runs and another prepare waits; both end, and the next cache may start."""

    def make_call() -> Callable[[], object]:
        harness.reopen()
        harness.prepared()
        timeline = harness.timeline()
        begun = threading.Event()

        def send(writer: TarballWriter, _lsn: Lsn) -> None:
            begun.set()
            while True:
                writer.write(bytes(1000))

        timeline.on_send = send
        harness.send(timeline)
        begun.wait()
        harness.send(harness.timeline())
        return harness.cache.close

    # Those in `threading` are in the gate of filelock, which an interrupt leaves locked.
    found = [p for p in places_of(make_call()) if p.code.co_filename != threading.__file__]
    places = share_of(found)
    count = 0
    gc.collect()  # as above
    descriptors = count_descriptors()
    with interruptible():
        for place in places:
            try:
                count += interrupted(make_call(), place)
                Worker(_close_is_done, harness).result()
                harness.cache.close()
                assert count_descriptors() <= descriptors
            except BaseException as error:
                raise AssertionError(f"interrupted at {place}") from error
    assert count > len(places) / 2


@pytest.fixture
def _quick_collections() -> None:
    """Make later collections skip the objects of other tests."""
    gc.collect()
    gc.freeze()


@pytest.mark.usefixtures("_quick_collections")
def test_an_interrupt_anywhere_in_a_spawn_frees_the_directory(harness: Harness) -> None:
    """It leaves no thread either, except at places inside `threading`."""
    harness.cache.close()

    def spawn() -> BasebackupCache:
        return BasebackupCache.spawn(
            harness.dir, BasebackupCacheConfig(), harness.host, CollectorRegistry()
        )

    caches: list[BasebackupCache] = []

    def spawn_one() -> None:
        caches.append(spawn())

    found = [p for p in places_of(spawn_one) if p.code.co_filename != threading.__file__]
    places = share_of(found)
    caches.pop().close()
    with interruptible(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for place in places:
            try:
                interrupted(spawn_one, place)
                while caches:
                    caches.pop().close()
                gc.collect()
                Worker(wait_until, functools.partial(is_free, harness.dir)).result()
            except BaseException as error:
                raise AssertionError(f"interrupted at {place}") from error
