"""Hosts that raise, and hosts that misuse the writer: a prepare ends, the worker lives."""

from __future__ import annotations

import asyncio
import errno
import io
import itertools
import shutil
import tarfile
import threading
from typing import TYPE_CHECKING, Any

import pytest
from support.cache_helpers import (
    DEADLINE_S,
    LSN_A,
    MIB,
    Gate,
    Rig,
    Worker,
    noise,
    stop_before,
    tar_of,
)
from support.helpers import wait_until

from bbcache import NotReadyError, StoreError
from bbcache.archive.format import ArchiveWriter
from bbcache.errors import CacheFullError, ClosingError, EntryTooBigError
from bbcache.storage.catalog import Shelf
from bbcache.storage.files import TempFile
from bbcache.storage.index import Index

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bbcache import Lsn
    from bbcache.host import TarballWriter
    from bbcache.storage.accounting import Reservation
    from bbcache.testing import MemoryTimeline


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A running cache with one worker, so that a lost worker shows."""
    with Rig(tmp_path / "cache", prepare_concurrency=1) as opened:
        yield opened


class _Unprintable(Exception):  # noqa: N818 - what matters is that it cannot be printed
    def __str__(self) -> str:
        raise RuntimeError("no text")


class _Ending(Exception):  # noqa: N818 - what matters is that whoever prints it ends
    def __str__(self) -> str:
        raise SystemExit(3)


RAISED = [
    *(Exception(), RuntimeError("the host broke"), KeyError("x"), OSError(5, "EIO")),
    *(TimeoutError("late"), StoreError("of the host's own", errno=28), NotReadyError("no")),
    *(SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()),
    *(_Unprintable(), _Ending()),
]
CALLBACKS = [
    *("get_attached_tenant_shard", "basebackup_cache_enabled", "current_state"),
    *("get_timeline", "get_last_record_lsn", "wait_lsn", "send_basebackup_tarball"),
]
FAILURES = [
    pytest.param(callback, error, id=f"{callback}-{type(error).__name__}")
    for callback, error in itertools.product(CALLBACKS, RAISED)
    if callback != "wait_lsn" or not isinstance(error, TimeoutError)  # which means not reached
]


def _callback_owner(rig: Rig, timeline: MemoryTimeline, name: str) -> object:
    owners = (rig.host, rig.tenant, timeline)
    return next(owner for owner in owners if hasattr(owner, name))


def _raiser(error: BaseException) -> Callable[..., Any]:
    def raise_it(*_: object) -> None:
        raise error

    return raise_it


def _check_worker_lives(rig: Rig) -> None:
    timeline = rig.timeline()
    rig.send(timeline)
    assert rig.cache.wait_idle(60), "the worker is lost"
    assert rig.get(timeline) == tar_of(timeline)


@pytest.mark.parametrize(("callback", "error"), FAILURES)
def test_whatever_a_callback_raises_is_counted_and_logged(
    rig: Rig,
    callback: str,
    error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A host may raise anything anywhere: an error with ids and LSN, and the worker lives."""
    timeline = rig.timeline()
    with monkeypatch.context() as patch:
        patch.setattr(_callback_owner(rig, timeline, callback), callback, _raiser(error))
        rig.prepare(timeline)
    assert rig.counts() == {"error": 1}
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    for part in (rig.tenant.tenant_id, timeline.timeline_id, LSN_A):
        assert str(part) in record.getMessage()
    rig.check_books()
    _check_worker_lives(rig)


@pytest.mark.parametrize("error", [ClosingError("x"), CacheFullError("x"), EntryTooBigError("x")])
@pytest.mark.parametrize("callback", ["get_timeline", "wait_lsn", "send_basebackup_tarball"])
def test_a_host_cannot_pretend_to_be_the_cache(
    rig: Rig, callback: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a host raises itself is an error, also an exception of another cache of its own."""
    timeline = rig.timeline()
    with monkeypatch.context() as patch:
        patch.setattr(_callback_owner(rig, timeline, callback), callback, _raiser(error))
        rig.prepare(timeline)
    assert rig.counts() == {"error": 1}


def test_a_host_of_odd_answers_does_no_harm(rig: Rig) -> None:
    """Answers of a wrong type are errors of that prepare alone."""
    timeline = rig.timeline()
    tenant: Any = rig.tenant
    tenant.state = "active"
    rig.prepare(timeline)
    tenant.state = type(rig.tenant)(tenant.tenant_shard_id).state
    broken: Any = timeline
    broken.get_last_record_lsn = lambda: None
    rig.prepare(timeline)
    assert rig.counts() == {"error": 2}
    _check_worker_lives(rig)


def _swallowing(writer: TarballWriter, lsn: Lsn) -> None:
    del lsn
    try:
        for _ in range(4):
            writer.write(noise(MIB))
    except CacheFullError:
        pass


def _swallowing_a_type_error(writer: Any, lsn: Lsn) -> None:
    del lsn
    writer.write(b"good bytes")
    with pytest.raises(TypeError):
        writer.write("a text")


def test_a_swallowed_limit_fails_the_build(tmp_path: Path) -> None:
    """Once the writer has raised, the build fails, even where the host goes on as if not."""
    with Rig(tmp_path / "cache", max_total_size_bytes=2 * MIB) as rig:
        rig.prepared(size_bytes=MIB // 2)
        timeline = rig.timeline()
        timeline.on_send = _swallowing
        rig.prepare(timeline)
        assert rig.skips == {"full": 1}
        rig.check_books()


def test_a_swallowed_error_of_write_fails_the_build(rig: Rig) -> None:
    """Also for an argument that the writer refuses."""
    timeline = rig.timeline()
    timeline.on_send = _swallowing_a_type_error
    rig.prepare(timeline)
    assert rig.counts() == {"error": 1}
    rig.check_books()


def test_writes_after_a_failed_one_raise_the_same(tmp_path: Path) -> None:
    """A host that tries again after the writer has raised gets the same error again."""
    with Rig(tmp_path / "cache", max_entry_size_bytes=MIB) as rig:
        timeline = rig.timeline()
        seen: list[BaseException] = []

        def send(writer: TarballWriter, _lsn: Lsn) -> None:
            for _ in range(6):
                try:
                    writer.write(noise(MIB))
                except EntryTooBigError as error:
                    seen.append(error)

        timeline.on_send = send
        rig.prepare(timeline)
        assert len(seen) > 1
        assert all(error is seen[0] for error in seen)
        assert rig.skips == {"too_big": 1}


@pytest.mark.parametrize("piece_size_bytes", [100, 8192, 3 * MIB])
def test_a_host_may_reuse_its_buffer(rig: Rig, piece_size_bytes: int) -> None:
    """The writer copies what it keeps, of small pieces and of big ones."""
    timeline = rig.timeline()
    data = noise(4 * MIB) if piece_size_bytes > 8192 else noise(100_000)

    def send(writer: TarballWriter, _lsn: Lsn) -> None:
        buffer = bytearray(piece_size_bytes)
        source = io.BytesIO(data)
        while count := source.readinto(buffer):
            assert writer.write(memoryview(buffer)[:count]) == count
            buffer[:] = b"\xee" * len(buffer)

    timeline.on_send = send
    rig.prepare(timeline)
    assert rig.get(timeline) == data


def test_a_host_may_close_and_flush_the_writer(rig: Rig) -> None:
    """`close` and `flush` are ignored: only the cache ends an archive."""
    timeline = rig.timeline()

    def send(writer: Any, lsn: Lsn) -> None:
        with writer:
            writer.write(tar_of(timeline, lsn)[:700])
            writer.flush()
        writer.close()
        writer.write(tar_of(timeline, lsn)[700:])

    timeline.on_send = send
    rig.prepare(timeline)
    assert rig.get(timeline) == tar_of(timeline)


def test_a_host_that_detaches_the_writer_gets_an_error(rig: Rig) -> None:
    """A writer taken to pieces by the host fails its build, and nothing else."""
    timeline = rig.timeline()
    kept: list[Any] = []

    def send(writer: Any, _lsn: Lsn) -> None:
        writer.write(b"x")
        kept.append(writer.detach())

    timeline.on_send = send
    rig.prepare(timeline)
    assert rig.counts() == {"error": 1}
    _check_worker_lives(rig)


def test_a_host_may_write_with_tarfile(rig: Rig, tmp_path: Path) -> None:
    """A tar stream of the standard library, and shutil's copy, are what a writer is for."""
    (tmp_path / "PG_VERSION").write_text("17\n")
    with_tarfile, with_copy = rig.timeline(), rig.timeline()

    def send(writer: Any, _lsn: Lsn) -> None:
        with tarfile.open(fileobj=writer, mode="w|") as tar:
            tar.add(tmp_path / "PG_VERSION", "PG_VERSION")

    with_tarfile.on_send = send
    with_copy.on_send = lambda writer, lsn: shutil.copyfileobj(
        io.BytesIO(tar_of(with_copy, lsn)), writer
    )
    rig.prepare(with_tarfile)
    rig.prepare(with_copy)
    found = rig.get(with_tarfile)
    assert found is not None
    with tarfile.open(fileobj=io.BytesIO(found)) as tar:
        assert tar.getnames() == ["PG_VERSION"]
    assert rig.get(with_copy) == tar_of(with_copy)


def test_a_write_after_the_callback_raises_value_error(rig: Rig) -> None:
    """The writer is dead once the callback has returned, and the archive stays as it is."""
    timeline = rig.timeline()
    kept: list[TarballWriter] = []

    def send(writer: TarballWriter, lsn: Lsn) -> None:
        kept.append(writer)
        writer.write(tar_of(timeline, lsn))

    timeline.on_send = send
    rig.prepare(timeline)
    for data in (b"late", noise(3 * MIB)):
        with pytest.raises(ValueError, match="ended"):
            kept[0].write(data)
    assert rig.get(timeline) == tar_of(timeline)
    rig.check_books()


def test_a_write_after_a_callback_that_failed_raises_value_error(rig: Rig) -> None:
    """The writer is dead then too."""
    kept: list[TarballWriter] = []

    def send(writer: TarballWriter, _lsn: Lsn) -> None:
        kept.append(writer)
        writer.write(b"begun")
        raise RuntimeError("the host fails")

    timeline = rig.timeline()
    timeline.on_send = send
    rig.prepare(timeline)
    with pytest.raises(ValueError, match="ended"):
        kept[0].write(b"late")
    rig.check_books()


def test_another_threads_late_write_changes_nothing(rig: Rig) -> None:
    """A helper thread that outlives the callback gets ValueError for its next write."""
    timeline = rig.timeline()
    workers: list[Worker] = []
    with Gate() as gate:

        def write_late(writer: TarballWriter) -> int:
            gate()
            return writer.write(b"late")

        def send(writer: TarballWriter, lsn: Lsn) -> None:
            writer.write(tar_of(timeline, lsn))
            workers.append(Worker(write_late, writer))
            gate.wait_for()

        timeline.on_send = send
        rig.prepare(timeline)
    with pytest.raises(ValueError, match="ended"):
        workers[0].result()
    assert rig.get(timeline) == tar_of(timeline)


def test_a_write_under_way_when_the_callback_returns_spoils_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for, or fails the build: no archive is published with a part of it."""
    with Rig(tmp_path / "cache", verify_reads="never") as rig, Gate() as gate, Gate() as syncing:
        timeline = rig.timeline()
        real_append = TempFile.append
        workers: list[Worker] = []
        tar = noise(2 * MIB)

        def append(temp: TempFile, data: bytes) -> None:
            if isinstance(threading.current_thread(), Worker):
                gate()
            real_append(temp, data)

        def send(writer: TarballWriter, _lsn: Lsn) -> None:
            writer.write(tar[:1000])
            workers.append(Worker(writer.write, tar[1000:]))
            gate.wait_for()

        monkeypatch.setattr(TempFile, "append", append)
        stop_before(monkeypatch, TempFile, "sync", syncing)
        timeline.on_send = send
        rig.send(timeline)
        has_gone_on = syncing.has_arrived(0.5)  # in vain where the write is waited for
        gate.open()
        if has_gone_on:
            wait_until(lambda: not workers[0].is_alive())
        syncing.open()
        rig.wait_idle()
        assert rig.get(timeline) in {None, tar}


def test_a_write_under_way_when_the_callback_raises_takes_no_room(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for: nothing is reserved, or written, for a build that is over."""
    with Gate() as gate, Gate() as abandoning:
        timeline = rig.timeline()
        real_grow = Index.grow
        workers: list[Worker] = []

        def grow(index: Index, reservation: Reservation, size_bytes: int) -> None:
            if isinstance(threading.current_thread(), Worker):
                gate()
            real_grow(index, reservation, size_bytes)

        def send(writer: TarballWriter, _lsn: Lsn) -> None:
            workers.append(Worker(writer.write, noise(2 * MIB)))
            gate.wait_for()
            raise RuntimeError("the host gives up")

        monkeypatch.setattr(Index, "grow", grow)
        stop_before(monkeypatch, Shelf, "abandon", abandoning)
        timeline.on_send = send
        rig.send(timeline)
        if abandoning.has_arrived(0.5):  # in vain where the write is waited for
            abandoning.open()
            rig.wait_idle()
        abandoning.open()
        gate.open()
        rig.wait_idle()
        workers[0].join(DEADLINE_S)
        assert rig.counts() == {"error": 1}
        rig.check_books()


def test_a_write_that_fails_after_the_callback_returned_fails_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the archive waits for a write under way, and for what that has raised."""
    with Rig(tmp_path / "cache", verify_reads="never") as rig, Gate() as gate:
        timeline = rig.timeline()
        real_append = TempFile.append
        workers: list[Worker] = []

        def append(temp: TempFile, data: bytes) -> None:
            if isinstance(threading.current_thread(), Worker):
                gate()
                raise OSError(errno.ENOSPC, "No space left on device")
            real_append(temp, data)

        def send(writer: TarballWriter, _lsn: Lsn) -> None:
            writer.write(noise(1000))
            workers.append(Worker(writer.write, noise(2 * MIB)))
            gate.wait_for()

        def finish(writer: ArchiveWriter) -> Any:
            gate.open()
            return real_finish(writer)

        real_finish = ArchiveWriter.finish
        monkeypatch.setattr(TempFile, "append", append)
        monkeypatch.setattr(ArchiveWriter, "finish", finish)
        timeline.on_send = send
        rig.prepare(timeline)
        with pytest.raises(StoreError):
            workers[0].result()
        assert rig.counts() == {"error": 1}
        assert rig.get(timeline) is None


def test_a_host_may_write_from_threads_of_its_own(rig: Rig) -> None:
    """Writes come from whatever thread the host likes, as long as the callback runs."""
    timeline = rig.timeline()

    def send(writer: TarballWriter, lsn: Lsn) -> None:
        Worker(writer.write, tar_of(timeline, lsn)).result()

    timeline.on_send = send
    rig.prepare(timeline)
    assert rig.get(timeline) == tar_of(timeline)


def test_a_failing_write_of_another_thread_fails_the_build(tmp_path: Path) -> None:
    """An error that only a helper thread of the host has seen fails the build all the same."""
    with Rig(tmp_path / "cache", max_entry_size_bytes=MIB) as rig:
        timeline = rig.timeline()

        def send(writer: TarballWriter, _lsn: Lsn) -> None:
            with pytest.raises(EntryTooBigError):
                Worker(writer.write, noise(3 * MIB)).result()

        timeline.on_send = send
        rig.prepare(timeline)
        assert rig.skips == {"too_big": 1}
        rig.check_books()


@pytest.mark.parametrize("writes", [[], [b""], [b"", b""]], ids=["nothing", "empty", "twice"])
def test_an_empty_archive_is_an_error(rig: Rig, writes: list[bytes]) -> None:
    """A host that writes nothing has failed."""
    timeline = rig.timeline()

    def send(writer: TarballWriter, _lsn: Lsn) -> None:
        for data in writes:
            assert writer.write(data) == 0

    timeline.on_send = send
    rig.prepare(timeline)
    assert rig.counts() == {"error": 1}
    rig.check_books()


def test_a_host_may_use_the_cache_from_its_callbacks(rig: Rig) -> None:
    """Callbacks run without any lock: they may get, prepare, list and clean up."""
    timeline, other = rig.timeline(), rig.prepared()

    def send(writer: TarballWriter, lsn: Lsn) -> None:
        done = threading.Event()

        def use() -> None:
            assert rig.get(other) == tar_of(other)
            rig.send(other)
            assert rig.holds(other)
            rig.cache.run_cleanup()
            done.set()

        Worker(use).result()
        use()
        assert done.wait(DEADLINE_S)
        writer.write(tar_of(timeline, lsn))

    timeline.on_send = send
    rig.prepare(timeline)
    assert rig.get(timeline) == tar_of(timeline)
    assert len(rig.living()) == 1
