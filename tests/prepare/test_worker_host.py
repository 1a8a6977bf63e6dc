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
    Harness,
    Worker,
    noise,
    stop_before,
    tar_of,
)
from support.helpers import wait_until

from bbcache import NotReadyError, StoreError
from bbcache.archive.writer import ArchiveWriter
from bbcache.errors import CacheFullError, ClosingError, EntryTooBigError
from bbcache.prepare.build_space import BuildSpace
from bbcache.storage.catalog import Catalog
from bbcache.storage.files import TempFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bbcache import Lsn
    from bbcache.host import TarballWriter
    from bbcache.testing import MemoryTimeline


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    """A running cache with one worker, so that a lost worker shows."""
    with Harness(tmp_path / "cache", prepare_concurrency=1) as opened:
        yield opened


class _Unprintable(Exception):  # noqa: N818 - what matters is that it cannot be printed
    def __str__(self) -> str:
        raise RuntimeError("no text")


class _Ending(Exception):  # noqa: N818 - the name does not matter: a thread that prints it ends
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


def _callback_owner(harness: Harness, timeline: MemoryTimeline, name: str) -> object:
    owners = (harness.host, harness.tenant, timeline)
    return next(owner for owner in owners if hasattr(owner, name))


def _raiser(error: BaseException) -> Callable[..., Any]:
    def raise_it(*_: object) -> None:
        raise error

    return raise_it


def _check_worker_lives(harness: Harness) -> None:
    timeline = harness.timeline()
    harness.send(timeline)
    assert harness.cache.wait_idle(60), "the worker is lost"
    assert harness.get(timeline) == tar_of(timeline)


@pytest.mark.parametrize(("callback", "error"), FAILURES)
def test_whatever_a_callback_raises_is_counted_and_logged(
    harness: Harness,
    callback: str,
    error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever a host raises is an error with ids and LSN, and the worker goes on."""
    timeline = harness.timeline()
    with monkeypatch.context() as patch:
        patch.setattr(_callback_owner(harness, timeline, callback), callback, _raiser(error))
        harness.prepare(timeline)
    assert harness.counts() == {"error": 1}
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    for part in (harness.tenant.tenant_id, timeline.timeline_id, LSN_A):
        assert str(part) in record.getMessage()
    harness.check_accounting()
    _check_worker_lives(harness)


@pytest.mark.parametrize("error", [ClosingError("x"), CacheFullError("x"), EntryTooBigError("x")])
@pytest.mark.parametrize("callback", ["get_timeline", "wait_lsn", "send_basebackup_tarball"])
def test_a_host_cannot_pretend_to_be_the_cache(
    harness: Harness, callback: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception of the host is an error, even if it comes from another cache."""
    timeline = harness.timeline()
    with monkeypatch.context() as patch:
        patch.setattr(_callback_owner(harness, timeline, callback), callback, _raiser(error))
        harness.prepare(timeline)
    assert harness.counts() == {"error": 1}


def test_a_host_of_odd_answers_does_no_harm(harness: Harness) -> None:
    """Answers of a wrong type are errors of that prepare alone."""
    timeline = harness.timeline()
    tenant: Any = harness.tenant
    tenant.state = "active"
    harness.prepare(timeline)
    tenant.state = type(harness.tenant)(tenant.tenant_shard_id).state
    broken: Any = timeline
    broken.get_last_record_lsn = lambda: None
    harness.prepare(timeline)
    assert harness.counts() == {"error": 2}
    _check_worker_lives(harness)


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
    """Once the writer has raised, the build fails, even if the host goes on."""
    limit_bytes = 2 * MIB
    harness = Harness(tmp_path / "cache", max_total_size_bytes=limit_bytes, eviction="none")
    with harness:
        harness.prepared(size_bytes=MIB // 2)
        timeline = harness.timeline()
        timeline.on_send = _swallowing
        harness.prepare(timeline)
        assert harness.skips == {"full": 1}
        harness.check_accounting()


def test_a_swallowed_error_of_write_fails_the_build(harness: Harness) -> None:
    """An error of write fails the build even if the host swallows it."""
    timeline = harness.timeline()
    timeline.on_send = _swallowing_a_type_error
    harness.prepare(timeline)
    assert harness.counts() == {"error": 1}
    harness.check_accounting()


def test_writes_after_a_failed_one_raise_the_same(tmp_path: Path) -> None:
    """A host that tries again after the writer has raised gets the same error again."""
    with Harness(tmp_path / "cache", max_entry_size_bytes=MIB) as harness:
        timeline = harness.timeline()
        seen: list[BaseException] = []

        def send(writer: TarballWriter, _lsn: Lsn) -> None:
            for _ in range(6):
                try:
                    writer.write(noise(MIB))
                except EntryTooBigError as error:
                    seen.append(error)

        timeline.on_send = send
        harness.prepare(timeline)
        assert len(seen) > 1
        assert all(error is seen[0] for error in seen)
        assert harness.skips == {"too_big": 1}


@pytest.mark.parametrize("piece_size_bytes", [100, 8192, 3 * MIB])
def test_a_host_may_reuse_its_buffer(harness: Harness, piece_size_bytes: int) -> None:
    """The writer copies what it keeps, of small pieces and of big ones."""
    timeline = harness.timeline()
    data = noise(4 * MIB) if piece_size_bytes > 8192 else noise(100_000)

    def send(writer: TarballWriter, _lsn: Lsn) -> None:
        buffer = bytearray(piece_size_bytes)
        source = io.BytesIO(data)
        while count := source.readinto(buffer):
            assert writer.write(memoryview(buffer)[:count]) == count
            buffer[:] = b"\xee" * len(buffer)

    timeline.on_send = send
    harness.prepare(timeline)
    assert harness.get(timeline) == data


def test_a_host_may_close_and_flush_the_writer(harness: Harness) -> None:
    """`close` and `flush` are ignored: only the cache ends an archive."""
    timeline = harness.timeline()

    def send(writer: Any, lsn: Lsn) -> None:
        with writer:
            writer.write(tar_of(timeline, lsn)[:700])
            writer.flush()
        writer.close()
        writer.write(tar_of(timeline, lsn)[700:])

    timeline.on_send = send
    harness.prepare(timeline)
    assert harness.get(timeline) == tar_of(timeline)


def test_a_host_that_detaches_the_writer_gets_an_error(harness: Harness) -> None:
    """A host that breaks the writer's attributes fails its build, and nothing else."""
    timeline = harness.timeline()
    kept: list[Any] = []

    def send(writer: Any, _lsn: Lsn) -> None:
        writer.write(b"x")
        kept.append(writer.detach())

    timeline.on_send = send
    harness.prepare(timeline)
    assert harness.counts() == {"error": 1}
    _check_worker_lives(harness)


def test_a_host_may_write_with_tarfile(harness: Harness, tmp_path: Path) -> None:
    """A `tarfile` stream and `shutil.copyfileobj` can write to it."""
    (tmp_path / "PG_VERSION").write_text("17\n")
    with_tarfile, with_copy = harness.timeline(), harness.timeline()

    def send(writer: Any, _lsn: Lsn) -> None:
        with tarfile.open(fileobj=writer, mode="w|") as tar:
            tar.add(tmp_path / "PG_VERSION", "PG_VERSION")

    with_tarfile.on_send = send
    with_copy.on_send = lambda writer, lsn: shutil.copyfileobj(
        io.BytesIO(tar_of(with_copy, lsn)), writer
    )
    harness.prepare(with_tarfile)
    harness.prepare(with_copy)
    found = harness.get(with_tarfile)
    assert found is not None
    with tarfile.open(fileobj=io.BytesIO(found)) as tar:
        assert tar.getnames() == ["PG_VERSION"]
    assert harness.get(with_copy) == tar_of(with_copy)


def test_a_write_after_the_callback_raises_value_error(harness: Harness) -> None:
    """The writer raises once the callback has returned, and the archive does not change."""
    timeline = harness.timeline()
    kept: list[TarballWriter] = []

    def send(writer: TarballWriter, lsn: Lsn) -> None:
        kept.append(writer)
        writer.write(tar_of(timeline, lsn))

    timeline.on_send = send
    harness.prepare(timeline)
    for data in (b"late", noise(3 * MIB)):
        with pytest.raises(ValueError, match="ended"):
            kept[0].write(data)
    assert harness.get(timeline) == tar_of(timeline)
    harness.check_accounting()


def test_a_write_after_a_callback_that_failed_raises_value_error(harness: Harness) -> None:
    """The writer raises then too."""
    kept: list[TarballWriter] = []

    def send(writer: TarballWriter, _lsn: Lsn) -> None:
        kept.append(writer)
        writer.write(b"begun")
        raise RuntimeError("the host fails")

    timeline = harness.timeline()
    timeline.on_send = send
    harness.prepare(timeline)
    with pytest.raises(ValueError, match="ended"):
        kept[0].write(b"late")
    harness.check_accounting()


def test_another_threads_late_write_changes_nothing(harness: Harness) -> None:
    """A helper thread that outlives the callback gets ValueError for its next write."""
    timeline = harness.timeline()
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
        harness.prepare(timeline)
    with pytest.raises(ValueError, match="ended"):
        workers[0].result()
    assert harness.get(timeline) == tar_of(timeline)


def test_a_write_under_way_when_the_callback_returns_spoils_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The build waits for it or fails: no archive is published with a part of it."""
    with (
        Harness(tmp_path / "cache", verify_reads="never") as harness,
        Gate() as gate,
        Gate() as syncing,
    ):
        timeline = harness.timeline()
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
        harness.send(timeline)
        has_gone_on = syncing.has_arrived(0.5)  # in vain where the write is waited for
        gate.open()
        if has_gone_on:
            wait_until(lambda: not workers[0].is_alive())
        syncing.open()
        harness.wait_idle()
        assert harness.get(timeline) in {None, tar}


def test_a_write_under_way_when_the_callback_raises_takes_no_room(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The build waits for it: nothing is reserved or written after the build."""
    with Gate() as gate, Gate() as abandoning:
        timeline = harness.timeline()
        real_grow = BuildSpace.grow
        workers: list[Worker] = []

        def grow(space: BuildSpace, size_bytes: int) -> None:
            if isinstance(threading.current_thread(), Worker):
                gate()
            real_grow(space, size_bytes)

        def send(writer: TarballWriter, _lsn: Lsn) -> None:
            workers.append(Worker(writer.write, noise(2 * MIB)))
            gate.wait_for()
            raise RuntimeError("the host gives up")

        monkeypatch.setattr(BuildSpace, "grow", grow)
        stop_before(monkeypatch, Catalog, "abandon", abandoning)
        timeline.on_send = send
        harness.send(timeline)
        if abandoning.has_arrived(0.5):  # in vain where the write is waited for
            abandoning.open()
            harness.wait_idle()
        abandoning.open()
        gate.open()
        harness.wait_idle()
        workers[0].join(DEADLINE_S)
        assert harness.counts() == {"error": 1}
        harness.check_accounting()


def test_a_write_that_fails_after_the_callback_returned_fails_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the archive waits for a write under way, and sees its error."""
    with Harness(tmp_path / "cache", verify_reads="never") as harness, Gate() as gate:
        timeline = harness.timeline()
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
        harness.prepare(timeline)
        with pytest.raises(StoreError):
            workers[0].result()
        assert harness.counts() == {"error": 1}
        assert harness.get(timeline) is None


def test_a_host_may_write_from_threads_of_its_own(harness: Harness) -> None:
    """A host may write from any thread while the callback runs."""
    timeline = harness.timeline()

    def send(writer: TarballWriter, lsn: Lsn) -> None:
        Worker(writer.write, tar_of(timeline, lsn)).result()

    timeline.on_send = send
    harness.prepare(timeline)
    assert harness.get(timeline) == tar_of(timeline)


def test_a_failing_write_of_another_thread_fails_the_build(tmp_path: Path) -> None:
    """An error that only a helper thread of the host has seen fails the build."""
    with Harness(tmp_path / "cache", max_entry_size_bytes=MIB) as harness:
        timeline = harness.timeline()

        def send(writer: TarballWriter, _lsn: Lsn) -> None:
            with pytest.raises(EntryTooBigError):
                Worker(writer.write, noise(3 * MIB)).result()

        timeline.on_send = send
        harness.prepare(timeline)
        assert harness.skips == {"too_big": 1}
        harness.check_accounting()


@pytest.mark.parametrize("writes", [[], [b""], [b"", b""]], ids=["nothing", "empty", "twice"])
def test_an_empty_archive_is_an_error(harness: Harness, writes: list[bytes]) -> None:
    """A host that writes nothing has failed."""
    timeline = harness.timeline()

    def send(writer: TarballWriter, _lsn: Lsn) -> None:
        for data in writes:
            assert writer.write(data) == 0

    timeline.on_send = send
    harness.prepare(timeline)
    assert harness.counts() == {"error": 1}
    harness.check_accounting()


def test_a_host_may_use_the_cache_from_its_callbacks(harness: Harness) -> None:
    """Callbacks run without any lock: they may get, prepare, list and clean up."""
    timeline, other = harness.timeline(), harness.prepared()

    def send(writer: TarballWriter, lsn: Lsn) -> None:
        done = threading.Event()

        def use() -> None:
            assert harness.get(other) == tar_of(other)
            harness.send(other)
            assert harness.holds(other)
            harness.cache.run_cleanup()
            done.set()

        Worker(use).result()
        use()
        assert done.wait(DEADLINE_S)
        writer.write(tar_of(timeline, lsn))

    timeline.on_send = send
    harness.prepare(timeline)
    assert harness.get(timeline) == tar_of(timeline)
    assert len(harness.living()) == 1
