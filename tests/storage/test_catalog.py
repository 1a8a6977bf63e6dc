"""File and index changed as one, on real files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import logging
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from prometheus_client import CollectorRegistry
from support.cache_helpers import Gate, Worker, fail_with, stop_before
from support.helpers import (
    file_names,
    is_free,
    make_keys,
    open_below,
    run_threads,
    samples,
    wait_until,
)
from support.ledger import entries_of, holds, total_bytes, total_count
from support.locks import watched_locks

from bbcache.config import BasebackupCacheConfig
from bbcache.errors import (
    CacheFullError,
    ClosingError,
    DirectoryLockedError,
    LimitError,
    StoreError,
)
from bbcache.ids import Lsn
from bbcache.metrics import Metrics
from bbcache.storage import catalog as catalog_module
from bbcache.storage.catalog import Catalog
from bbcache.storage.dirlock import LOCK_NAME, DirectoryLock
from bbcache.storage.files import Store
from bbcache.storage.index import Entry, Index
from bbcache.storage.quarantine import KEEPS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.locks import WatchedLock

    from bbcache.storage.accounting import Reservation
    from bbcache.storage.files import Scan, TempFile

A, B, C, D = make_keys(4)
OWN_NAMES: Final = {"tmp", "quarantine", LOCK_NAME}


class Kit:
    """A catalog with all that it works with, on one directory."""

    def __init__(
        self,
        directory: Path,
        *,
        max_entries: int = 100,
        max_bytes: int = 10_000,
        store: Store | None = None,
        dirlock: DirectoryLock | None = None,
    ) -> None:
        self.directory = directory
        self.store = store or Store(str(directory))
        self.registry = CollectorRegistry()
        self.dirlock = dirlock or DirectoryLock(str(directory))
        if dirlock is None:
            self.dirlock.acquire()
        with watched_locks() as self.locks:
            self.index = Index(
                BasebackupCacheConfig(
                    max_size_entries=max_entries,
                    max_total_size_bytes=max_bytes,
                    max_unpublished_size_bytes=max_bytes,
                )
            )
            metrics = Metrics(self.registry)
            self.catalog = Catalog(self.store, self.index, self.dirlock, metrics)

    def build(self, key: bytes, lsn: int, size_bytes: int) -> tuple[TempFile, Reservation, Entry]:
        """All of a build but its publication."""
        reservation = self.index.reserve(key)
        temp = self.catalog.create_temp(key, lsn)
        try:
            self.index.accounting.grow(reservation, size_bytes)
        except LimitError:
            self.catalog.abandon(temp, reservation)
            raise
        temp.append(bytes(size_bytes))
        temp.close()
        return temp, reservation, Entry(key, Lsn(lsn), size_bytes)

    def publish(self, key: bytes, lsn: int = 1, size_bytes: int = 10) -> Entry:
        """Build and publish an entry."""
        temp, reservation, entry = self.build(key, lsn, size_bytes)
        self.catalog.publish(temp, reservation, entry)
        return entry

    def path(self, key: bytes, lsn: int = 1) -> Path:
        """The path of an entry."""
        return Path(self.store.path_of(key, lsn))

    def put(self, key: bytes, lsn: int = 1, size_bytes: int = 10) -> Path:
        """A file as an earlier life has left it."""
        path = self.path(key, lsn)
        path.write_bytes(bytes(size_bytes))
        return path

    def files(self) -> set[str]:
        """The names in the directory besides the cache's own."""
        return file_names(self.directory) - OWN_NAMES

    def entry_names(self) -> set[str]:
        """The names that the index thinks are there."""
        return {self.path(each.key, each.lsn).name for each in entries_of(self.index)}

    def quarantined(self) -> list[str]:
        """The names in the quarantine, oldest first."""
        return sorted(os.listdir(self.directory / "quarantine"))

    def totals(self) -> tuple[int, int]:
        """Files and bytes that count against the limits."""
        return total_count(self.index), total_bytes(self.index)

    def file_lock(self, monkeypatch: pytest.MonkeyPatch) -> WatchedLock:
        """The lock under which files change: the one that a publication has at its rename."""
        held: set[WatchedLock] = set()

        def look() -> None:
            held.update(lock for lock in self.locks if lock.is_mine)

        with monkeypatch.context() as patch:
            stop_before(patch, os, "rename", look)
            self.publish(D)
        (lock,) = held
        return lock

    def count(self, name: str) -> float:
        """A sample of the metrics."""
        return samples(self.registry)[name]


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    """A loaded catalog on an empty directory."""
    made = Kit(tmp_path)
    made.catalog.load()
    yield made
    made.dirlock.release()


@pytest.fixture
def reopen(tmp_path: Path) -> Iterator[Callable[..., Kit]]:
    """Make a catalog on the test's directory that is not loaded yet."""
    made: list[Kit] = []

    def make(**how: object) -> Kit:
        made.append(Kit(tmp_path, **how))  # type: ignore[arg-type]
        made[-1].store.make_directories()
        return made[-1]

    yield make
    for each in made:
        each.dirlock.release()


def block(path: Path) -> None:
    """Put a directory in the place of a file, so that it cannot be unlinked, not even by root."""
    path.unlink()
    path.mkdir()


# --- Load -------------------------------------------------------------------------------


def test_an_empty_directory_loads_nothing(kit: Kit) -> None:
    """The cache's own directories are made, and nothing counts."""
    assert kit.catalog.load() == (0, 0, [])
    assert file_names(kit.directory) == OWN_NAMES
    assert kit.totals() == (0, 0)


def test_gauges_read_the_ledger_at_each_scrape(kit: Kit) -> None:
    """Entries count in their own gauges alone, all other files in `nonentry_bytes`."""
    ledger, neon = kit.index.accounting, "pageserver_basebackup_cache_"
    for count in (1, 2):
        kit.publish([A, B][count - 1], size_bytes=50)
        ledger.foreign_files.replace({"one": 4 * count, "other": 6})
        ledger.quarantine.put("bad", 200)
        ledger.doomed.put("old", 3000)
        ledger.grow(kit.index.reserve(C), 7)
        assert kit.count(f"{neon}entries_total") == count
        assert kit.count(f"{neon}size_bytes") == 50 * count
        assert kit.count("bbcache_nonentry_bytes") == 3206 + 4 * count


def test_the_newest_lsn_of_each_timeline_is_kept(reopen: Callable[..., Kit]) -> None:
    """The older files are unlinked, whatever the order of the listing."""
    kit = reopen()
    for key, lsns in ((A, [1, 2, 3]), (B, [0xA, 0x9]), (C, [5])):
        for lsn in lsns:
            kit.put(key, lsn, size_bytes=lsn)
    assert kit.catalog.load() == (3, 3, [])
    assert {entry.key: (entry.lsn, entry.size_bytes) for entry in entries_of(kit.index)} == {
        A: (3, 3),
        B: (10, 10),
        C: (5, 5),
    }
    assert kit.files() == kit.entry_names()
    assert kit.totals() == (3, 18)


def test_lsns_are_compared_as_numbers(reopen: Callable[..., Kit]) -> None:
    """All sixteen digits count, the highest bit included."""
    kit = reopen()
    kit.put(A, 2**63)
    kit.put(A, 2**63 - 1)
    kit.catalog.load()
    assert [entry.lsn for entry in entries_of(kit.index)] == [2**63]


def test_foreign_files_are_reported_counted_and_left_alone(reopen: Callable[..., Kit]) -> None:
    """Files, folders and links that are no entries never stop a start."""
    kit = reopen()
    (kit.directory / "notes.txt").write_bytes(b"12345")
    (kit.directory / "folder").mkdir()
    kit.path(A).symlink_to("notes.txt")
    kit.put(B)
    report = kit.catalog.load()
    names = sorted(["notes.txt", "folder", kit.path(A).name])
    assert report == (1, 0, names)
    assert kit.files() == {*names, kit.path(B).name}
    assert kit.totals() == (4, 15)
    assert kit.index.accounting.nonentry_bytes == 5
    assert kit.index.accounting.entry_count == 1


def test_what_a_kill_has_left_in_tmp_is_swept(reopen: Callable[..., Kit]) -> None:
    """No left-over temporary file is kept, nor counted."""
    kit = reopen()
    (kit.directory / "tmp" / f"{kit.path(A).name}.half").write_bytes(bytes(100))
    kit.catalog.load()
    assert file_names(kit.directory / "tmp") == set()
    assert kit.totals() == (0, 0)


def test_other_files_in_tmp_count_as_foreign(reopen: Callable[..., Kit]) -> None:
    """It is left alone, and counts until it is gone."""
    kit = reopen()
    foreign_file = kit.directory / "tmp" / "foreign file"
    foreign_file.write_bytes(bytes(100))
    kit.catalog.load()
    kit.catalog.upkeep()
    assert kit.index.accounting.nonentry_bytes == 100
    assert foreign_file.exists()
    foreign_file.unlink()
    kit.catalog.upkeep()
    assert kit.totals() == (0, 0)


def test_what_cannot_be_swept_counts_until_it_can(reopen: Callable[..., Kit]) -> None:
    """It counts, does not stop the start, and is unlinked later."""
    kit = reopen()
    folder = kit.directory / "tmp" / f"{kit.path(A).name}.folder"
    folder.mkdir()
    kit.catalog.load()
    assert total_count(kit.index) == 1
    kit.catalog.upkeep()
    assert total_count(kit.index) == 1
    folder.rmdir()
    kit.catalog.upkeep()
    assert kit.totals() == (0, 0)


def test_what_cannot_be_swept_is_logged(
    reopen: Callable[..., Kit], caplog: pytest.LogCaptureFixture
) -> None:
    """A failed unlink is counted and logged at the start, too."""
    kit = reopen()
    (kit.directory / "tmp" / f"{kit.path(A).name}.folder").mkdir()
    kit.catalog.load()
    assert "folder" in caplog.text
    assert kit.count("bbcache_unlink_failures_total") == 1


def test_the_quarantine_of_an_earlier_life_counts(reopen: Callable[..., Kit]) -> None:
    """Its bytes count, but it takes no slot."""
    kit = reopen()
    (kit.directory / "quarantine" / "old").write_bytes(bytes(70))
    kit.catalog.load()
    assert kit.totals() == (0, 70)
    assert kit.index.accounting.nonentry_bytes == 70


def test_a_directory_over_its_limits_is_kept_and_served(reopen: Callable[..., Kit]) -> None:
    """Nothing is removed. New entries are refused; refreshes are not."""
    kit = reopen(max_entries=2, max_bytes=100)
    for key in (A, B, C):
        kit.put(key, size_bytes=50)
    assert kit.catalog.load().entry_count == 3
    assert kit.files() == kit.entry_names()
    with pytest.raises(CacheFullError):
        kit.publish(D)
    kit.publish(A, lsn=2, size_bytes=50)
    assert kit.totals() == (3, 150)
    for entry in entries_of(kit.index)[:2]:
        kit.catalog.discard(entry)
    kit.publish(D, size_bytes=50)
    assert kit.totals() == (2, 100)


class BusyStore(Store):
    """Calls a function once, right after a scan."""

    def __init__(self, directory: Path, behind: Callable[[], object]) -> None:
        super().__init__(str(directory))
        self._behind: Callable[[], object] | None = behind

    def scan(self) -> Scan:
        """Scan, then call the function."""
        found = super().scan()
        behind, self._behind = self._behind, None
        if behind is not None:
            behind()
        return found


def test_an_older_file_that_stays_counts_until_it_goes(
    tmp_path: Path, reopen: Callable[..., Kit], caplog: pytest.LogCaptureFixture
) -> None:
    """Its unlink at the start fails: counted once, logged, tried again later."""
    old = Path(Store(str(tmp_path)).path_of(A, 1))
    kit = reopen(store=BusyStore(tmp_path, lambda: block(old)))
    kit.put(A, 1, size_bytes=30)
    kit.put(A, 2, size_bytes=40)
    assert kit.catalog.load() == (1, 1, [])
    assert kit.totals() == (2, 70)
    assert kit.count("bbcache_unlink_failures_total") == 1
    assert str(old) in caplog.text
    assert "\nhint: " in caplog.text
    old.rmdir()
    kit.catalog.upkeep()
    assert kit.totals() == (1, 40)


def test_a_directory_that_cannot_be_listed_is_no_empty_cache(reopen: Callable[..., Kit]) -> None:
    """The load raises, nothing is lost, and it can be repeated."""
    kit = reopen()
    kit.put(A)
    away = kit.directory.with_name(kit.directory.name + "-away")
    kit.directory.rename(away)
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            kit.catalog.load()
    away.rename(kit.directory)
    assert kit.catalog.load() == (1, 0, [])
    assert kit.totals() == (1, 10)


def test_a_load_that_fails_half_way_counts_nothing_twice(
    tmp_path: Path, reopen: Callable[..., Kit]
) -> None:
    """The second try counts what is there by then."""
    quarantine, away = tmp_path / "quarantine", tmp_path.with_name(tmp_path.name + "-away")

    def interfere() -> None:
        shutil.move(tmp_path, away)
        tmp_path.touch()  # files below it can neither be listed nor removed

    kit = reopen(store=BusyStore(tmp_path, interfere))
    for lsn in (1, 2):
        kit.put(A, lsn)
    gone = kit.put(B)
    (quarantine / "old").write_bytes(bytes(70))
    (tmp_path / "foreign file").write_bytes(bytes(5))
    folder = tmp_path / "tmp" / f"{kit.path(A).name}.folder"
    folder.mkdir()
    with pytest.raises(NotADirectoryError):
        kit.catalog.load()
    tmp_path.unlink()
    shutil.move(away, tmp_path)
    gone.unlink()
    folder.rmdir()
    kit.catalog.load()
    kit.catalog.upkeep()
    assert kit.entry_names() == {kit.path(A, 2).name}
    assert kit.files() == {kit.path(A, 2).name, "foreign file"}
    assert kit.totals() == (2, 85)


# --- Publish ----------------------------------------------------------------------------


def test_a_published_file_is_in_its_place_and_in_the_index(kit: Kit) -> None:
    """The temporary file has become the entry, and the accounting is exact."""
    entry = kit.publish(A, size_bytes=30)
    assert kit.index.find(A, 1) is entry
    assert kit.path(A).read_bytes() == bytes(30)
    assert file_names(kit.directory / "tmp") == set()
    assert kit.totals() == (1, 30)
    assert kit.index.accounting.nonentry_bytes == 0


def test_a_refresh_takes_the_old_file_away(kit: Kit) -> None:
    """A timeline has one file."""
    kit.publish(A, lsn=1, size_bytes=30)
    entry = kit.publish(A, lsn=2, size_bytes=20)
    assert entries_of(kit.index) == [entry]
    assert kit.files() == {kit.path(A, 2).name}
    assert kit.totals() == (1, 20)


def test_a_rebuild_at_the_same_lsn_replaces_the_file(kit: Kit) -> None:
    """The new file is not taken for the old one and removed."""
    kit.publish(A, size_bytes=30)
    entry = kit.publish(A, size_bytes=20)
    assert entries_of(kit.index) == [entry]
    assert kit.path(A).read_bytes() == bytes(20)
    assert kit.totals() == (1, 20)


def test_a_full_cache_refreshes(tmp_path: Path, reopen: Callable[..., Kit]) -> None:
    """The limits hold while the old file and the new are both there."""
    kit = reopen(max_entries=1, max_bytes=30)
    kit.publish(A, lsn=1, size_bytes=30)
    kit.publish(A, lsn=2, size_bytes=30)
    assert kit.totals() == (1, 30)
    with pytest.raises(CacheFullError):
        kit.publish(B)
    assert file_names(tmp_path / "tmp") == set()


def test_a_directory_under_the_entrys_name_stops_the_publication(kit: Kit) -> None:
    """Old entry, temporary file and reservation are as before."""
    old = kit.publish(A, lsn=1, size_bytes=30)
    kit.path(A, 2).mkdir()
    temp, reservation, entry = kit.build(A, 2, 40)
    before = kit.totals()
    with pytest.raises(IsADirectoryError):
        kit.catalog.publish(temp, reservation, entry)
    assert entries_of(kit.index) == [old]
    assert Path(temp.path).exists()
    assert kit.totals() == before
    kit.catalog.abandon(temp, reservation)
    assert kit.totals() == (1, 30)


def test_nothing_is_published_after_the_fence(kit: Kit) -> None:
    """A late thread gets a ClosingError."""
    temp, reservation, entry = kit.build(A, 1, 10)
    assert kit.catalog.fence(0)
    with pytest.raises(ClosingError):
        kit.catalog.publish(temp, reservation, entry)
    assert kit.files() == set()
    assert entries_of(kit.index) == []


@pytest.mark.parametrize("lost", ["lock file", "directory"])
def test_nothing_is_published_into_a_directory_that_is_not_locked(kit: Kit, lost: str) -> None:
    """The directory may be another cache's."""
    temp, reservation, entry = kit.build(A, 1, 10)
    if lost == "directory":
        kit.directory.rename(kit.directory.with_name(kit.directory.name + "-away"))
        kit.directory.mkdir()
    else:
        (kit.directory / LOCK_NAME).unlink()
    assert not kit.dirlock.is_at_path()
    with pytest.raises(StoreError, match="removed or replaced") as caught:
        kit.catalog.publish(temp, reservation, entry)
    assert caught.value.errno == errno.ENOENT
    assert kit.files() == set()
    assert entries_of(kit.index) == []
    assert kit.totals() == (1, 10)


def test_an_old_file_that_stays_counts_until_it_goes(
    kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    """The refresh is published; the failed unlink is counted once and tried again."""
    kit.publish(A, lsn=1, size_bytes=30)
    block(kit.path(A, 1))
    entry = kit.publish(A, lsn=2, size_bytes=20)
    assert entries_of(kit.index) == [entry]
    assert kit.totals() == (2, 50)
    assert kit.index.accounting.nonentry_bytes == 30
    assert kit.count("bbcache_unlink_failures_total") == 1
    assert str(kit.path(A, 1)) in caplog.text
    for _ in range(2):
        kit.catalog.upkeep()
        assert kit.totals() == (2, 50)
    kit.path(A, 1).rmdir()
    kit.catalog.upkeep()
    assert kit.totals() == (1, 20)
    assert kit.count("bbcache_unlink_failures_total") == 1


def test_a_late_unlink_never_hits_a_published_file(kit: Kit) -> None:
    """A path that waits to be removed becomes an entry's again: it is not removed."""
    entry = kit.publish(A, size_bytes=30)
    block(kit.path(A))
    assert kit.catalog.discard(entry)
    assert kit.totals() == (1, 30)
    kit.path(A).rmdir()
    kit.publish(A, size_bytes=20)
    assert kit.totals() == (1, 20)
    kit.catalog.upkeep()
    assert kit.path(A).read_bytes() == bytes(20)
    assert kit.totals() == (1, 20)
    assert kit.index.accounting.nonentry_bytes == 0


def test_each_doomed_file_counts_once(kit: Kit) -> None:
    """Each file counts once, however often its unlink fails."""
    for lsn in (1, 2):
        entry = kit.publish(A, lsn, size_bytes=30)
        block(kit.path(A, lsn))
        kit.catalog.discard(entry)
    assert kit.totals() == (2, 60)
    for lsn in (1, 2):
        kit.path(A, lsn).rmdir()
    kit.catalog.upkeep()
    assert kit.totals() == (0, 0)


def test_a_foreign_file_that_is_overwritten_counts_no_more(reopen: Callable[..., Kit]) -> None:
    """A link under an entry's name is replaced by the entry."""
    kit = reopen()
    kit.path(A).symlink_to("notes")
    (kit.directory / "notes").write_bytes(b"12345")
    kit.catalog.load()
    assert kit.totals() == (2, 5)
    kit.publish(A, size_bytes=10)
    assert kit.totals() == (2, 15)
    assert (kit.directory / "notes").read_bytes() == b"12345"
    kit.catalog.upkeep()
    assert kit.totals() == (2, 15)


# --- Discard ----------------------------------------------------------------------------


def test_a_discarded_entry_is_gone_with_its_file(kit: Kit) -> None:
    """A second discard does nothing."""
    entry = kit.publish(A)
    assert kit.catalog.discard(entry)
    assert kit.files() == set()
    assert kit.totals() == (0, 0)
    assert not kit.catalog.discard(entry)


def test_removal_judges_the_identity_of_the_entry(kit: Kit) -> None:
    """An entry that was rebuilt at the same LSN meanwhile stays."""
    old = kit.publish(A)
    new = kit.publish(A)
    assert not kit.catalog.discard(old)
    assert not kit.catalog.quarantine(old)
    assert entries_of(kit.index) == [new]
    assert kit.files() == {kit.path(A).name}
    assert kit.count("bbcache_quarantined_total") == 0


def test_a_file_that_is_gone_already_is_no_failure(kit: Kit) -> None:
    """An operator may have removed it before."""
    entry = kit.publish(A)
    kit.path(A).unlink()
    assert kit.catalog.discard(entry)
    assert kit.totals() == (0, 0)
    assert kit.count("bbcache_unlink_failures_total") == 0


def test_a_discard_that_fails_is_counted_once(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    """The entry goes at once; its bytes count until the file is gone."""
    entry = kit.publish(A, size_bytes=30)
    block(kit.path(A))
    assert kit.catalog.discard(entry)
    assert entries_of(kit.index) == []
    assert kit.totals() == (1, 30)
    assert kit.count("bbcache_unlink_failures_total") == 1
    assert "\nhint: " in caplog.text
    kit.path(A).rmdir()
    kit.catalog.upkeep()
    assert kit.totals() == (0, 0)


def test_a_refresh_under_way_keeps_its_credit_until_the_unlink(
    tmp_path: Path, reopen: Callable[..., Kit]
) -> None:
    """In a full cache the old entry may be discarded while the new one is built."""
    kit = reopen(max_entries=1, max_bytes=30)
    old = kit.publish(A, lsn=1, size_bytes=30)
    temp, reservation, entry = kit.build(A, 2, 30)
    assert kit.totals() == (1, 30)
    assert kit.catalog.discard(old)
    assert kit.totals() == (1, 30)
    kit.catalog.publish(temp, reservation, entry)
    assert kit.totals() == (1, 30)
    assert file_names(tmp_path / "tmp") == set()


# --- Quarantine -------------------------------------------------------------------------


def test_a_bad_file_is_kept_for_inspection(kit: Kit) -> None:
    """The entry leaves the index; the file counts bytes but no slot."""
    entry = kit.publish(A, size_bytes=30)
    assert kit.catalog.quarantine(entry)
    assert entries_of(kit.index) == []
    assert kit.files() == set()
    (name,) = kit.quarantined()
    assert name.endswith(kit.path(A).name)
    assert kit.totals() == (0, 30)
    assert kit.count("bbcache_quarantined_total") == 1
    assert not kit.catalog.quarantine(entry)
    assert kit.count("bbcache_quarantined_total") == 1


def test_a_moved_file_counts_though_the_quarantine_cannot_be_listed(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its indexed size counts until the next clean-up."""
    entry = kit.publish(A, size_bytes=30)
    with monkeypatch.context() as patch:
        fail_with(patch, os, "listdir", OSError(errno.EMFILE, "Too many open files"))
        assert kit.catalog.quarantine(entry)
    assert kit.totals() == (0, 30)
    assert len(kit.quarantined()) == 1


@pytest.mark.parametrize("size_bytes", [0, 5, 300])
def test_damage_is_counted_as_large_as_it_is(kit: Kit, size_bytes: int) -> None:
    """A cut or grown file counts with its real size, not the indexed one."""
    entry = kit.publish(A, size_bytes=30)
    kit.path(A).write_bytes(bytes(size_bytes))
    kit.catalog.quarantine(entry)
    assert kit.totals() == (0, size_bytes)
    kit.catalog.upkeep()
    assert kit.totals() == (0, size_bytes)


def test_the_eight_newest_are_kept(kit: Kit) -> None:
    """The oldest files are removed, and the ledger follows."""
    for size_bytes in range(1, 12):
        kit.catalog.quarantine(kit.publish(A, lsn=size_bytes, size_bytes=size_bytes))
    names = kit.quarantined()
    assert KEEPS == len(names) == 8
    assert [name.split("_")[-1] for name in names] == [f"{n:016X}.tar.gz" for n in range(4, 12)]
    assert kit.totals() == (0, sum(range(4, 12)))
    assert kit.count("bbcache_unlink_failures_total") == 0


def test_what_an_audit_has_put_beside_is_trimmed_too(kit: Kit) -> None:
    """`bbcache verify` may quarantine in the same directory; the eight newest stay."""
    kit.catalog.quarantine(kit.publish(A, lsn=1, size_bytes=1))
    (mine,) = kit.quarantined()
    for number in range(9):
        name = f"20000101T00000{number}.000000Z_{kit.path(B, 1).name}"
        (kit.directory / "quarantine" / name).write_bytes(bytes(10))
    kit.catalog.quarantine(kit.publish(A, lsn=2, size_bytes=2))
    assert len(kit.quarantined()) == 8
    assert mine in kit.quarantined()
    assert kit.totals() == (0, 63)


def test_files_of_others_in_the_quarantine_are_left_alone(kit: Kit) -> None:
    """They count bytes, but not against the eight files."""
    (kit.directory / "quarantine" / "0-notes").write_bytes(bytes(100))
    for lsn in range(1, 11):
        kit.catalog.quarantine(kit.publish(A, lsn=lsn, size_bytes=1))
    assert len(kit.quarantined()) == 9
    assert "0-notes" in kit.quarantined()
    assert kit.totals() == (0, 108)


def test_an_old_bad_file_that_stays_is_logged(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    """An unlink that fails is counted and logged; the new file is kept."""
    for lsn in range(1, 9):
        kit.catalog.quarantine(kit.publish(A, lsn=lsn, size_bytes=1))
    block(kit.directory / "quarantine" / kit.quarantined()[0])
    assert kit.catalog.quarantine(kit.publish(A, lsn=9, size_bytes=1))
    assert len(kit.quarantined()) == 9
    assert kit.count("bbcache_unlink_failures_total") == 1
    assert "quarantine" in caplog.text


def test_a_bad_file_is_unlinked_while_its_timeline_is_built(
    tmp_path: Path, reopen: Callable[..., Kit]
) -> None:
    """The build needs the room that the file would take in the quarantine."""
    kit = reopen(max_entries=1, max_bytes=30)
    old = kit.publish(A, lsn=1, size_bytes=30)
    temp, reservation, entry = kit.build(A, 2, 30)
    assert kit.catalog.quarantine(old)
    assert kit.quarantined() == []
    assert kit.files() == set()
    assert kit.totals() == (1, 30)
    assert kit.count("bbcache_quarantined_total") == 1
    kit.catalog.publish(temp, reservation, entry)
    assert kit.totals() == (1, 30)
    assert file_names(tmp_path / "tmp") == set()


def test_a_bad_file_that_can_be_neither_moved_nor_unlinked(
    reopen: Callable[..., Kit],
) -> None:
    """The file counts until it is gone."""
    kit = reopen(max_entries=1, max_bytes=30)
    old = kit.publish(A, lsn=1, size_bytes=30)
    temp, reservation, _ = kit.build(A, 2, 30)
    block(kit.path(A, 1))
    assert kit.catalog.quarantine(old)
    assert kit.totals() == (2, 60)
    kit.path(A, 1).rmdir()
    kit.catalog.upkeep()
    kit.catalog.abandon(temp, reservation)
    assert kit.totals() == (0, 0)


def test_a_bad_file_that_cannot_be_moved_is_removed_by_upkeep(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its entry goes at once; the failure is logged, and the file counts until it is gone."""
    entry = kit.publish(A, size_bytes=30)
    with monkeypatch.context() as patch:
        fail_with(patch, os, "rename", OSError(errno.EACCES, "no", str(kit.path(A))))
        assert kit.catalog.quarantine(entry)
    assert entries_of(kit.index) == []
    assert kit.files() == {kit.path(A).name}
    assert kit.totals() == (1, 30)
    assert kit.index.accounting.nonentry_bytes == 30
    assert kit.count("bbcache_unlink_failures_total") == 1
    assert str(kit.path(A)) in caplog.text
    kit.catalog.upkeep()
    assert kit.files() == set()
    assert kit.totals() == (0, 0)


def test_a_bad_file_that_has_vanished_leaves_no_ghost(kit: Kit) -> None:
    """An operator has deleted it before it could be moved."""
    entry = kit.publish(A, size_bytes=30)
    kit.path(A).unlink()
    kit.catalog.quarantine(entry)
    assert entries_of(kit.index) == []
    assert kit.totals() == (0, 0)


def test_a_bad_entry_that_another_reader_has_dropped_is_left_alone(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other reader needs no file lock, so the entry may go at any step."""
    entry = kit.publish(A, size_bytes=30)
    stop_before(monkeypatch, kit.dirlock, "is_at_path", lambda: kit.index.remove(entry))
    assert not kit.catalog.quarantine(entry)
    assert kit.quarantined() == []
    assert kit.count("bbcache_quarantined_total") == 0


def test_a_lost_quarantine_is_made_again(kit: Kit) -> None:
    """An operator has removed the directory."""
    shutil.rmtree(kit.directory / "quarantine")
    assert kit.catalog.quarantine(kit.publish(A))
    assert len(kit.quarantined()) == 1


# --- Abandon ----------------------------------------------------------------------------


def test_an_abandoned_build_gives_its_room_back(kit: Kit) -> None:
    """Its file is gone, its reservation too; a second time is harmless."""
    temp, reservation, _ = kit.build(A, 1, 30)
    assert kit.totals() == (1, 30)
    for _ in range(2):
        kit.catalog.abandon(temp, reservation)
        assert kit.totals() == (0, 0)
        assert file_names(kit.directory / "tmp") == set()


def test_an_abandoned_build_closes_its_file(kit: Kit) -> None:
    """A build may fail anywhere."""
    before = open_below(kit.directory)
    reservation = kit.index.reserve(A)
    kit.catalog.abandon(kit.catalog.create_temp(A, 1), reservation)
    assert open_below(kit.directory) == before


def test_a_temporary_file_that_stays_counts_until_it_goes(kit: Kit) -> None:
    """It counts as long as it is on the disk."""
    kit.publish(A, lsn=1, size_bytes=20)
    temp, reservation, _ = kit.build(A, 2, 30)
    block(Path(temp.path))
    kit.catalog.abandon(temp, reservation)
    assert kit.totals() == (2, 50)
    assert kit.count("bbcache_unlink_failures_total") == 1
    kit.catalog.upkeep()
    assert kit.totals() == (2, 50)
    Path(temp.path).rmdir()
    kit.catalog.upkeep()
    assert kit.totals() == (1, 20)
    assert kit.count("bbcache_unlink_failures_total") == 1


def test_an_unpublished_file_that_stays_counts_until_it_goes(kit: Kit) -> None:
    """This also holds for an unpublished build; its descriptor is closed."""
    before = open_below(kit.directory)
    temp, reservation = kit.catalog.create_temp(A, 1), kit.index.reserve(A)
    kit.index.accounting.grow(reservation, 30)
    kit.index.accounting.unpublish(reservation)
    block(Path(temp.path))
    kit.catalog.abandon(temp, reservation)
    assert kit.index.accounting.unpublished_bytes == 0
    assert open_below(kit.directory) == before
    assert kit.totals() == (1, 30)
    assert kit.count("bbcache_unlink_failures_total") == 1
    Path(temp.path).rmdir()
    kit.catalog.upkeep()
    assert kit.totals() == (0, 0)


def test_after_the_fence_a_temporary_file_is_left(kit: Kit) -> None:
    """The directory may be another cache's; the next start sweeps it."""
    temp, reservation, _ = kit.build(A, 1, 30)
    unpublished, leaving, _ = kit.build(B, 1, 30)
    kit.index.accounting.unpublish(leaving)
    kit.catalog.fence(0)
    kit.catalog.abandon(temp, reservation)
    kit.catalog.abandon(unpublished, leaving)
    assert Path(temp.path).exists()
    assert Path(unpublished.path).exists()


@pytest.mark.parametrize("step", ["discard", "quarantine"])
def test_a_step_broken_off_after_its_call_counts_what_is_there(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The next scan finds that the file is gone or moved."""
    entry = kit.publish(A, size_bytes=30)
    kit.publish(B, size_bytes=20)
    name = {"discard": "unlink", "quarantine": "rename"}[step]
    call = getattr(os, name)

    def interrupted(*args: str) -> None:
        call(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, name, interrupted)
        with contextlib.suppress(KeyboardInterrupt):
            getattr(kit.catalog, step)(entry)
    kit.catalog.settle_doubt()
    assert kit.totals() == (1, used_bytes(kit.directory))


# --- Upkeep -----------------------------------------------------------------------------


def test_foreign_files_are_followed(reopen: Callable[..., Kit]) -> None:
    """Clean-up counts the sizes that they have now."""
    kit = reopen()
    for name in ("a", "b"):
        (kit.directory / name).write_bytes(bytes(10))
    kit.catalog.load()
    assert kit.totals() == (2, 20)
    (kit.directory / "a").unlink()
    (kit.directory / "b").write_bytes(bytes(15))
    kit.catalog.upkeep()
    assert kit.totals() == (1, 15)


def test_the_quarantine_is_followed(kit: Kit) -> None:
    """Evidence that an operator takes away frees its bytes."""
    kit.catalog.quarantine(kit.publish(A, size_bytes=30))
    shutil.rmtree(kit.directory / "quarantine")
    kit.catalog.upkeep()
    assert kit.totals() == (0, 0)


def test_upkeep_never_touches_a_build_in_flight(kit: Kit) -> None:
    """Its file and its reservation stay."""
    temp, reservation, entry = kit.build(A, 1, 30)
    kit.catalog.upkeep()
    assert Path(temp.path).exists()
    assert kit.totals() == (1, 30)
    kit.catalog.publish(temp, reservation, entry)


# --- Fence ------------------------------------------------------------------------------


def snapshot_of(directory: Path) -> dict[str, int]:
    """Every path below a directory with its inode."""
    return {str(path.relative_to(directory)): path.lstat().st_ino for path in directory.rglob("*")}


def test_nothing_changes_after_the_fence(kit: Kit) -> None:
    """No rename, unlink or quarantine by this cache can happen any more."""
    entry, other = kit.publish(A), kit.publish(B)
    block(kit.path(B))
    kit.catalog.discard(other)
    kit.path(B).rmdir()
    kit.path(B).touch()  # pending, and could be unlinked now
    temp, reservation, new = kit.build(C, 1, 30)
    assert kit.catalog.fence(0)
    assert kit.catalog.fence(0)
    before = snapshot_of(kit.directory)
    assert not kit.catalog.discard(entry)
    assert not kit.catalog.quarantine(entry)
    kit.catalog.upkeep()
    kit.catalog.abandon(temp, reservation)
    with pytest.raises(ClosingError):
        kit.catalog.publish(temp, reservation, new)
    with pytest.raises(ClosingError):
        kit.catalog.create_temp(D, 1)
    assert snapshot_of(kit.directory) == before


def test_a_late_start_changes_nothing_after_the_fence(reopen: Callable[..., Kit]) -> None:
    """A start that continues after the close must not sweep the next cache's builds."""
    kit = reopen()
    kit.put(A, 1)
    kit.put(A, 2)
    (kit.directory / "tmp" / f"{kit.path(A).name}.next").touch()
    assert kit.catalog.fence(0)
    before = snapshot_of(kit.directory)
    with contextlib.suppress(ClosingError):
        kit.catalog.load()
    assert snapshot_of(kit.directory) == before


def test_a_late_step_does_not_take_the_lock_after_the_fence(kit: Kit) -> None:
    """A directory that was replaced after the close is not locked again."""
    kit.catalog.fence(0)
    kit.dirlock.release()
    (kit.directory / LOCK_NAME).unlink()
    kit.catalog.ensure_directory()
    assert not (kit.directory / LOCK_NAME).exists()


def test_the_fence_waits_for_a_step_on_the_disk(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives up after its timeout, and the cache is not fenced."""
    with Gate() as gate:
        stop_before(monkeypatch, os, "rename", gate)
        publishing = Worker(kit.publish, A)
        gate.wait_for()
        assert not kit.catalog.fence(0.01)
        assert not kit.catalog.fence(0)
        fencing = Worker(kit.catalog.fence, -1)
        wait_until(lambda: any(lock.waiting for lock in kit.locks))
        gate.open()
        assert fencing.result() is True
        publishing.result()
    with pytest.raises(ClosingError):
        kit.publish(A)


# --- The directory ---------------------------------------------------------------------


def test_a_directory_that_is_still_locked_is_left_alone(kit: Kit) -> None:
    """A directory that is still locked is left as it is."""
    kit.publish(A)
    before = snapshot_of(kit.directory)
    kit.catalog.ensure_directory()
    assert kit.dirlock.is_at_path()
    assert snapshot_of(kit.directory) == before


@pytest.mark.parametrize("is_made_again", [False, True])
def test_a_removed_directory_is_made_and_locked_again(
    kit: Kit, caplog: pytest.LogCaptureFixture, *, is_made_again: bool
) -> None:
    """The entries are gone with their files, and prepares work again by themselves."""
    kit.publish(A)
    kit.publish(B)
    kit.catalog.quarantine(kit.publish(C, size_bytes=50))
    block(kit.path(B))
    kit.publish(B, lsn=2)
    shutil.rmtree(kit.directory)
    if is_made_again:
        kit.directory.mkdir()
    assert not kit.dirlock.is_at_path()
    kit.catalog.ensure_directory()
    assert kit.dirlock.is_at_path()
    assert file_names(kit.directory) == OWN_NAMES
    assert entries_of(kit.index) == []
    assert "was replaced" in caplog.text
    kit.catalog.upkeep()
    assert kit.totals() == (0, 0)
    entry = kit.publish(A)
    assert entries_of(kit.index) == [entry]
    assert kit.files() == {kit.path(A).name}
    assert not is_free(kit.directory)


def test_a_directory_is_made_for_the_owner_alone(kit: Kit) -> None:
    """It has the mode that `spawn` gives it."""
    shutil.rmtree(kit.directory)
    kit.catalog.ensure_directory()
    assert kit.directory.stat().st_mode & 0o777 == 0o700


def test_entries_whose_files_are_still_there_stay(kit: Kit) -> None:
    """Only the lock file was removed, and one archive with it."""
    kept, lost = kit.publish(A), kit.publish(B)
    (kit.directory / LOCK_NAME).unlink()
    kit.path(B).unlink()
    kit.catalog.ensure_directory()
    assert [entry.info() for entry in entries_of(kit.index)] == [kept.info()]
    assert not holds(kit.index, lost)
    assert kit.totals() == (1, 10)


def test_what_is_in_a_replaced_directory_is_taken_over(kit: Kit) -> None:
    """A copy that an operator has restored is served, and its foreign files count."""
    kit.publish(A, size_bytes=30)
    kit.publish(B, lsn=2, size_bytes=40)
    temp, reservation, _ = kit.build(C, 1, 5)
    shutil.rmtree(kit.directory)
    kit.directory.mkdir()
    kit.put(A, lsn=1, size_bytes=25)
    kit.put(A, lsn=3, size_bytes=35)
    kit.put(D, size_bytes=15)
    (kit.directory / "foreign file").write_bytes(bytes(100))
    kit.catalog.ensure_directory()
    assert {(entry.key, entry.lsn) for entry in entries_of(kit.index)} == {(A, 3), (D, 1)}
    assert kit.files() == {*kit.entry_names(), "foreign file"}
    kit.catalog.abandon(temp, reservation)
    assert kit.totals() == (3, 150)


def test_an_older_file_that_stays_in_a_replaced_directory_is_logged(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The failure is counted and logged once; the file counts until it is removed."""
    shutil.rmtree(kit.directory)
    kit.directory.mkdir()
    old = kit.put(A, lsn=1, size_bytes=25)
    kit.put(A, lsn=3, size_bytes=35)
    with monkeypatch.context() as patch:
        refusal = PermissionError(errno.EPERM, "no", str(old))
        fail_with(patch, os, "unlink", refusal)
        kit.catalog.ensure_directory()
    assert kit.totals() == (2, 60)
    assert kit.count("bbcache_unlink_failures_total") == 1
    assert str(old) in caplog.text
    kit.catalog.upkeep()
    assert kit.totals() == (1, 35)


def test_a_build_in_flight_survives_the_loss_of_its_directory(kit: Kit) -> None:
    """It fails and frees its room; the next build works."""
    temp, reservation, entry = kit.build(A, 1, 30)
    shutil.rmtree(kit.directory)
    with pytest.raises(StoreError):
        kit.catalog.publish(temp, reservation, entry)
    kit.catalog.abandon(temp, reservation)
    assert kit.totals() == (0, 0)
    kit.catalog.ensure_directory()
    kit.publish(A)


def test_a_directory_that_another_cache_has_taken_is_not_used(kit: Kit) -> None:
    """The error names its pid; the index is unchanged."""
    entry = kit.publish(A)
    (kit.directory / LOCK_NAME).unlink()
    other = DirectoryLock(str(kit.directory))
    other.acquire()
    with pytest.raises(DirectoryLockedError) as caught:
        kit.catalog.ensure_directory()
    assert caught.value.pid == os.getpid()
    assert entries_of(kit.index) == [entry]
    other.release()
    kit.catalog.ensure_directory()
    assert kit.dirlock.is_at_path()


@pytest.mark.parametrize("step", ["discard", "quarantine", "upkeep"])
def test_nothing_is_removed_from_a_directory_that_is_not_locked(kit: Kit, step: str) -> None:
    """Files with the same names are another cache's."""
    entry, pending_unlinks = kit.publish(A), kit.publish(B)
    block(kit.path(B))
    kit.catalog.discard(pending_unlinks)
    kit.directory.rename(kit.directory.with_name(kit.directory.name + "-away"))
    kit.directory.mkdir()
    other = Kit(kit.directory)
    other.catalog.load()
    other.publish(A)
    other.publish(B)
    with contextlib.suppress(OSError):
        {
            "discard": lambda: kit.catalog.discard(entry),
            "quarantine": lambda: kit.catalog.quarantine(entry),
            "upkeep": kit.catalog.upkeep,
        }[step]()
    assert other.files() == other.entry_names()
    assert len(other.files()) == 2
    other.dirlock.release()


class FailingStore(Store):
    """Fails to list the directory while a flag is set."""

    is_failing = False

    def scan(self) -> Scan:
        """Scan, or fail as a disk does."""
        if self.is_failing:
            raise OSError(errno.EIO, "Input/output error")
        return super().scan()


def test_a_replaced_directory_is_taken_over_though_the_old_lock_cannot_be_freed(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new directory is locked then, and the next step scans it."""
    kit.directory.rename(kit.directory.with_name("aside"))
    kit.directory.mkdir()
    kit.put(A)

    def fail_to_free(fd: int, operation: int) -> None:
        if operation & fcntl.LOCK_UN:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        flock(fd, operation)

    flock = fcntl.flock
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", fail_to_free)
        with pytest.raises(OSError, match="Input/output"):
            kit.catalog.ensure_directory()
    kit.catalog.ensure_directory()
    assert [entry.key for entry in entries_of(kit.index)] == [A]
    kit.path(A).unlink()
    shutil.rmtree(kit.directory.with_name("aside"))


def test_a_replaced_directory_that_cannot_be_listed_is_looked_at_again(
    tmp_path: Path, reopen: Callable[..., Kit]
) -> None:
    """It is locked then, and must not be taken for the scanned one."""
    store = FailingStore(str(tmp_path))
    kit = reopen(store=store)
    kit.publish(A)
    shutil.rmtree(tmp_path)
    store.is_failing = True
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            kit.catalog.ensure_directory()
    assert not is_free(tmp_path)
    store.is_failing = False
    kit.catalog.ensure_directory()
    assert entries_of(kit.index) == []
    assert kit.totals() == (0, 0)
    entry = kit.publish(A)
    kit.catalog.ensure_directory()  # the very entry stays
    assert holds(kit.index, entry)


def test_a_directory_that_comes_back_after_a_failed_scan_is_scanned(
    tmp_path: Path, reopen: Callable[..., Kit]
) -> None:
    """The files in it may have changed while another directory was in its place."""
    store = FailingStore(str(tmp_path))
    kit = reopen(store=store)
    kit.catalog.load()
    kit.publish(A)
    away = tmp_path.with_name(tmp_path.name + "-away")
    tmp_path.rename(away)
    tmp_path.mkdir()
    store.is_failing = True
    with pytest.raises(OSError, match="Input/output"):
        kit.catalog.ensure_directory()
    store.is_failing = False
    shutil.rmtree(tmp_path)
    (away / kit.path(A).name).rename(away / kit.path(B).name)
    away.rename(tmp_path)
    kit.catalog.ensure_directory()
    assert [entry.key for entry in entries_of(kit.index)] == [B]


def test_nothing_is_moved_in_a_directory_that_was_never_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a read-only start the directory may be another cache's: a bad entry only goes."""
    dirlock = DirectoryLock(str(tmp_path))
    with monkeypatch.context() as patch:
        fail_with(patch, DirectoryLock, "acquire", StoreError("read-only", errno=errno.EROFS))
        dirlock.acquire_unless_read_only()
    kit = Kit(tmp_path, dirlock=dirlock)
    kit.store.make_directories()
    kit.put(A)
    for number in range(KEEPS + 1):
        name = f"20000101T00000{number}.000000Z_{kit.path(B).name}"
        (tmp_path / "quarantine" / name).touch()
    kit.catalog.load()
    before = snapshot_of(tmp_path)
    (entry,) = entries_of(kit.index)
    assert kit.catalog.quarantine(entry)
    assert entries_of(kit.index) == []
    assert snapshot_of(tmp_path) == before


def test_a_file_that_waits_to_be_removed_is_not_unlinked_under_its_entry(kit: Kit) -> None:
    """A scan indexes the file again, so it is not removed."""
    entry = kit.publish(A, size_bytes=30)
    block(kit.path(A))
    kit.catalog.discard(entry)
    kit.path(A).rmdir()
    kit.put(A, size_bytes=30)
    (kit.directory / LOCK_NAME).unlink()
    kit.catalog.ensure_directory()
    kit.catalog.upkeep()
    assert kit.files() == kit.entry_names()
    assert kit.totals() == (kit.index.accounting.entry_count, used_bytes(kit.directory))


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    """Only the last part of the path is made: the file system may be unmounted."""
    directory = tmp_path / "mount" / "cache"
    directory.mkdir(parents=True)
    kit = Kit(directory)
    kit.catalog.load()
    shutil.rmtree(tmp_path / "mount")
    with pytest.raises(FileNotFoundError):
        kit.catalog.ensure_directory()
    assert not (tmp_path / "mount").exists()
    kit.dirlock.release()


# --- Locks ------------------------------------------------------------------------------


class Watcher(logging.Handler):
    """Notes which locks were held when a line was logged."""

    def __init__(self, kit: Kit) -> None:
        super().__init__()
        self._kit = kit
        self.held: list[list[str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Look at the locks."""
        del record
        self.held.append([lock.maker for lock in self._kit.locks if lock.is_mine])


def test_no_line_is_logged_under_a_lock(kit: Kit) -> None:
    """A slow log must not hold up a read or a publication."""
    watcher, log = Watcher(kit), logging.getLogger(catalog_module.__name__)
    log.addHandler(watcher)
    try:
        for key in (A, B, C):
            kit.publish(key)
            block(kit.path(key))
        kit.publish(A, lsn=2)
        kit.catalog.discard(entries_of(kit.index)[1])
        temp, reservation, _ = kit.build(D, 1, 10)
        block(Path(temp.path))
        kit.catalog.abandon(temp, reservation)
        (kit.directory / LOCK_NAME).unlink()
        kit.catalog.ensure_directory()
    finally:
        log.removeHandler(watcher)
    assert watcher.held == [[]] * 4


def test_look_ups_do_not_want_the_file_lock(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hanging step on the disk delays no hit, no miss and no reservation."""
    entry = kit.publish(A)
    seen: list[Entry | None] = []
    with Gate() as gate:
        stop_before(monkeypatch, os, "rename", gate)
        hanging = Worker(kit.publish, C)
        gate.wait_for()
        seen.append(kit.index.find(A, 1))
        seen.append(kit.index.find(B, 1))
        kit.index.accounting.release(kit.index.reserve(B))
        kit.store.open(A, Lsn(1), 10).close()
        gate.open()
        hanging.result()
    assert seen == [entry, None]


def test_files_and_index_agree_between_threads(
    reopen: Callable[..., Kit], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Publications, discards, quarantines and upkeep at once, on the same few names."""
    kit = reopen(max_entries=4, max_bytes=200)
    kit.catalog.load()
    file_lock = kit.file_lock(monkeypatch)
    missing: list[str] = []

    def build(key: bytes, seed: int) -> None:
        numbers = random.Random(seed)
        for _ in range(120):
            held = kit.index.newest(key)
            lsn = max(held.lsn if held else 1, numbers.randrange(1, 3))
            try:
                temp, reservation, entry = kit.build(key, lsn, numbers.randrange(1, 60))
            except LimitError:
                continue
            if numbers.random() < 0.2:
                kit.catalog.abandon(temp, reservation)
            else:
                kit.catalog.publish(temp, reservation, entry)

    def clean(seed: int) -> None:
        numbers = random.Random(seed)
        for number in range(150):
            for entry in entries_of(kit.index):
                if numbers.random() < 0.3:
                    (kit.catalog.discard if number % 5 else kit.catalog.quarantine)(entry)
            if number % 10 == 0:
                kit.catalog.upkeep()
            with file_lock:
                missing.extend(kit.entry_names() ^ kit.files())

    run_threads(
        [functools.partial(build, key, number) for number, key in enumerate((A, B, C))]
        + [functools.partial(clean, seed) for seed in (10, 20)]
    )
    wait_until(lambda: kit.totals()[0] == kit.index.accounting.entry_count)
    kit.catalog.upkeep()
    assert missing == []
    assert kit.files() == kit.entry_names()
    assert file_names(kit.directory / "tmp") == set()
    assert total_bytes(kit.index) == used_bytes(kit.directory)
    assert kit.count("bbcache_unlink_failures_total") == 0


def used_bytes(directory: Path) -> int:
    """Bytes of all files in a cache directory but the lock file."""
    paths = [path for path in directory.rglob("*") if path.is_file() and path.name != LOCK_NAME]
    return sum(path.stat().st_size for path in paths)


class CatalogMachine(RuleBasedStateMachine):
    """A catalog over several lives: whenever it is idle the ledger equals the disk."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.kit = Kit(self.directory, max_entries=3, max_bytes=150)
        self.kit.catalog.load()
        self.building: list[tuple[TempFile, Reservation, Entry]] = []
        self.stale: list[Entry] = []
        self.is_pushed_over = False

    @precondition(lambda self: not self.building)
    @rule(key=st.sampled_from([A, B, C, D]), ahead=st.integers(0, 2), size=st.integers(1, 70))
    def build(self, key: bytes, ahead: int, size: int) -> None:
        """Write a temporary file."""
        held = self.kit.index.newest(key)
        lsn = (held.lsn if held else 1) + ahead
        try:
            self.building.append(self.kit.build(key, lsn, size))
        except LimitError:
            assert file_names(self.directory / "tmp") == set()

    @precondition(lambda self: self.building)
    @rule()
    def publish(self) -> None:
        """Publish what was built."""
        temp, reservation, entry = self.building.pop()
        self.stale += [each for each in entries_of(self.kit.index) if each.key == entry.key]
        self.kit.catalog.publish(temp, reservation, entry)
        assert holds(self.kit.index, entry)

    @precondition(lambda self: self.building)
    @rule()
    def abandon(self) -> None:
        """Give up what was built."""
        temp, reservation, _ = self.building.pop()
        self.kit.catalog.abandon(temp, reservation)

    @rule(number=st.integers(0, 3), is_bad=st.booleans())
    def remove(self, number: int, *, is_bad: bool) -> None:
        """Discard or quarantine an entry."""
        entries = entries_of(self.kit.index)
        if number < len(entries):
            take = self.kit.catalog.quarantine if is_bad else self.kit.catalog.discard
            assert take(entries[number])
            self.stale.append(entries[number])

    @rule(is_bad=st.booleans())
    def remove_stale(self, *, is_bad: bool) -> None:
        """Removals that come too late do nothing."""
        take = self.kit.catalog.quarantine if is_bad else self.kit.catalog.discard
        assert not any(take(entry) for entry in self.stale)

    @rule(number=st.integers(0, 3))
    def lose(self, number: int) -> None:
        """An archive is deleted by hand, and a reader finds out."""
        entries = entries_of(self.kit.index)
        if number < len(entries):
            self.kit.path(entries[number].key, entries[number].lsn).unlink()
            assert self.kit.index.remove(entries[number])

    @rule()
    def upkeep(self) -> None:
        """Look at the directory."""
        self.kit.catalog.upkeep()

    @rule(name=st.sampled_from(["x", "y"]), size=st.integers(0, 50), is_killed=st.booleans())
    def restart(self, name: str, size: int, *, is_killed: bool) -> None:
        """The next life finds what is there, and perhaps a new foreign file."""
        if not is_killed:
            for temp, reservation, _ in self.building:
                self.kit.catalog.abandon(temp, reservation)
        self.building.clear()
        if size:
            (self.directory / name).write_bytes(bytes(size))
        before = self.kit.entry_names()
        self.kit.catalog.fence(0)
        self.kit = Kit(self.directory, max_entries=3, max_bytes=150, dirlock=self.kit.dirlock)
        self.kit.catalog.load()
        self.stale.clear()
        assert self.kit.entry_names() == before
        assert file_names(self.directory / "tmp") == set()
        index = self.kit.index
        self.is_pushed_over = total_count(index) > 3 or total_bytes(index) > 150

    @invariant()
    def files_are_entries(self) -> None:
        """Every entry has its file, and every archive its entry."""
        assert self.kit.files() - {"x", "y"} == self.kit.entry_names()

    @invariant()
    def accounting_equals_the_disk(self) -> None:
        """With no build under way the bytes that count are those that are there."""
        if not self.building:
            assert total_bytes(self.kit.index) == used_bytes(self.directory)

    @invariant()
    def limits_hold(self) -> None:
        """Nothing that the cache does passes a limit."""
        if not self.is_pushed_over:
            assert total_count(self.kit.index) <= 3
            assert total_bytes(self.kit.index) <= 150

    def teardown(self) -> None:
        """Free the directory."""
        for temp, _, _ in self.building:
            temp.close()
        self.kit.dirlock.release()
        shutil.rmtree(self.directory)


CatalogMachine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestCatalogMachine = CatalogMachine.TestCase
