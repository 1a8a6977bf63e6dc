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
    Rig,
    fail_with,
    noise,
    stop_while_sending,
    tar_of,
)

from bbcache import DirectoryLockedError
from bbcache.storage import catalog as shelf_module
from bbcache.storage.files import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A running cache."""
    with Rig(tmp_path / "cache") as opened:
        yield opened


def _remove(rig: Rig) -> None:
    shutil.rmtree(rig.dir)


def _remove_and_make(rig: Rig) -> None:
    shutil.rmtree(rig.dir)
    rig.dir.mkdir()


def _move_away(rig: Rig) -> None:
    rig.dir.rename(rig.dir.parent / "moved")


def _remove_tmp(rig: Rig) -> None:
    shutil.rmtree(rig.dir / "tmp")


def _remove_lock_file(rig: Rig) -> None:
    (rig.dir / ".bbcache.lock").unlink()


GONE = [_remove, _remove_and_make, _move_away]


@pytest.mark.parametrize("accident", [*GONE, _remove_tmp, _remove_lock_file])
def test_prepares_recover_by_themselves(rig: Rig, accident: Callable[[Rig], None]) -> None:
    """After the directory or a part of it was removed, the next prepare makes it anew."""
    old = rig.prepared()
    accident(rig)
    timeline = rig.timeline()
    rig.prepare(timeline)
    assert rig.get(timeline) == tar_of(timeline)
    assert rig.get(old) == (None if accident in GONE else tar_of(old))
    assert rig.holds(old) == (accident not in GONE)
    rig.cache.run_cleanup()
    rig.check_books()
    with pytest.raises(DirectoryLockedError):
        Rig(rig.dir).open()


@pytest.mark.parametrize("accident", GONE)
def test_clean_up_recovers_a_removed_directory(rig: Rig, accident: Callable[[Rig], None]) -> None:
    """A clean-up step alone makes it anew, locks it, and drops the entries that are gone."""
    for _ in range(3):
        rig.prepared()
    accident(rig)
    rig.cache.run_cleanup()
    assert rig.cache.entries() == []
    rig.check_books()
    with pytest.raises(DirectoryLockedError):
        Rig(rig.dir).open()


def test_reads_of_a_vanished_directory(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """They are errors with a hint, not misses; the entries stay until somebody knows more."""
    timeline = rig.prepared()
    hidden = rig.dir.parent / "hidden"
    rig.dir.rename(hidden)
    assert rig.get(timeline) is None
    assert rig.reads == {"error": 1}
    assert "hint: Restore or remount the cache directory" in caplog.text
    assert rig.holds(timeline)
    hidden.rename(rig.dir)
    assert rig.get(timeline) == tar_of(timeline)
    rig.check_books()


@pytest.mark.parametrize("accident", [*GONE, _remove_tmp, _remove_lock_file])
def test_a_directory_that_vanishes_during_a_build(
    rig: Rig, accident: Callable[[Rig], None], caplog: pytest.LogCaptureFixture
) -> None:
    """The build is an error with a hint and publishes nowhere; the next one is well."""
    timeline = rig.timeline()
    with Gate() as gate:
        stop_while_sending(timeline, gate)
        rig.send(timeline)
        gate.wait_for()
        accident(rig)
    rig.wait_idle()
    assert rig.counts() == {"error": 1}
    assert "hint: " in caplog.text
    assert rig.cache.entries() == []
    rig.prepare(timeline)
    assert rig.get(timeline) == tar_of(timeline)
    rig.check_books()


def test_a_directory_whose_parent_vanishes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be made anew is an error with a hint until somebody makes the parent."""
    parent = tmp_path / "parent"
    with Rig(parent / "cache") as rig:
        timeline = rig.prepared()
        shutil.rmtree(parent)
        other = rig.timeline()
        rig.prepare(other)
        assert rig.counts() == {"ok": 1, "error": 1}
        assert "hint: " in caplog.text
        caplog.clear()
        rig.cache.run_cleanup()
        assert "hint: " in caplog.text
        assert rig.holds(timeline)
        parent.mkdir()
        rig.prepare(other)
        assert rig.get(other) == tar_of(other)
        rig.check_books()


def test_a_file_in_the_place_of_the_directory(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """It is left alone, prepares and reads are errors, and all is well once it is away."""
    timeline = rig.prepared()
    shutil.rmtree(rig.dir)
    rig.dir.write_text("a file")
    rig.prepare(rig.timeline())
    assert rig.get(timeline) is None
    assert rig.counts() == {"ok": 1, "error": 1}
    assert rig.reads == {"error": 1}
    rig.cache.run_cleanup()
    assert rig.dir.read_text() == "a file"
    assert "cannot" in caplog.text
    rig.dir.unlink()
    rig.prepared()
    rig.check_books()


def test_a_directory_taken_over_by_another_cache(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of the other cache is touched; its pid is named; when it ends we go on."""
    timeline = rig.prepared()
    rig.dir.rename(rig.dir.parent / "moved")
    with Rig(rig.dir) as other:
        other.host, other.tenant = rig.host, rig.tenant
        other.reopen()
        timeline.tarball = lambda _at: noise(3000)
        other.prepare(timeline)
        stray = rig.timeline()
        rig.prepare(stray)
        rig.cache.run_cleanup()
        assert rig.counts() == {"ok": 1, "error": 1}
        assert f"pid {os.getpid()}" in caplog.text
        assert rig.get(timeline) in {None, noise(3000)}
        assert "None" not in caplog.text
        timeline.advance(LSN_B)
        rig.cache.run_cleanup()
        assert other.get(timeline) == noise(3000)
        other.check_books()
    rig.prepare(stray)
    assert rig.get(stray) == tar_of(stray)


def test_a_directory_put_back_from_a_copy_is_taken_over(rig: Rig) -> None:
    """What is in a directory that comes in the place of ours is served, newest LSNs alone."""
    timelines = [rig.prepared() for _ in range(2)]
    copy = rig.dir.parent / "copy"
    shutil.copytree(rig.dir, copy)
    timelines[0].advance(LSN_B)
    rig.prepare(timelines[0], LSN_B)
    shutil.copy(rig.path(timelines[0], LSN_B), copy)
    (copy / "stray").write_bytes(b"of somebody else")
    shutil.rmtree(rig.dir)
    copy.rename(rig.dir)
    rig.cache.run_cleanup()
    assert rig.get(timelines[0], LSN_B) == tar_of(timelines[0], LSN_B)
    assert rig.get(timelines[1]) == tar_of(timelines[1])
    rig.check_books()


def test_a_parked_file_in_a_directory_that_is_taken_over(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that waits for its removal is on the books once, as one thing or the other."""
    timeline = rig.prepared()
    rig.host.tenants[rig.tenant.tenant_shard_id] = None
    with monkeypatch.context() as patch:
        fail_with(patch, shelf_module, "unlink", OSError(errno.EBUSY, "busy", "x"))
        rig.cache.run_cleanup()
    assert rig.cache.entries() == []
    rig.host.tenants[rig.tenant.tenant_shard_id] = rig.tenant
    (rig.dir / ".bbcache.lock").unlink()
    for _ in range(2):
        rig.cache.run_cleanup()
        rig.check_books()
    rig.prepare(timeline)
    assert rig.get(timeline) == tar_of(timeline)
    rig.check_books()


@pytest.mark.parametrize("step", ["make_directories", "scan", "quarantined"])
def test_a_directory_made_anew_is_looked_at_until_that_succeeds(
    rig: Rig, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step on the disk that fails half-way through is done again by the next clean-up."""
    kept, gone = rig.prepared(), rig.prepared()
    rig.dir.rename(rig.dir.parent / "moved")
    rig.dir.mkdir()
    shutil.copy(rig.path(kept).parent.parent / "moved" / rig.path(kept).name, rig.dir)
    with monkeypatch.context() as patch:
        fail_with(patch, Store, step, OSError(errno.EMFILE, "Too many open files"), times=1)
        rig.cache.run_cleanup()
    rig.cache.run_cleanup()
    assert rig.get(kept) == tar_of(kept)
    assert not rig.holds(gone)
    rig.check_books()
