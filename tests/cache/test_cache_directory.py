"""A directory that is removed, replaced or taken over while the cache runs."""

from __future__ import annotations

import errno
import os
import shutil
from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import (
    LSN_B,
    Gate,
    Harness,
    fail_with,
    noise,
    stop_while_sending,
    tar_of,
)

from bbcache import DirectoryLockedError
from bbcache.storage.files import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    """A running cache."""
    with Harness(tmp_path / "cache") as opened:
        yield opened


def _remove(harness: Harness) -> None:
    shutil.rmtree(harness.dir)


def _remove_and_make(harness: Harness) -> None:
    shutil.rmtree(harness.dir)
    harness.dir.mkdir()


def _move_away(harness: Harness) -> None:
    harness.dir.rename(harness.dir.parent / "moved")


def _remove_tmp(harness: Harness) -> None:
    shutil.rmtree(harness.dir / "tmp")


def _remove_lock_file(harness: Harness) -> None:
    (harness.dir / ".bbcache.lock").unlink()


GONE = [_remove, _remove_and_make, _move_away]


@pytest.mark.parametrize("accident", [*GONE, _remove_tmp, _remove_lock_file])
def test_prepares_recover_by_themselves(
    harness: Harness, accident: Callable[[Harness], None]
) -> None:
    """A prepare makes a directory, or a part of it, that was removed."""
    old = harness.prepared()
    accident(harness)
    timeline = harness.timeline()
    harness.prepare(timeline)
    assert harness.get(timeline) == tar_of(timeline)
    assert harness.get(old) == (None if accident in GONE else tar_of(old))
    assert harness.holds(old) == (accident not in GONE)
    harness.cache.run_cleanup()
    harness.check_accounting()
    with pytest.raises(DirectoryLockedError):
        Harness(harness.dir).open()


@pytest.mark.parametrize("accident", GONE)
def test_clean_up_recovers_a_removed_directory(
    harness: Harness, accident: Callable[[Harness], None]
) -> None:
    """A clean-up step makes the directory, locks it, and drops the entries that are gone."""
    for _ in range(3):
        harness.prepared()
    accident(harness)
    harness.cache.run_cleanup()
    assert harness.cache.entries() == []
    harness.check_accounting()
    with pytest.raises(DirectoryLockedError):
        Harness(harness.dir).open()


def test_reads_of_a_vanished_directory(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    """Reads are errors with a hint, not misses, and the entries stay."""
    timeline = harness.prepared()
    hidden = harness.dir.parent / "hidden"
    harness.dir.rename(hidden)
    assert harness.get(timeline) is None
    assert harness.reads == {"error": 1}
    assert "hint: Restore or remount the cache directory" in caplog.text
    assert harness.holds(timeline)
    hidden.rename(harness.dir)
    assert harness.get(timeline) == tar_of(timeline)
    harness.check_accounting()


@pytest.mark.parametrize("accident", [*GONE, _remove_tmp, _remove_lock_file])
def test_a_directory_that_vanishes_during_a_build(
    harness: Harness, accident: Callable[[Harness], None], caplog: pytest.LogCaptureFixture
) -> None:
    """The build is an error with a hint and publishes nothing; the next one succeeds."""
    timeline = harness.timeline()
    with Gate() as gate:
        stop_while_sending(timeline, gate)
        harness.send(timeline)
        gate.wait_for()
        accident(harness)
    harness.wait_idle()
    assert harness.counts() == {"error": 1}
    assert "hint: " in caplog.text
    assert harness.cache.entries() == []
    harness.prepare(timeline)
    assert harness.get(timeline) == tar_of(timeline)
    harness.check_accounting()


def test_a_directory_whose_parent_vanishes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A directory that cannot be made is an error with a hint, until its parent exists."""
    parent = tmp_path / "parent"
    with Harness(parent / "cache") as harness:
        timeline = harness.prepared()
        shutil.rmtree(parent)
        other = harness.timeline()
        harness.prepare(other)
        assert harness.counts() == {"ok": 1, "error": 1}
        assert "hint: " in caplog.text
        caplog.clear()
        harness.cache.run_cleanup()
        assert "hint: " in caplog.text
        assert harness.holds(timeline)
        parent.mkdir()
        harness.prepare(other)
        assert harness.get(other) == tar_of(other)
        harness.check_accounting()


def test_a_file_in_the_place_of_the_directory(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """The file stays; prepares and reads are errors until it is removed."""
    timeline = harness.prepared()
    shutil.rmtree(harness.dir)
    harness.dir.write_text("a file")
    harness.prepare(harness.timeline())
    assert harness.get(timeline) is None
    assert harness.counts() == {"ok": 1, "error": 1}
    assert harness.reads == {"error": 1}
    harness.cache.run_cleanup()
    assert harness.dir.read_text() == "a file"
    assert "cannot" in caplog.text
    harness.dir.unlink()
    harness.prepared()
    harness.check_accounting()


def test_a_directory_taken_over_by_another_cache(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """The other cache's files stay and its pid is named; when it ends, this cache goes on."""
    timeline = harness.prepared()
    harness.dir.rename(harness.dir.parent / "moved")
    with Harness(harness.dir) as other:
        other.host, other.tenant = harness.host, harness.tenant
        other.reopen()
        timeline.tarball = lambda _at: noise(3000)
        other.prepare(timeline)
        foreign_file = harness.timeline()
        harness.prepare(foreign_file)
        harness.cache.run_cleanup()
        assert harness.counts() == {"ok": 1, "error": 1}
        assert f"pid {os.getpid()}" in caplog.text
        assert harness.get(timeline) in {None, noise(3000)}
        assert "None" not in caplog.text
        timeline.advance(LSN_B)
        harness.cache.run_cleanup()
        assert other.get(timeline) == noise(3000)
        other.check_accounting()
    harness.prepare(foreign_file)
    assert harness.get(foreign_file) == tar_of(foreign_file)


def test_a_directory_put_back_from_a_copy_is_taken_over(harness: Harness) -> None:
    """The newest entries of the directory that has replaced ours are served."""
    timelines = [harness.prepared() for _ in range(2)]
    copy = harness.dir.parent / "copy"
    shutil.copytree(harness.dir, copy)
    timelines[0].advance(LSN_B)
    harness.prepare(timelines[0], LSN_B)
    shutil.copy(harness.path(timelines[0], LSN_B), copy)
    (copy / "foreign file").write_bytes(b"of somebody else")
    shutil.rmtree(harness.dir)
    copy.rename(harness.dir)
    harness.cache.run_cleanup()
    assert harness.get(timelines[0], LSN_B) == tar_of(timelines[0], LSN_B)
    assert harness.get(timelines[1]) == tar_of(timelines[1])
    harness.check_accounting()


def test_a_pending_unlink_in_a_directory_that_is_taken_over(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pending unlink counts once, as an entry or as doomed."""
    timeline = harness.prepared()
    harness.host.tenants[harness.tenant.tenant_shard_id] = None
    with monkeypatch.context() as patch:
        fail_with(patch, os, "unlink", OSError(errno.EBUSY, "busy", "x"))
        harness.cache.run_cleanup()
    assert harness.cache.entries() == []
    harness.host.tenants[harness.tenant.tenant_shard_id] = harness.tenant
    (harness.dir / ".bbcache.lock").unlink()
    for _ in range(2):
        harness.cache.run_cleanup()
        harness.check_accounting()
    harness.prepare(timeline)
    assert harness.get(timeline) == tar_of(timeline)
    harness.check_accounting()


@pytest.mark.parametrize("step", ["make_directories", "scan", "quarantined"])
def test_a_directory_made_anew_is_looked_at_until_that_succeeds(
    harness: Harness, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step on the disk that fails half-way through is done again by the next clean-up."""
    kept, gone = harness.prepared(), harness.prepared()
    harness.dir.rename(harness.dir.parent / "moved")
    harness.dir.mkdir()
    shutil.copy(harness.path(kept).parent.parent / "moved" / harness.path(kept).name, harness.dir)
    with monkeypatch.context() as patch:
        fail_with(patch, Store, step, OSError(errno.EMFILE, "Too many open files"), times=1)
        harness.cache.run_cleanup()
    harness.cache.run_cleanup()
    assert harness.get(kept) == tar_of(kept)
    assert not harness.holds(gone)
    harness.check_accounting()
