"""A sick disk of the cache stops no start: `get_or_prepare` has the archive built elsewhere."""

from __future__ import annotations

import errno
import gzip
import os
import resource
from typing import TYPE_CHECKING, Any, Final

import pytest
from support.cache_helpers import (
    LSN_A,
    LSN_B,
    Gate,
    Harness,
    fail_with,
    noise,
    stop_while_sending,
    tar_of,
)
from support.fill_helpers import fill, filled, fillers, fills, unpublished_bytes
from support.seams import stop_at_log

import bbcache.prepare.builder
from bbcache import FillError, StoreError
from bbcache.errors import BackingOffError
from bbcache.prepare.shared_file import SharedFile
from bbcache.storage.catalog import Catalog
from bbcache.storage.files import Store, TempFile, UnnamedFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bbcache import Lsn
    from bbcache.host import TarballWriter
    from bbcache.testing import MemoryTimeline

KIB = 1024
STEPS: Final = [
    *(
        (Catalog, "ensure_directory"),
        (Store, "create_temp"),
        (Store, "rename_temp"),
        (Catalog, "publish"),
    ),
    *((TempFile, "append"), (TempFile, "patch"), (TempFile, "sync"), (TempFile, "close")),
    *(
        (bbcache.prepare.builder, "SharedFile"),
        (bbcache.prepare.builder, "check_sealed"),
    ),
]
ERRNOS: Final = [
    *(errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE),
    *(errno.ENXIO, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR),
]


@pytest.fixture
def aside(tmp_path: Path) -> Path:
    """The directory of fallback builds."""
    path = tmp_path / "aside"
    path.mkdir()
    return path


@pytest.fixture
def harness(tmp_path: Path, aside: Path) -> Iterator[Harness]:
    """A running cache."""
    with Harness(tmp_path / "cache", unpublished_dir=aside, prepare_concurrency=2) as harness:
        yield harness


def fallbacks(harness: Harness) -> dict[str, int]:
    """How many builds in `unpublished_dir` ended in each way."""
    return harness.counts("bbcache_fallback_builds_total")


def disk_fails(monkeypatch: pytest.MonkeyPatch, code: int = errno.ENOSPC, **kwargs: Any) -> None:
    """Make every attempt to create a file in the cache fail."""
    fail_with(monkeypatch, Store, "create_temp", OSError(code, os.strerror(code)), **kwargs)


def count_builds(timeline: MemoryTimeline) -> list[Lsn]:
    """A list that gets the LSN of each call of the host for the timeline."""
    builds: list[Lsn] = []

    def send(writer: TarballWriter, lsn: Lsn) -> None:
        builds.append(lsn)
        writer.write(timeline.tarball(lsn))

    timeline.on_send = send
    return builds


@pytest.mark.parametrize(
    ("owner", "step", "code"),
    [
        *((owner, step, errno.EIO) for owner, step in STEPS),
        *((Store, "create_temp", code) for code in ERRNOS),
        *((TempFile, "append", code) for code in ERRNOS),
    ],
)
def test_whatever_step_fails_the_caller_gets_the_bytes(
    harness: Harness,
    aside: Path,
    owner: object,
    step: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The file is in `unpublished_dir` without a name; the failure is counted and logged."""
    timeline = harness.timeline()
    builds = count_builds(timeline)
    with monkeypatch.context() as patch:
        fail_with(patch, owner, step, OSError(code, os.strerror(code)), times=1)
        file = fill(harness, timeline)
        with file:
            assert os.readlink(f"/proc/self/fd/{file.fileno()}").startswith(f"{aside}/")
            assert os.fstat(file.fileno()).st_nlink == 0
            assert unpublished_bytes(harness) == file.size_bytes
            assert os.listdir(aside) == []
            assert (file.source, file.lsn) == ("built", LSN_A)
            assert gzip.decompress(file.read()) == tar_of(timeline)
    harness.wait_idle()
    assert unpublished_bytes(harness) == 0
    assert len(builds) <= 2
    assert harness.cache.entries() == []
    assert (harness.counts(), harness.skips, fills(harness)) == ({"error": 1}, {}, {"built": 1})
    assert fallbacks(harness) == {"ok": 1}
    harness.check_accounting()
    assert os.strerror(code) in (harness.cache.degraded_reason or "")
    assert filled(harness, timeline) == ("built", tar_of(timeline))  # no pause, and published
    assert harness.holds(timeline)
    assert harness.cache.degraded_reason is None
    harness.check_accounting()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
@pytest.mark.parametrize(
    ("owner", "step"),
    [(Store, "create_temp"), (bbcache.prepare.builder, "SharedFile"), (Catalog, "publish")],
)
def test_a_limit_of_the_process_is_no_failure_of_the_disk(
    harness: Harness, owner: object, step: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fallback build would meet it too: it is an error at once, with its hint and no pause."""
    timeline = harness.timeline()
    builds = count_builds(timeline)
    with monkeypatch.context() as patch:
        fail_with(patch, owner, step, OSError(code, os.strerror(code)), times=1)
        with pytest.raises(FillError, match=f"{os.strerror(code)}\nhint: .*(limit|file-max)"):
            fill(harness, timeline)
    harness.wait_idle()
    assert len(builds) <= 1
    assert (harness.counts(), fallbacks(harness)) == ({"error": 1}, {})
    assert harness.cache.degraded_reason is None
    assert filled(harness, timeline) == ("built", tar_of(timeline))
    harness.check_accounting()


def test_a_caller_without_a_descriptor_asks_the_host_for_nothing(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive is built and published; only the caller's own open has failed."""
    timeline = harness.timeline()
    builds = count_builds(timeline)
    error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    with monkeypatch.context() as patch:
        fail_with(patch, SharedFile, "open_file", error, times=1)
        with pytest.raises(FillError, match=r"Too many open files\nhint: Raise the limit"):
            fill(harness, timeline)
    assert filled(harness, timeline) == ("hit", tar_of(timeline))
    assert len(builds) == 1


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (errno.ENOSPC, "Free space there"),
        (errno.EACCES, "Make that directory usable"),
        (errno.EROFS, "Make that directory usable"),
        (errno.ENOENT, "Make that directory usable"),
    ],
)
def test_the_hint_about_an_unpublished_dir_names_its_setting(
    harness: Harness, aside: Path, code: int, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names neither the cache directory nor the limits of the cache."""
    timeline = harness.timeline()
    disk_fails(monkeypatch)
    fail_with(monkeypatch, UnnamedFile, "create", OSError(code, os.strerror(code)))
    with pytest.raises(FillError) as caught:
        fill(harness, timeline)
    text, _, told = str(caught.value).partition("\nhint: ")
    assert f"cannot create a file in {aside}: {os.strerror(code)}" in text
    assert told.startswith(hint)
    assert "unpublished_dir" in told
    assert "cache" not in told
    assert "max_total" not in told


def test_nothing_is_synced_or_renamed_there(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes are for callers that wait now; no start looks for them."""
    disk_fails(monkeypatch)
    called: list[str] = []
    for name in ("fsync", "fdatasync", "rename", "replace", "link"):
        monkeypatch.setattr(os, name, lambda *_, name=name: called.append(name))
    assert filled(harness, harness.timeline())[0] == "built"
    assert called == []


def test_a_file_system_without_nameless_files_will_do(
    harness: Harness, aside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If O_TMPFILE is refused, the file is made and unlinked at once."""
    disk_fails(monkeypatch)
    real_open = os.open

    def refuse(path: str, flags: int, *args: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real_open(path, flags, *args)

    monkeypatch.setattr(os, "open", refuse)
    timeline = harness.timeline()
    with fill(harness, timeline) as file:
        assert os.listdir(aside) == []
        assert gzip.decompress(file.read()) == tar_of(timeline)


def test_the_default_is_the_temporary_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the system's, as Python finds it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "aside"))
    (tmp_path / "aside").mkdir()
    with Harness(tmp_path / "cache") as harness:
        disk_fails(monkeypatch)
        with fill(harness, harness.timeline()) as file:
            name = os.readlink(f"/proc/self/fd/{file.fileno()}")
            assert name.startswith(f"{tmp_path}/aside/")


def test_a_limit_of_file_sizes(harness: Harness) -> None:
    """After EFBIG in the middle of an archive it is built again from the start."""
    timeline = harness.timeline()
    tar, limits = noise(300 * KIB), resource.getrlimit(resource.RLIMIT_FSIZE)

    def send(writer: TarballWriter, _: Lsn) -> None:
        soft = 100 * KIB if resource.getrlimit(resource.RLIMIT_FSIZE) == limits else limits[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, limits[1]))
        for start in range(0, len(tar), 4096):
            writer.write(tar[start : start + 4096])

    timeline.on_send = send
    try:
        assert filled(harness, timeline) == ("built", tar)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in (harness.cache.degraded_reason or "")


def test_five_hundred_callers_cause_one_fallback(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host is asked twice in all, and the bytes are on the disk once."""
    timeline = harness.timeline()
    with Gate() as gate, monkeypatch.context() as patch:
        fail_with(patch, TempFile, "sync", OSError(errno.ENOSPC, "No space left on device"))
        stop_while_sending(timeline, gate)
        on_send, builds = timeline.on_send, []
        assert on_send is not None

        def send(writer: TarballWriter, lsn: Lsn) -> None:
            builds.append(lsn)
            on_send(writer, lsn)

        timeline.on_send = send
        workers = fillers(harness, timeline, 500)
        gate.wait_for()
        gate.open()
        results = [worker.result() for worker in workers]
    assert len(builds) == 2
    assert {tar for _, tar in results} == {tar_of(timeline)}  # type: ignore[misc, has-type]
    assert fills(harness) == {"built": 1, "joined": 499}
    assert fallbacks(harness) == {"ok": 1}
    assert unpublished_bytes(harness) == 0


def test_a_prepare_never_falls_back(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No caller waits for its bytes: it is an ordinary error, without a pause for later callers."""
    timeline = harness.timeline()
    builds = count_builds(timeline)
    with monkeypatch.context() as patch:
        fail_with(patch, TempFile, "sync", OSError(errno.ENOSPC, "No space left on device"))
        harness.prepare(timeline)
        assert len(builds) == 1
        assert (harness.counts(), fallbacks(harness)) == ({"error": 1}, {})
        assert "hint: Free space on the file system" in caplog.text
        assert filled(harness, timeline) == ("built", tar_of(timeline))
    assert filled(harness, timeline) == ("built", tar_of(timeline))
    harness.check_accounting()


def test_callers_that_have_joined_a_prepare_get_their_bytes(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prepare of `send_prepare` falls back if callers have joined it."""
    timeline = harness.timeline()
    with Gate() as gate, monkeypatch.context() as patch:
        fail_with(patch, Store, "rename_temp", OSError(errno.EIO, "Input/output error"))
        stop_while_sending(timeline, gate)
        harness.send(timeline)
        gate.wait_for()
        workers = fillers(harness, timeline, 3)
        gate.open()
        assert {worker.result() for worker in workers} == {("joined", tar_of(timeline))}
    harness.wait_idle()
    assert (harness.counts(), fallbacks(harness)) == ({"error": 1}, {"ok": 1})


def test_a_caller_that_joins_a_prepare_as_it_fails_gets_its_bytes(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller that joins after the decision not to fall back asks again by itself."""
    timeline = harness.timeline()
    with Gate() as gate, monkeypatch.context() as patch:
        disk_fails(patch)
        with stop_at_log("cannot prepare the basebackup", gate):
            harness.send(timeline)
            gate.wait_for()  # the prepare has failed, but has not ended
            (worker,) = fillers(harness, timeline, 1)
            gate.open()
        assert worker.result() == ("built", tar_of(timeline))
    assert fallbacks(harness) == {"ok": 1}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "host"), StoreError("host", errno=28)])
@pytest.mark.parametrize("is_late", [False, True])
def test_a_host_that_fails_is_not_asked_again(
    harness: Harness, error: OSError, *, is_late: bool
) -> None:
    """Whatever its exception is called, the failure is the host's, and the timeline pauses."""
    timeline, builds = harness.timeline(), []

    def send(writer: TarballWriter, lsn: Lsn) -> None:
        builds.append(lsn)
        if is_late:
            writer.write(noise(200 * KIB))
        raise error

    timeline.on_send = send
    with pytest.raises(FillError, match="host") as caught:
        fill(harness, timeline)
    assert caught.value.__cause__ is error
    assert len(builds) == 1
    assert fallbacks(harness) == {}
    assert harness.cache.degraded_reason is None
    with pytest.raises(BackingOffError):
        fill(harness, timeline)


def test_a_host_that_swallows_what_the_writer_raises_is_asked_again(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is the cause, even if the host catches the writer's error."""
    timeline = harness.timeline()

    def send(writer: TarballWriter, _: Lsn) -> None:
        try:
            for seed in range(20):
                writer.write(noise(100 * KIB, seed))
        except OSError:
            raise KeyError("something else") from None

    timeline.on_send = send
    fail_with(monkeypatch, TempFile, "append", OSError(errno.EIO, "Input/output error"), times=1)
    assert filled(harness, timeline) == ("built", b"".join(noise(100 * KIB, s) for s in range(20)))


def test_both_failures_are_named(
    harness: Harness, aside: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The error names both disks with one hint, and causes no pause."""
    timeline = harness.timeline()
    aside.rmdir()
    with monkeypatch.context() as patch:
        disk_fails(patch)
        for _ in range(2):
            with pytest.raises(FillError) as caught:
                fill(harness, timeline)
            text = str(caught.value)
            for part in ("tmp", "No space left on device", str(aside), "No such file or directory"):
                assert part in text
            assert text.count("\nhint: ") == 1
            assert isinstance(caught.value.__cause__, StoreError)
    assert fallbacks(harness) == {"error": 2}
    assert harness.counts() == {"error": 2}
    assert str(aside) in caplog.text
    assert filled(harness, timeline)[0] == "built"


def test_an_unpublished_dir_that_is_not_there_is_told_at_the_start(
    tmp_path: Path, aside: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged at the start rather than at the first use, and does not stop the start."""
    with Harness(tmp_path / "cache", unpublished_dir=aside):
        assert "unpublished_dir" not in caplog.text
    with Harness(tmp_path / "cache", unpublished_dir=str(aside / "lost")):
        assert caplog.text.count(f"unpublished_dir {aside}/lost is not a directory") == 1


def test_a_host_that_fails_the_second_time_is_named_too(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the host's failure, so the timeline pauses."""
    timeline = harness.timeline()

    def send(_: TarballWriter, __: Lsn) -> None:
        raise KeyError("the host's own trouble")

    timeline.on_send = send
    disk_fails(monkeypatch)
    with pytest.raises(FillError, match=r"No space left.*host's own trouble"):
        fill(harness, timeline)
    with pytest.raises(BackingOffError, match="host's own trouble"):
        fill(harness, timeline)
    assert fallbacks(harness) == {"error": 1}


def test_the_fallback_has_a_limit(
    tmp_path: Path, aside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past `max_unpublished_size_bytes` the call fails, and names the limit and the disk."""
    settings = {"unpublished_dir": str(aside), "max_unpublished_size_bytes": 10 * KIB}
    with Harness(tmp_path / "cache", **settings) as harness:
        timelines = [harness.timeline() for _ in range(2)]
        for timeline in timelines:
            timeline.tarball = lambda at: noise(6 * KIB, int(at))
        disk_fails(monkeypatch)
        with fill(harness, timelines[0]):
            limit = r"No space left.*max_unpublished_size_bytes 10240"
            with pytest.raises(FillError, match=limit):
                fill(harness, timelines[1])
        assert (harness.skips, harness.counts()) == ({"full": 1}, {"error": 1, "skip": 1})
        assert unpublished_bytes(harness) == 0


def test_what_must_not_be_published_falls_back_too(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive that would not have been published anyway is a skip."""
    timeline = harness.timeline(LSN_B)
    disk_fails(monkeypatch)
    assert filled(harness, timeline, LSN_A) == ("built", tar_of(timeline))
    assert harness.skips == {"tip_moved": 1}
    assert fallbacks(harness) == {"ok": 1}


def test_an_entry_that_cannot_be_read_on_a_full_disk(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither reading nor writing works: the caller gets its bytes, and the entry stays."""
    timeline = harness.prepared()
    with monkeypatch.context() as patch:
        disk_fails(patch)
        fail_with(patch, Store, "open", OSError(errno.EIO, "Input/output error"))
        assert filled(harness, timeline) == ("built", tar_of(timeline))
    assert filled(harness, timeline) == ("hit", tar_of(timeline))
    harness.check_accounting()


def test_a_directory_that_cannot_be_loaded_stops_no_start(
    tmp_path: Path, aside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers get their bytes while prepares wait; after the load everything works as usual."""
    harness = Harness(tmp_path / "cache", unpublished_dir=aside)
    held, missing, sent = harness.timeline(), harness.timeline(), harness.timeline()
    harness.seed(held)
    with monkeypatch.context() as patch:
        fail_with(patch, Store, "scan", OSError(errno.EIO, "Input/output error"))
        harness.open(wait=False)
        with harness.opened:
            harness.send(sent)
            for timeline in (held, missing):
                assert filled(harness, timeline)[1] == tar_of(timeline)
            assert not harness.cache.wait_initialized(0)
            assert fallbacks(harness) == {"ok": 2}
            patch.undo()
            harness.wait_idle()
            assert harness.holds(held)
            assert filled(harness, sent) == ("hit", tar_of(sent))
            assert filled(harness, missing) == ("built", tar_of(missing))
            harness.check_accounting()


@pytest.mark.parametrize("verify_reads", ["always", "first", "never"])
def test_an_archive_that_cannot_be_read_back_is_built_elsewhere(
    tmp_path: Path, aside: Path, verify_reads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every read of the finished archive below the cache fails, in the build or by a caller."""
    settings = {"unpublished_dir": aside, "verify_reads": verify_reads}
    with Harness(tmp_path / "cache", **settings) as harness:
        timeline, real_pread = harness.timeline(), os.pread

        def pread(fd: int, size_bytes: int, offset: int) -> bytes:
            if os.readlink(f"/proc/self/fd/{fd}").startswith(f"{harness.dir}/"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real_pread(fd, size_bytes, offset)

        monkeypatch.setattr(os, "pread", pread)
        assert filled(harness, timeline)[1] == tar_of(timeline)
        assert fallbacks(harness) == ({} if verify_reads == "never" else {"ok": 1})


def test_a_caller_whose_check_fails_has_it_built_elsewhere(
    tmp_path: Path, aside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `always`, a caller checks an archive that the build has checked before."""
    with Harness(tmp_path / "cache", unpublished_dir=aside, verify_reads="always") as harness:
        timeline = harness.timeline(LSN_B)
        error = OSError(errno.EIO, "Input/output error")
        fail_with(monkeypatch, type(harness.engine.reader), "check_built", error, times=1)
        with fill(harness, timeline, LSN_A) as file:
            assert os.readlink(f"/proc/self/fd/{file.fileno()}").startswith(f"{aside}/")
            assert gzip.decompress(file.read()) == tar_of(timeline)
        assert fallbacks(harness) == {"ok": 1}
        assert unpublished_bytes(harness) == 0


def test_a_fallback_without_callers_ends_as_a_disk_failure(
    harness: Harness, aside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fallback build without callers ends as its disk failure, and leaves nothing behind."""
    timeline = harness.timeline()
    with Gate() as gate, monkeypatch.context() as patch:
        disk_fails(patch)
        stop_while_sending(timeline, gate)

        def check_cancelled() -> None:
            gate.wait_for()  # the second build has begun
            raise KeyError("the client has gone")

        shard_id = harness.shard_of(timeline)
        with pytest.raises(KeyError, match="client has gone"):
            harness.cache.get_or_prepare(
                shard_id, timeline.timeline_id, LSN_A, check_cancelled=check_cancelled
            )
        gate.open()
        harness.wait_idle()
    assert (harness.counts(), fallbacks(harness)) == ({"error": 1}, {"error": 1})
    assert os.listdir(aside) == []
    assert unpublished_bytes(harness) == 0


def test_a_close_ends_a_fallback(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops at its next write, like any build."""
    timeline = harness.timeline()
    with Gate() as gate:
        disk_fails(monkeypatch)
        stop_while_sending(timeline, gate)
        (worker,) = fillers(harness, timeline, 1)
        gate.wait_for()
        harness.engine.begin_close()
        gate.open()
        with pytest.raises(Exception, match="closing"):
            worker.result()
        harness.cache.close()
    assert harness.skips == {"closing": 1}


def test_an_archive_that_cannot_be_closed_fails_no_caller(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel has freed the descriptor by then; the caller has its own."""
    timeline = harness.timeline()
    real_close, failed = os.close, []

    def close(fd: int) -> None:
        name = os.readlink(f"/proc/self/fd/{fd}")
        real_close(fd)
        if "basebackup_" in name:
            failed.append(name)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", close)
        file = fill(harness, timeline)
        harness.wait_idle()
    with file:
        assert gzip.decompress(file.read()) == tar_of(timeline)
    assert failed
