"""Work beside which latencies are taken: builds, bare compressors, clean-up steps."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from bbcache.bench.entries import LSN, wait_idle
from bbcache.bench.pipeline import isal_pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bbcache import BasebackupCache
    from bbcache.bench.pipeline import Pipeline
    from bbcache.host import TarballWriter
    from bbcache.ids import Lsn

WORKERS: Final = 2
_WAIT_S: Final = 60.0


@contextmanager
def building(pipeline: Pipeline, send: Callable[[TarballWriter], None]) -> Iterator[None]:
    """Two workers build in the block, one prepare after the other; what they make is removed.

    Args:
        pipeline: its cache has two workers, and nothing else to do.
        send: writes the tarball of a timeline.
    """
    tenant, cache = pipeline.tenant, pipeline.cache
    is_stopping = threading.Event()
    entered = threading.Semaphore(0)
    kept = dict(tenant.timelines)

    def add() -> None:
        timeline = tenant.add_timeline(LSN)
        timeline.on_send = send_and_go_on
        cache.send_prepare(tenant.tenant_shard_id, timeline.timeline_id, LSN)

    def send_and_go_on(writer: TarballWriter, _lsn: Lsn) -> None:
        entered.release()
        if not is_stopping.is_set():
            add()  # the next one waits in the queue while this one is built
        send(writer)

    for _ in range(WORKERS):
        add()
    try:
        for _ in range(WORKERS):
            if not entered.acquire(timeout=_WAIT_S):
                raise TimeoutError(f"no prepare has begun in {_WAIT_S:g} s")
        yield
    finally:
        is_stopping.set()
        wait_idle(cache)
        tenant.timelines = kept
        cache.run_cleanup()


@contextmanager
def compressing(tarball: bytes) -> Iterator[None]:
    """Two threads compress in the block by bare ISA-L, and do nothing else."""
    is_stopping = threading.Event()

    def compress() -> None:
        while not is_stopping.is_set():
            for _ in isal_pieces(tarball):
                if is_stopping.is_set():
                    break

    with _threads(compress, WORKERS, is_stopping):
        yield


@contextmanager
def cleaning(cache: BasebackupCache) -> Iterator[None]:
    """One clean-up step after the other is run in the block."""
    is_stopping = threading.Event()

    def clean() -> None:
        while not is_stopping.is_set():
            cache.run_cleanup()

    with _threads(clean, 1, is_stopping):
        yield


@contextmanager
def _threads(work: Callable[[], None], count: int, is_stopping: threading.Event) -> Iterator[None]:
    """Threads that have all begun when the block does, and have ended when it has."""
    barrier = threading.Barrier(count + 1)

    def run() -> None:
        barrier.wait(_WAIT_S)
        work()

    threads = [threading.Thread(target=run, name="bench-beside") for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        barrier.wait(_WAIT_S)
        yield
    finally:
        is_stopping.set()
        for thread in threads:
            thread.join()
