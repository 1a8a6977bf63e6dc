"""Building: the room that a build takes and gives back, its file, and its descriptors."""

from __future__ import annotations

import functools
import gc
import os
import re
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from support.cache_helpers import (
    LSN_A,
    LSN_B,
    LSN_C,
    MIB,
    Harness,
    Worker,
    fail_with,
    noise,
    stop_before,
    tar_of,
)
from support.fill_helpers import fill, filled, unpublished_bytes, waiting_callers
from support.helpers import open_below, wait_until
from support.ledger import total_bytes, total_count
from support.seams import stand_still, start_close

import bbcache.prepare.builder
from bbcache import BackingOffError, FillError, Lsn, TimelineId
from bbcache.errors import ArchiveError, BbcacheError, CacheFullError, EntryTooBigError
from bbcache.storage.catalog import Catalog
from bbcache.storage.files import Store, TempFile
from bbcache.storage.index import make_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bbcache.host import TarballWriter


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    """A running cache with one worker."""
    with Harness(tmp_path / "cache", prepare_concurrency=1) as opened:
        yield opened


def _not_to_be_called(*_: object) -> None:
    raise AssertionError


def _fail(_writer: TarballWriter, _lsn: Lsn) -> None:
    raise RuntimeError("the host fails")


def test_a_slot_that_goes_during_the_wait_is_missed_at_the_build(tmp_path: Path) -> None:
    """The build looks for a slot again: the prepare is a skip, and the host is not asked."""
    with Harness(tmp_path / "cache", max_size_entries=1) as harness:
        timeline = harness.timeline()
        other = make_key(harness.tenant.tenant_id, TimelineId.generate())
        taken: list[Any] = []
        timeline.on_wait = lambda *_: taken.append(harness.engine.index.reserve(other))
        timeline.on_send = _not_to_be_called
        harness.prepare(timeline)
        assert harness.skips == {"full": 1}
        harness.engine.index.accounting.release(taken[0])
        harness.check_accounting()


def test_a_slot_that_goes_during_the_wait_is_not_needed_for_a_caller(tmp_path: Path) -> None:
    """The caller gets the archive, and nothing is published."""
    with Harness(tmp_path / "cache", max_size_entries=1) as harness:
        timeline = harness.timeline()
        other = make_key(harness.tenant.tenant_id, TimelineId.generate())
        taken: list[Any] = []
        timeline.on_wait = lambda *_: taken.append(harness.engine.index.reserve(other))
        assert filled(harness, timeline) == ("built", tar_of(timeline))
        harness.wait_idle()
        assert harness.skips == {"full": 1}
        harness.engine.index.accounting.release(taken[0])
        harness.check_accounting()


def test_a_build_that_spills_gives_its_place_back_at_once(tmp_path: Path) -> None:
    """All bytes that it has written count as unpublished at once, not at its end."""
    with Harness(tmp_path / "cache", max_entry_size_bytes=2 * MIB) as harness:
        timeline = harness.timeline()

        def send(writer: TarballWriter, _lsn: Lsn) -> None:
            for seed in range(4):
                writer.write(noise(MIB, seed))
            (temp,) = (harness.dir / "tmp").iterdir()
            assert total_count(harness.engine.index) == total_bytes(harness.engine.index) == 0
            assert unpublished_bytes(harness) == temp.stat().st_size > 2 * MIB

        timeline.on_send = send
        fill(harness, timeline).close()
        harness.wait_idle()
        assert harness.skips == {"too_big": 1}
        harness.check_accounting()


def test_a_build_that_is_left_at_its_end_has_not_succeeded(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outgrown archive without a caller is a skip, and the pause goes on."""
    stand_still(monkeypatch, harness)
    timeline = harness.timeline()
    timeline.on_send = _fail
    with pytest.raises(FillError, match="the host fails"):
        fill(harness, timeline)
    callers: list[Worker] = []
    is_over = threading.Event()

    def check_cancelled() -> None:
        if is_over.is_set():
            raise LookupError("the client is gone")

    def send(writer: TarballWriter, lsn: Lsn) -> None:
        shard_id = harness.tenant.tenant_shard_id
        ask = functools.partial(harness.cache.get_or_prepare, check_cancelled=check_cancelled)
        callers.append(Worker(ask, shard_id, timeline.timeline_id, lsn))
        wait_until(lambda: waiting_callers() == 1)
        writer.write(timeline.tarball(lsn))
        timeline.advance(LSN_B)

    def leave() -> None:
        is_over.set()
        with pytest.raises(LookupError):
            callers[0].result()

    timeline.on_send = send
    stop_before(monkeypatch, os, "pwrite", leave)  # of the header, at the end of the build
    harness.prepare(timeline)
    assert not callers[0].is_alive()
    assert harness.skips == {"tip_moved": 1}
    with pytest.raises(BackingOffError):
        fill(harness, timeline, LSN_B)
    harness.check_accounting()


@pytest.mark.parametrize("is_outgrown", [False, True])
def test_a_failed_build_leaves_nothing(harness: Harness, *, is_outgrown: bool) -> None:
    """Neither its file nor its bytes stay, whether it was to be published or not."""
    timeline = harness.timeline(LSN_B if is_outgrown else LSN_A)

    def send(writer: TarballWriter, _lsn: Lsn) -> None:
        writer.write(noise(3 * MIB))
        raise RuntimeError("the host fails")

    timeline.on_send = send
    before = open_below(harness.dir)
    with pytest.raises(FillError, match="the host fails"):
        fill(harness, timeline)
    harness.wait_idle()
    assert unpublished_bytes(harness) == 0
    assert open_below(harness.dir) == before
    harness.check_accounting()


def test_a_build_that_is_published_leaves_no_descriptor_open(harness: Harness) -> None:
    """Its temporary file and the callers' shared file are closed."""
    before = open_below(harness.dir)
    harness.prepared()
    assert open_below(harness.dir) == before
    fill(harness, harness.timeline()).close()
    harness.wait_idle()
    assert open_below(harness.dir) == before


@pytest.mark.parametrize(
    ("owner", "name"),
    [(bbcache.prepare.builder, "check_sealed"), (Catalog, "publish"), (TempFile, "sync")],
)
def test_what_fails_after_it_was_opened_for_a_caller_is_closed(
    harness: Harness, owner: object, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller that gets an error gets no descriptor, and none stays behind."""
    timeline = harness.timeline()
    before = open_below(harness.dir)
    with monkeypatch.context() as patch:
        fail_with(patch, owner, name, ArchiveError("it is damaged"))
        with pytest.raises(FillError, match="it is damaged"):
            fill(harness, timeline)
        harness.wait_idle()
    assert open_below(harness.dir) == before
    harness.check_accounting()


def test_a_drop_that_fails_closes_what_was_opened_for_a_caller(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of an archive that was not to be published."""
    before = open_below(harness.dir)
    with monkeypatch.context() as patch:
        fail_with(patch, Catalog, "abandon", ArchiveError("it cannot be removed"), times=1)
        with pytest.raises(FillError, match="it cannot be removed"):
            fill(harness, harness.timeline(LSN_B))
        harness.wait_idle()
    assert open_below(harness.dir) == before
    assert unpublished_bytes(harness) == 0
    harness.check_accounting()


def test_a_file_gets_its_name_once_its_bytes_are_safe(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last piece, the header, the fsync, the close, and only then the rename."""
    steps: list[str] = []

    def note(owner: type, name: str) -> None:
        original: Callable[..., object] = getattr(owner, name)

        def noted(*args: object) -> object:
            steps.append(name)
            return original(*args)

        monkeypatch.setattr(owner, name, noted)

    for name in ("append", "patch", "sync", "close"):
        note(TempFile, name)
    note(Store, "rename_temp")
    harness.prepared()
    assert steps[steps.index("append") :] == [
        *(["append"] * steps.count("append")),
        *("patch", "sync", "close", "rename_temp"),
    ]


def test_a_stop_before_the_host_is_asked_asks_it_nothing(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that was not there yet to be cancelled is not used at all."""
    timeline = harness.timeline()
    real_create, was_called = Store.create_temp, []
    closing: list[Worker] = []

    def create(store: Store, key: bytes, lsn: int) -> TempFile:
        closing.append(start_close(harness))
        return real_create(store, key, lsn)

    monkeypatch.setattr(Store, "create_temp", create)
    timeline.on_send = lambda *_: was_called.append(True)
    harness.prepare(timeline)
    closing[0].result()
    assert harness.skips == {"closing": 1}
    assert was_called == []
    harness.open()
    harness.check_accounting()


def test_a_stop_fails_the_writes_that_come_after(harness: Harness) -> None:
    """In all builds under way, even if the host catches the error."""
    timeline = harness.timeline()
    raised: list[BbcacheError] = []
    closing: list[Worker] = []

    def send(writer: TarballWriter, lsn: Lsn) -> None:
        writer.write(timeline.tarball(lsn)[:700])
        closing.append(start_close(harness))
        try:
            writer.write(timeline.tarball(lsn)[700:])
        except BbcacheError as error:
            raised.append(error)

    timeline.on_send = send
    harness.prepare(timeline)
    closing[0].result()
    assert [str(error) for error in raised] == ["the cache is closing"]
    assert harness.skips == {"closing": 1}
    harness.open()
    harness.check_accounting()


@pytest.mark.parametrize(
    ("limit", "error_type", "reason"),
    [
        ("max_entry_size_bytes", EntryTooBigError, "too_big"),
        ("max_total_size_bytes", CacheFullError, "full"),
    ],
)
def test_the_cause_is_what_the_writer_raised(
    tmp_path: Path, limit: str, error_type: type[BbcacheError], reason: str
) -> None:
    """A host may raise another error; the limit is still the cause."""
    with Harness(tmp_path / "cache", eviction="none", **{limit: 2 * MIB}) as harness:
        if limit == "max_total_size_bytes":
            harness.prepared(size_bytes=MIB)
        timeline = harness.timeline()

        def send(writer: TarballWriter, _lsn: Lsn) -> None:
            try:
                for seed in range(4):
                    writer.write(noise(MIB, seed) if seed < 2 else noise(MIB // 2, seed))
            except error_type:
                raise RuntimeError("the host has an error of its own") from None

        timeline.on_send = send
        harness.prepare(timeline)
        assert harness.skips == {reason: 1}
        harness.check_accounting()


def _own_objects() -> Counter[str]:
    """How many objects there are of each class of bbcache, but for the habits of timelines."""
    gc.collect()
    kinds = [type(each) for each in gc.get_objects()]
    own = [kind for kind in kinds if re.match(r"bbcache\.(?!eviction\.)", str(kind.__module__))]
    return Counter(f"{kind.__module__}.{kind.__name__}" for kind in own)


def test_a_build_that_has_ended_leaves_no_object(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """No writer, room or request, whether it succeeded, failed or was not published."""
    caplog.set_level("CRITICAL", "bbcache")  # a line that is kept keeps all of its traceback
    held, failing, outgrown = harness.prepared(), harness.timeline(), harness.timeline(LSN_C)
    failing.on_send = _fail

    def build(lsn: Lsn) -> None:
        held.advance(lsn)
        harness.prepare(held, lsn)
        harness.prepare(failing)
        harness.prepare(outgrown)
        fill(harness, outgrown).close()
        harness.wait_idle()

    seen = []
    for lsn in range(LSN_B, LSN_B + 4):
        build(Lsn(lsn))
        seen.append(_own_objects())
    assert seen[1:] == [seen[1]] * 3


def test_an_archive_without_callers_is_not_opened(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain prepare costs no second look at its bytes."""
    monkeypatch.setattr(bbcache.prepare.builder, "SharedFile", _not_to_be_called)
    harness.prepared()
    assert harness.counts() == {"ok": 1}


def test_a_missing_directory_is_made_again_before_the_build(harness: Harness) -> None:
    """The build's file is in the directory that is at the path now."""
    timeline = harness.prepared()
    moved = harness.dir.with_name("moved")
    os.rename(harness.dir, moved)
    harness.prepare(harness.timeline())
    assert harness.counts() == {"ok": 2}
    assert not harness.holds(timeline)
    harness.check_accounting()
