"""Work that runs beside measured calls: builds, bare compressors, clean-up steps."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from benchmarks.entries import LSN, wait_idle
from benchmarks.pipeline import isal_pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bbcache import BasebackupCache
    from bbcache.host import TarballWriter
    from bbcache.ids import Lsn
    from benchmarks.pipeline import Pipeline

WORKERS: Final = 2
_WAIT_S: Final = 60.0


@contextmanager
def building(pipeline: Pipeline, send: Callable[[TarballWriter], None]) -> Iterator[None]:
    """Let two workers build during the block, one prepare after the other.

    The end removes the archives.

    Args:
        pipeline: its cache has two workers and no other work.
        send: writes the tarball of a timeline.
    """
    tenant, cache = pipeline.tenant, pipeline.cache
    is_stopping = threading.Event()
    entered = threading.Semaphore(0)
    kept = dict(tenant.timelines)

    def add() -> None:
        timeline = tenant.add_timeline(LSN)
        timeline.on_send = send_and_add
        cache.send_prepare(tenant.tenant_shard_id, timeline.timeline_id, LSN)

    def send_and_add(writer: TarballWriter, _lsn: Lsn) -> None:
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
    """Let two threads compress with bare ISA-L during the block."""
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
    """Run one clean-up step after the other during the block."""
    is_stopping = threading.Event()

    def clean() -> None:
        while not is_stopping.is_set():
            cache.run_cleanup()

    with _threads(clean, 1, is_stopping):
        yield


@contextmanager
def _threads(work: Callable[[], None], count: int, is_stopping: threading.Event) -> Iterator[None]:
    """Run threads during the block: all have started when it begins, and ended when it ends."""
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
